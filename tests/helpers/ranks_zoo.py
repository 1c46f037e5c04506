"""Two steps of an architecture, on several ranks or on one: `ranks_zoo.py FOLDER NAME DTYPE`.

Each rank leaves FOLDER/RANK.json: the two losses, and a checksum of the weights.
"""

import json
import pathlib
import sys
import zlib

import numpy as np
from small_models import MODELS

from gpuconv import distributed, models, nn, optim
from gpuconv.train import Trainer

CLASSES, BATCH = 5, 5


def two_steps(name, communicator=None, dtype=np.float32):
    """(losses, checksum of parameters and buffers)."""
    model = models.MODELS[name](num_classes=CLASSES, seed=1, **MODELS[name]).to("cpu", dtype)
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(2):
        x = rng.standard_normal((BATCH, *model.input_shape)).astype(dtype)
        batches.append((x, rng.integers(0, CLASSES, BATCH)))
    loss = nn.CrossEntropyLoss()
    trainer = Trainer(
        model, nn.AuxiliaryLoss(loss) if MODELS[name].get("aux") else loss,
        optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), progress=False, log_batches=1,
        communicator=communicator, sync_batchnorm=True,
    )  # fmt: skip
    trainer.fit(batches)
    means = [record["loss"] for record in trainer.history.records if "batch" in record]
    checksum = 0
    for array in model.state_dict().values():
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return [means[0], 2 * means[1] - means[0]], checksum


if __name__ == "__main__":
    ranks = distributed.init()
    folder, name, dtype = sys.argv[1:]
    path = pathlib.Path(folder) / f"{ranks.rank}.json"
    path.write_text(json.dumps(two_steps(name, ranks, dtype)))
