"""The loops of a PTX function: which labels begin one, and what lies inside."""

from __future__ import annotations

from gpuconv.sim.program import Function, Instruction, Label, Sym

_LEAVES = {"ret", "exit", "trap"}


def loops(function: Function) -> dict[str, list[str]]:
    """{label: the labels that begin the loops around it, outermost first}.

    A label that begins a loop is the last of its own list; "" stands for the function's begin. The
    loops are natural ones: a branch back to a label that every way to the branch passes (Aho, Lam,
    Sethi and Ullman, 9.6).
    """
    names, edges = _graph(function)
    dominators = _dominators(edges)
    before: list[list[int]] = [[] for _ in names]
    for block, after in enumerate(edges):
        for other in after:
            before[other].append(block)
    bodies: dict[int, set[int]] = {}
    for tail, after in enumerate(edges):
        for head in after:
            if head in dominators[tail]:
                bodies[head] = bodies.get(head, {head}) | _body(head, tail, before)
    around: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        heads = [head for head, body in bodies.items() if number in body]
        heads.sort(key=lambda head: -len(bodies[head]))
        around[name] = [names[head] for head in heads]
    return around


def _graph(function: Function) -> tuple[list[str], list[list[int]]]:
    """The pieces of code between labels, by name, and the numbers of each one's successors.

    A piece may have branches in its middle: they lead out of it.
    """
    names, targets, falls = [""], [list[str]()], [True]
    for item in function.body:
        if isinstance(item, Label):
            names.append(item.name)
            targets.append([])
            falls.append(True)
        elif falls[-1]:
            targets[-1] += _targets(function, item)
            falls[-1] = item.guard is not None or item.op not in (*_LEAVES, "bra", "brx")
    places = {name: number for number, name in enumerate(names)}
    edges = []
    for number, (to, falls_through) in enumerate(zip(targets, falls, strict=True)):
        after = {places[name] for name in to}
        if falls_through and number + 1 < len(names):
            after.add(number + 1)
        edges.append(sorted(after))
    return names, edges


def _targets(function: Function, i: Instruction) -> list[str]:
    symbols = [operand.name for operand in i.operands if isinstance(operand, Sym)]
    if i.op == "brx":
        return [label for name in symbols for label in function.tables.get(name, [])]
    return symbols if i.op == "bra" else []


def _dominators(edges: list[list[int]]) -> list[set[int]]:
    """Of each piece, those that every way to it from the first one passes, itself too."""
    found = [set(range(len(edges))) for _ in edges]
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for block, after in enumerate(edges):
            for other in after:
                kept = found[other] & (found[block] | {other})
                if kept != found[other]:
                    found[other], changed = kept, True
    return found


def _body(head: int, tail: int, before: list[list[int]]) -> set[int]:
    """The pieces from which the tail is reached without passing the head."""
    body, waiting = {head}, [tail]
    while waiting:
        block = waiting.pop()
        if block not in body:
            body.add(block)
            waiting += before[block]
    return body
