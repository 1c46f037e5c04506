"""Data-parallel training on clusters that are not here: a simulation, of estimated GPUs.

    python benchmarks/cluster.py --docs   # the tables, also put into docs/distributed.md
    python benchmarks/cluster.py resnet50 --batch 64 --ranks 8 64

Nothing here is measured. The computation of a step is `benchmarks/launches.py`'s estimate for an
H100; it also says when each parameter's gradient is whole. Gradients are put into the buckets of
gpuconv.distributed, and each bucket is all-reduced after the one before it, beside backward, by a
simulation that follows each message: a message of n bytes over a link takes its latency and n over
its bandwidth; a rank sends one message at a time and receives one at a time. Sums, the messages'
effect on computation, and the host cost nothing.

Ring: each rank adds up one part of a bucket as it goes round, then the parts go round once more.
Tree: chunks go up a binary tree, added up on the way, and down again, in a pipeline.
Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
workstations"; Sanders, Speck and Traeff 2009, "Two-tree algorithms for full bandwidth broadcast,
reduction and scan" (of whose two trees this is one).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import launches
import numpy as np

from gpuconv import models, nn, optim
from gpuconv.arrays import to_device
from gpuconv.distributed.gradients import BUCKET, grouped

NETWORKS = (("lenet", 128), ("resnet50", 128), ("vgg16", 32))  # batches of a rank
RANKS = (2, 4, 8, 16, 64, 256, 1024)
SHOWN = (8, 64, 1024)
PAGE = Path(__file__).parents[1] / "docs" / "distributed.md"
TIMES_HEAD = (
    "| network, images a rank | MB of gradients | ranks | computation, ms | ring, ms | tree, ms "
    "| step, ms | speed-up | without overlap |"
)
TIMES_RULE = "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
CHUNK, MOST_CHUNKS = 64 << 10, 32  # bytes of a bucket's parts on their way through a tree


@dataclass(frozen=True)
class Cluster:
    """Machines of `gpus` GPUs each. Of a link, within a machine and between two: seconds for an
    empty message, bytes a second in each direction.
    """

    name: str
    gpus: int
    within: tuple[float, float]
    between: tuple[float, float]

    def seconds(self, sender: np.ndarray, receiver: np.ndarray, nbytes: float) -> np.ndarray:
        """What a message takes between ranks that are numbered machine by machine."""
        same = sender // self.gpus == receiver // self.gpus
        times = [latency + nbytes / rate for latency, rate in (self.between, self.within)]
        return np.where(same, times[1], times[0])

    def links(self) -> str:
        """What its links are, in words."""
        between, within = (
            f"{1e6 * latency:g} µs, {rate / 1e9:g} GB/s"
            for latency, rate in (self.between, self.within)
        )
        if self.gpus == 1:
            return f"between machines: {between}"
        return f"of a link within a machine: {within}; between machines: {between}"


CLUSTERS = (
    Cluster("NVLink, 8 GPUs a machine, 400 Gbit/s each", 8, (3e-6, 450e9), (10e-6, 50e9)),
    Cluster("25 Gbit/s, 1 GPU a machine", 1, (3e-6, 450e9), (30e-6, 3.125e9)),
)


def ring(cluster: Cluster, ranks: int, nbytes: float) -> float:
    """Seconds of an all-reduce round a ring of all ranks."""
    to = np.arange(ranks)
    message = cluster.seconds(np.roll(to, 1), to, nbytes / ranks)
    have = np.zeros(ranks)  # when each rank can send its next part
    for _ in range(2 * (ranks - 1)):
        # It begins when the sender has what it sends and the receiver's last message is in.
        have = np.maximum(np.roll(have, 1), have) + message
    return float(have.max())


def tree(cluster: Cluster, ranks: int, nbytes: float) -> float:
    """Seconds of an all-reduce up and down a binary tree of all ranks, rank 0 its root."""
    child = np.arange(1, ranks)
    parent = (child - 1) // 2
    chunks = int(min(max(nbytes // CHUNK, 1), MOST_CHUNKS))
    message = cluster.seconds(child, parent, nbytes / chunks)
    second = child % 2 == 0  # a parent's second child: its messages come after the first's
    levels = np.floor(np.log2(child + 1)).astype(int)
    depth = int(levels.max(initial=0))
    whole = np.zeros((chunks, ranks))  # when a rank has a chunk's sum over its subtree
    received = np.zeros(ranks)  # when it has received its last message
    for chunk in range(chunks):
        for level in range(depth, 0, -1):
            for of in (~second, second):
                at = (levels == level) & of
                up = parent[at]
                received[up] = np.maximum(received[up], whole[chunk, child[at]]) + message[at]
                whole[chunk, up] = np.maximum(whole[chunk, up], received[up])
    sent = np.zeros(ranks)  # when a rank has sent its last message
    arrived = np.zeros((chunks, ranks))
    for chunk in range(chunks):
        arrived[chunk, 0] = whole[chunk, 0]
        for level in range(1, depth + 1):
            for of in (~second, second):
                at = (levels == level) & of
                up = parent[at]
                sent[up] = np.maximum(sent[up], arrived[chunk, up]) + message[at]
                arrived[chunk, child[at]] = sent[up]
    return float(arrived.max())


ALGORITHMS: dict[str, Callable[[Cluster, int, float], float]] = {"ring": ring, "tree": tree}


@dataclass(frozen=True)
class Step:
    """A step's estimated computation. seconds: of it all, updates too. ready: of each bucket, when
    its gradients are whole, and its bytes. backward: when backward ends.
    """

    seconds: float
    backward: float
    ready: tuple[tuple[float, int], ...]

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.ready)


@cache
def estimated(name: str, batch: int) -> Step:
    """A training step of a network of the zoo, by the model of launches.py."""
    model = launches.network(name)
    assert model.input_shape is not None
    noted: dict[int, int] = {}  # a parameter: launches until its gradient is whole
    with launches.noting() as notes:
        criterion, optimizer = nn.AuxiliaryLoss(), None
        model.to("sim").train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = optim.SGD(parameters, lr=0.05, momentum=0.9)
        x = to_device(np.empty((batch, *model.input_shape), np.float32), "sim")
        labels = to_device(np.zeros(batch, np.int64), "sim")
        for _ in range(2):  # the first makes the state
            notes.counted.clear()
            optimizer.zero_grad()
            loss = criterion(model(x), labels)
            loss.backward(ready=lambda p: noted.__setitem__(id(p), len(notes.counted)))
            backward = len(notes.counted)
            optimizer.step()
        ends = np.cumsum([0.0, *map(launches.seconds, notes.counted)])
        ready = []
        for group in grouped(parameters[::-1], BUCKET):
            last = max(noted.get(id(p), backward) for p in group)
            ready.append((float(ends[last]), sum(p.data.nbytes for p in group)))
    return Step(float(ends[-1]), float(ends[backward]), tuple(ready))


def trained(
    step: Step, cluster: Cluster, ranks: int, algorithm: str, overlap: bool = True
) -> tuple[float, float]:
    """(seconds of a step, seconds of its all-reduces) on so many ranks."""
    reduce = ALGORITHMS[algorithm]
    times = {nbytes: reduce(cluster, ranks, nbytes) for nbytes in {n for _, n in step.ready}}
    free = 0.0  # when the last bucket is summed
    for at, nbytes in step.ready:
        free = max(free, at if overlap else step.backward) + times[nbytes]
    update = step.seconds - step.backward
    return max(free, step.backward) + update, sum(times[n] for _, n in step.ready)


def passing(step: Callable[[int], Step], cluster: Cluster, algorithm: str) -> int | None:
    """The first of RANKS on which a step's all-reduces take longer than its computation."""
    for ranks in RANKS:
        one = step(ranks)
        if trained(one, cluster, ranks, algorithm)[1] > one.seconds:
            return ranks
    return None


