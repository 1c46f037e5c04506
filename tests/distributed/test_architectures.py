"""Every architecture takes two steps on two ranks, with one process's losses."""

import json
import math

import pytest
import ranks
import ranks_zoo
from small_models import MODELS

# Of the first loss, and of the one after an update: batch norm over a few values turns roundings
# into other signs of ReLUs.
STEPS = 1e-4, 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_two_steps_on_two_ranks(name, tmp_path):
    ranks.run_ranks(2, ranks_zoo.__file__, tmp_path, name, timeout=600)
    found, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert found == other  # losses and all weights, to the bit
    expected, _ = ranks_zoo.two_steps(name)
    for loss, alone, bound in zip(found[0], expected, STEPS, strict=True):
        assert math.isclose(loss, alone, rel_tol=bound), (found, expected)
