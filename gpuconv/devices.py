"""The names of the devices a model runs on."""

from __future__ import annotations

from gpuconv.errors import unknown

DEVICES = ("cpu", "reference")


def resolve(device: str) -> str:
    """A device's name, "auto" resolved to the fastest there is. ValueError for an unknown one."""
    if device == "auto":
        return "cpu"
    if device not in DEVICES:
        raise unknown("device", device, [*DEVICES, "auto"])
    return device
