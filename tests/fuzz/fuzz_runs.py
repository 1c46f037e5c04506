"""Histories of runs that are no histories, and the runs resumed on them."""

from __future__ import annotations

import json
import random

from harness import Case
from mutations import damaged, deep_json, mutated
from stage import Stage


def history(stage: Stage, number: int) -> Case:
    """A run whose history.jsonl is changed, and resumed."""
    rng = random.Random(f"history {number}")
    run = rng.choice(sorted(stage.runs))
    path = f"runs/{run}/history.jsonl"
    files = {**stage.runs[run], **stage.digits, **stage.shapes}
    found = files.get(path, b"") or stage.runs["done"]["runs/done/history.jsonl"]
    records = [json.loads(line) for line in found.splitlines()]
    files[path] = _changed(records, rng)
    argv = ["train", "--resume", f"runs/{run}", "--threads", "1"]
    if rng.random() < 0.2:
        argv += ["--epochs", "3"]
    return Case(f"history {number}", files, argv, writes="runs/")


def _changed(records: list, rng: random.Random) -> bytes:
    kind = rng.randrange(8)
    if kind == 0:
        return damaged(b"".join(json.dumps(each).encode() + b"\n" for each in records), rng)
    if kind == 1:
        return deep_json(records[0], rng).encode() + b"\n"
    if kind == 2:
        odd = (
            b"",
            b"\n",
            b"null\n",
            b"[]\n",
            b"{}\n",
            b"\xff\xfe\n",
            b"\0" * 1000,
            b"{\n",
            b"1\n" * 9,
        )
        return rng.choice(odd)
    lines, changed = [], mutated(records * rng.choice((1, 1, 3)), rng)
    for record in changed if isinstance(changed, list) else [changed]:
        text = json.dumps(record, ensure_ascii=rng.random() < 0.5)
        lines.append(text.encode(errors="surrogatepass"))
    ending = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n", b""))
    return ending.join(lines) + rng.choice((b"\n", b""))