def times(networks: Sequence[tuple[str, int]], ranks: Sequence[int]) -> str:
    """Markdown: what each network's step takes on each cluster."""
    lines = []
    for cluster in CLUSTERS:
        lines += [f"**{cluster.name}** ({cluster.links()})", "", TIMES_HEAD, TIMES_RULE]
        for name, batch in networks:
            step = estimated(name, batch)
            for count in ranks:
                found = {a: trained(step, cluster, count, a) for a in ALGORITHMS}
                best = min(found, key=lambda a: found[a][0])
                without = trained(step, cluster, count, best, overlap=False)[0]
                figures = [step.seconds, found["ring"][1], found["tree"][1], found[best][0]]
                speeds = [count * step.seconds / each for each in (found[best][0], without)]
                cells = [_short(each) for each in (*(1e3 * f for f in figures), *speeds)]
                first = f"{name}, {batch} | {_short(step.nbytes / 1e6)} | {count}"
                lines.append(f"| {first} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines[:-1])


def passing_ranks(networks: Sequence[tuple[str, int]]) -> str:
    """Markdown: from how many ranks on the all-reduces take longer than the computation."""
    lines = ["| network | images | cluster | ring | tree |", "|---|---|---|---:|---:|"]
    for name, batch in networks:
        for cluster in CLUSTERS:
            cases: dict[str, Callable[[int], Step]] = {
                f"{batch} a rank": lambda ranks, n=name, b=batch: estimated(n, b),  # type: ignore[misc]
                f"{64 * batch:,} in all": lambda ranks, n=name, b=batch: estimated(  # type: ignore[misc]
                    n, max(1, 64 * b // ranks)
                ),
            }
            for images, step in cases.items():
                points = [passing(step, cluster, algorithm) for algorithm in ALGORITHMS]
                cells = " | ".join(str(p) if p else f"over {RANKS[-1]}" for p in points)
                lines.append(f"| {name} | {images} | {cluster.name} | {cells} |")
    return "\n".join(lines)


def _short(number: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{number:.3g}'):,.10g}"


def write_docs(text: str, name: str) -> None:
    """Put `text` between two markers of docs/distributed.md."""
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", choices=models.MODELS)
    parser.add_argument("--batch", type=int, default=128, help="images of each rank")
    parser.add_argument("--ranks", type=int, nargs="+", default=SHOWN)
    parser.add_argument("--docs", action="store_true", help="put the tables into the docs")
    given = parser.parse_args()
    if given.network:
        print(times([(given.network, given.batch)], given.ranks))
        return
    tables = {"cluster": times(NETWORKS, SHOWN), "passing": passing_ranks(NETWORKS)}
    for name, text in tables.items():
        print(text)
        if given.docs:
            write_docs(text, name)


if __name__ == "__main__":
    main()
