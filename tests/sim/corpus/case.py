"""One kernel of the corpus: a text with a hole, what is right in it and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HEAD = 'extern "C" __global__ void k(float* y, const float* x, int* z, unsigned char* c, int n) {\n'


@dataclass(frozen=True)
class Case:
    """A kernel that is correct with `right` in the hole `@@` and has one fault with `wrong`.

    kind: what must be found, at lines that end in `//!`, both of them where there are two parties;
    several kinds are separated by blanks. argument: that the finding names. before: text before the
    kernel. shared: bytes of dynamic shared memory. args: the arguments, made from sim, if others
    than 1024 floats of zeros, 1024 floats 0, 1, 2, ..., 1024 integers of zeros, 1024 bytes of zeros
    and 1000. headers: it includes headers of CUDA that need those of CCCL.
    """

    kind: str
    body: str
    right: str
    wrong: str
    grid: Any = 1
    block: Any = 64
    argument: int | None = None
    before: str = ""
    shared: int = 0
    args: Callable[[Any], tuple] | None = None
    timeout: float = 20.0
    headers: bool = False

    def source(self, wrong: bool) -> str:
        text = HEAD + self.body.strip("\n") + "\n}\n"
        return self.before + text.replace("@@", self.wrong if wrong else self.right)

    def lines(self) -> set[int]:
        """Numbers of the lines at which findings are expected."""
        text = self.source(True).splitlines()
        return {n for n, line in enumerate(text, 1) if line.rstrip().endswith("//!")}
