"""The simulation of clusters: on links that are all alike, the algorithms' known times."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import cluster

from gpuconv import sim

LATENCY, RATE = 2e-6, 1e9
ALIKE = cluster.Cluster("alike", 1, (LATENCY, RATE), (LATENCY, RATE))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("nbytes", [1000, 4 << 20])
def test_a_ring_takes_what_the_formula_says(ranks, nbytes):
    expected = 2 * (ranks - 1) * (LATENCY + nbytes / ranks / RATE)
    assert cluster.ring(ALIKE, ranks, nbytes) == pytest.approx(expected)


def test_a_tree_of_two_is_a_message_up_and_one_down():
    expected = 2 * (LATENCY + 1000 / RATE)
    assert cluster.tree(ALIKE, 2, 1000) == pytest.approx(expected)


def test_a_tree_of_seven_sends_two_messages_at_each_of_two_levels():
    expected = 2 * 2 * 2 * (LATENCY + 1000 / RATE)  # each parent takes its children in turn
    assert cluster.tree(ALIKE, 7, 1000) == pytest.approx(expected)


def test_sums_hide_behind_backward_but_for_the_last():
    step = cluster.Step(seconds=1.0, backward=0.9, ready=((0.3, 1000), (0.9, 1000)))
    one = cluster.ring(ALIKE, 4, 1000)
    assert cluster.trained(step, ALIKE, 4, "ring")[0] == pytest.approx(1.0 + one)
    assert cluster.trained(step, ALIKE, 4, "ring", overlap=False)[0] == pytest.approx(1.0 + 2 * one)


@pytest.mark.skipif(sim.available() != "", reason="steps are counted on the simulator's arrays")
@pytest.mark.parametrize(
    "networks", [cluster.NETWORKS[:1], pytest.param(cluster.NETWORKS, marks=pytest.mark.slow)]
)
def test_the_documentation_has_these_tables(networks):
    """`python benchmarks/cluster.py --docs` writes them anew."""
    page = cluster.PAGE.read_text()
    for name, text in (
        ("cluster", cluster.times(networks, cluster.SHOWN)),
        ("passing", cluster.passing_ranks(networks)),
    ):
        written = page.split(f"<!-- {name} begin -->\n")[1].split(f"\n<!-- {name} end -->")[0]
        others = tuple(f"| {network}" for network, _ in cluster.NETWORKS[len(networks) :])
        assert [row for row in written.split("\n") if not row.startswith(others)] == text.split(
            "\n"
        )
