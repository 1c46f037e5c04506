"""Which card of its machine a rank uses: one process a card."""

from __future__ import annotations

import os

from gpuconv.distributed.communicator import Communicator

VISIBLE = "CUDA_VISIBLE_DEVICES"


def split_cards(communicator: Communicator) -> None:
    """Let this rank see one card: of those that ranks of its machine see in common, the one of its
    number among them. Where a launcher gave each rank its own, it keeps that.

    To be called before CUDA is used, which reads this once.
    """
    own = os.uname().nodename, os.environ.get(VISIBLE)
    every = communicator.all_gather(own)
    number, cards = every[: communicator.rank].count(own), own[1]
    if every.count(own) == 1 or cards == "":
        return
    if cards is None:
        os.environ[VISIBLE] = str(number)
    elif number < len(shown := cards.split(",")):
        os.environ[VISIBLE] = shown[number]
