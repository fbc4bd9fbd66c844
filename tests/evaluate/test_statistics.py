"""Intervals and tests against what theory or enumeration says."""

import itertools
import math

import numpy
import pytest

from r1lab.evaluate import bootstrap_intervals, mcnemar_test, sign_flip_test
from r1lab.evaluate import statistics as statistics_module


def test_the_bootstrap_is_the_exact_one_for_two_problems():
    """Resamples of (0, 1) have means 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    wide = bootstrap_intervals({"x": [0.0, 1.0]}, level=0.95)["x"]
    narrow = bootstrap_intervals({"x": [0.0, 1.0]}, level=0.4)["x"]
    assert wide == (0.0, 1.0) and narrow == (0.5, 0.5)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = numpy.random.default_rng(1)
    covered = 0
    for trial in range(200):
        sample = rng.binomial(1, 0.3, size=120)
        low, high = bootstrap_intervals({"x": sample}, num_resamples=500, seed=trial)["x"]
        covered += low <= 0.3 <= high
    assert 0.89 < covered / 200 < 0.99


def test_the_interval_narrows_with_the_root_of_the_number_of_problems():
    widths = []
    for count in (100, 400):
        low, high = bootstrap_intervals({"x": [0.0, 1.0] * (count // 2)})["x"]
        widths.append(high - low)
        assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(count), rel=0.1)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)


def test_metrics_share_resamples_and_the_seed_decides():
    scores = {"a": [0.0, 1.0, 0.0, 0.5], "b": [1.0, 2.0, 1.0, 1.5]}
    intervals = bootstrap_intervals(scores, seed=3)
    assert intervals["b"] == pytest.approx([bound + 1 for bound in intervals["a"]])
    many = {"x": numpy.random.default_rng(0).random(50)}
    assert bootstrap_intervals(many, seed=3) == bootstrap_intervals(many, seed=3)
    assert bootstrap_intervals(many, seed=3) != bootstrap_intervals(many, seed=4)


def test_chunks_do_not_lose_resamples(monkeypatch):
    monkeypatch.setattr(statistics_module, "_CHUNK", 70)
    low, high = bootstrap_intervals({"x": [0.0, 1.0] * 50})["x"]
    assert high - low == pytest.approx(0.196, rel=0.1)
    assert sum(statistics_module._chunk_sizes(1000, 30)) == 1000


@pytest.mark.parametrize("level", [0, 1, -0.5])
def test_bad_levels(level):
    with pytest.raises(ValueError, match="level="):
        bootstrap_intervals({"x": [1.0, 2.0]}, level=level)


@pytest.mark.parametrize("scores", [{}, {"x": []}])
def test_nothing_to_resample(scores):
    with pytest.raises(ValueError, match="no problems"):
        bootstrap_intervals(scores)


@pytest.mark.parametrize(
    "differences", [[0.5], [0.5, 0.25, -0.125], [1, 1, 1, 1, 1], [0.3, 0, -0.1, 0.2, 0, 0.4], [1, -1]]
)
def test_sign_flips_equal_enumeration(differences):
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(sign * one for sign, one in zip(signs, differences, strict=True))) for signs in flips]
    far = sum(one >= abs(sum(differences)) - 1e-9 for one in sums) / len(sums)
    assert sign_flip_test(differences) == pytest.approx(far)


def test_sampled_sign_flips_agree_with_the_exact_ones(monkeypatch):
    differences = [0.25, 0.5, -0.25, 0.75, 0.1, -0.5, 0.3, 0.2, -0.1, 0.4]
    exact = sign_flip_test(differences)
    monkeypatch.setattr(statistics_module, "MAX_EXACT_FLIPS", 0)
    assert sign_flip_test(differences, num_resamples=40_000) == pytest.approx(exact, abs=0.01)
    assert sign_flip_test([1.0] * 60) == pytest.approx(1 / 10_001)


def test_no_difference_is_no_evidence():
    assert sign_flip_test([0.0] * 20) == 1.0 and sign_flip_test([]) == 1.0
    assert mcnemar_test([True, False], [True, False]) == 1.0


@pytest.mark.parametrize(("gained", "lost", "expected"), [(5, 0, 2 / 32), (0, 5, 2 / 32), (4, 1, 12 / 32), (3, 3, 1.0)])
def test_mcnemar(gained, lost, expected):
    first = [False] * gained + [True] * lost + [True, True, False]
    second = [True] * gained + [False] * lost + [True, True, False]
    assert mcnemar_test(first, second) == pytest.approx(expected)
