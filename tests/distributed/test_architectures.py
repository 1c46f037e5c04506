"""Every architecture takes two steps on two ranks, with one process's losses."""

import json
import math

import pytest
import ranks
import ranks_zoo
from small_models import MODELS

# Of the first loss, and of the one after an update. In float32 batch norm over a few values turns
# roundings into other signs of ReLUs: ResNet-50's second loss is 4% from float64's on one rank too.
BOUNDS = {"float32": (1e-4, 0.1), "float64": (1e-11, 1e-9)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in sorted(MODELS)), ("resnet50", "float64")],
)
def test_two_steps_on_two_ranks(name, dtype, tmp_path):
    ranks.run_ranks(2, ranks_zoo.__file__, tmp_path, name, dtype, timeout=600)
    found, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert found == other  # losses and all weights, to the bit
    expected, _ = ranks_zoo.two_steps(name, dtype=dtype)
    for loss, alone, bound in zip(found[0], expected, BOUNDS[dtype], strict=True):
        assert math.isclose(loss, alone, rel_tol=bound), (found, expected)
