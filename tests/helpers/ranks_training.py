"""Train small networks, on several ranks or on one: `python ranks_training.py FOLDER CASE ...`.

Each rank leaves FOLDER/CASE.RANK.npz: the weights, buffers and losses after three steps.
"""

import pathlib
import sys

import numpy as np

from gpuconv import data, distributed, nn, optim
from gpuconv.train import Callback, Trainer

BATCH, IMAGES = 7, 17  # batches of 7, 7 and 3 images: no number of ranks divides them
# fp16's to begin with: some gradient becomes infinite, and at half of it none
SCALE = {"none": 2.0**19, "sync": 2.0**17}


class HighScale(Callback):
    """The first batch overflows, the others do not."""

    def __init__(self, norm):
        self.scale = SCALE[norm]

    def on_fit_begin(self, trainer):
        trainer.scaler.load_state_dict({"scale": self.scale, "good": 0})


class Small(nn.Module):
    """Everything that several ranks make a difference to: batch norm, dropout, a residual."""

    def __init__(self, norm=True, dropout=True):
        super().__init__()
        rng = np.random.default_rng(5)
        self.conv = nn.Conv2d(1, 4, 3, padding=1, rng=rng)
        self.bn = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False, rng=rng)
        self.bn2 = nn.BatchNorm2d(4, affine=False) if norm else nn.Identity()
        self.dropout = nn.Dropout(0.3, seed=3) if dropout else nn.Identity()
        self.unused = nn.Linear(2, 2, rng=rng)
        self.head = nn.Linear(4 * 5 * 6, 3, rng=rng)

    def forward(self, x):
        x = nn.functional.relu(self.bn(self.conv(x)))
        x = nn.functional.relu(x + self.bn2(self.conv2(x)))
        return self.head(self.dropout(x).flatten(1))


def images():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (IMAGES, 1, 5, 6), np.uint8)
    return data.Dataset(x, rng.integers(0, 3, IMAGES), tuple("abc"))


def trainer_of(case, communicator=None, **options):
    """(trainer, batches) of a case: DEVICE-NORM, of float64 on reference, else of float32; with
    -fp16 in that precision.
    """
    device, norm = case.split("-")[:2]
    half = case.endswith("-fp16")
    double = device == "reference" and not half
    model = Small(norm=norm != "none", dropout="plain" not in case).to(
        device, np.float64 if double else None
    )
    if half:
        options |= {"precision": "fp16", "scale_growth": 2, "callbacks": [HighScale(norm)]}
    batches = data.Loader(images(), BATCH, seed=2, augment=data.Shift(1))
    if double:
        batches = [(x.astype(np.float64), labels) for x, labels in batches.batches(0)]
    weight = np.float64([1, 2, 0.5]) if "weighted" in case else None
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=1 if "weighted" in case else -100)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    trainer = Trainer(
        model, loss, optimizer, clip_norm=2.0, average=optim.EMA(model, 0.5), progress=False,
        communicator=communicator, sync_batchnorm=norm == "sync", log_batches=1, **options,
    )  # fmt: skip
    return trainer, batches


def run(case, communicator=None):
    """The state after three steps, and the losses: by name."""
    trainer, batches = trainer_of(case, communicator)
    double = case.startswith("reference") and trainer.scaler is None
    held = batches if double else data.Loader(images(), 6, shuffle=False)
    (last,) = trainer.fit(batches, held)
    found = {name: np.array(a) for name, a in trainer.model.state_dict().items()}
    steps = [record for record in trainer.history.records if "batch" in record]
    names = "loss", "accuracy", "validation_loss", "validation_accuracy"
    found["losses"] = np.array([record["loss"] for record in steps])
    found["last"] = np.array([last[name] for name in names])
    if trainer.scaler is not None:
        found["scale"] = np.array([trainer.scaler.scale, trainer.scaler.skipped])
    found |= {f"average.{name}": np.array(a) for name, a in trainer.average.state_dict().items()}
    return found


def main(folder, *cases):
    communicator = distributed.init()
    for case in cases:
        path = pathlib.Path(folder) / f"{case}.{communicator.rank}.npz"
        np.savez(path, **run(case, communicator))


if __name__ == "__main__":
    main(*sys.argv[1:])
