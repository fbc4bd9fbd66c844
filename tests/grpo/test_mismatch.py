"""Importance weights are TRL's, by running TRL's own lines; their place in the loss is in test_loss."""

import inspect
import math
import textwrap
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import trl

from r1lab.config import IMPORTANCE_SAMPLING_MODES
from r1lab.grpo.mismatch import Mismatch, importance_weights

FIRST, LAST = "per_token_logps_diff = (old", "Possible values are"


@cache
def _trl_lines() -> str:
    lines = inspect.getsource(trl.GRPOTrainer._generate_and_score_completions).splitlines()
    first = next(i for i, line in enumerate(lines) if FIRST in line)
    last = next(i for i, line in enumerate(lines) if i > first and LAST in line)
    return textwrap.dedent("\n".join(lines[first : last + 2]))


def trl_weights(logps, rollout_logps, mask, mode, clip_min, clip_max):
    """The part of `GRPOTrainer._generate_and_score_completions` that computes them, as it stands."""
    names = {
        "torch": torch, "math": math, "mask": mask, "old_per_token_logps": logps,
        "sampling_per_token_logps": rollout_logps,
        "self": SimpleNamespace(
            vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_min=clip_min,
            vllm_importance_sampling_clip_max=clip_max,
        ),
    }  # fmt: skip
    exec(_trl_lines(), names)
    return names["vllm_importance_sampling_ratio"]


def random_rows(seed, num_rows=6, length=7, spread=0.6):
    generator = torch.Generator().manual_seed(seed)
    logps = -3 * torch.rand(num_rows, length, generator=generator)
    rollout_logps = logps + spread * torch.randn(num_rows, length, generator=generator)
    mask = torch.arange(length)[None] < torch.randint(0, length + 1, (num_rows, 1), generator=generator)
    return logps, rollout_logps, mask


@pytest.mark.parametrize("mode", IMPORTANCE_SAMPLING_MODES)
@pytest.mark.parametrize("bounds", [(None, 3.0), (0.5, 1.5), (0.8, None)], ids=str)
def test_equals_trl(mode, bounds):
    moved = []
    for seed in range(20):
        logps, rollout_logps, mask = random_rows(seed)
        rollout_logps[0, 0] = torch.nan  # the engine had none
        ours = importance_weights(logps, rollout_logps, mask, mode=mode, clip_min=bounds[0], clip_max=bounds[1])
        theirs = trl_weights(logps, rollout_logps, mask, mode, *bounds)
        assert ours.shape == ((6, 1) if mode.startswith("sequence") else (6, 7))
        torch.testing.assert_close(ours, theirs)
        free = importance_weights(logps, rollout_logps, mask, mode=mode.split("_")[0] + "_mask", clip_max=None)
        moved.append(ours != free)
    assert 0 < torch.cat(moved).float().mean() < 1


def test_by_hand():
    logps = torch.tensor([[-1.0, -2.0, -5.0]], requires_grad=True)
    rollout = torch.tensor([[-1.0 - math.log(2), -2.0 - math.log(4), 0.0]])
    mask = torch.tensor([[True, True, False]])

    def weights(mode, **bounds):
        result = importance_weights(logps, rollout, mask, mode=mode, **bounds)
        assert not result.requires_grad
        return result.flatten().tolist()

    assert weights("token_truncate") == pytest.approx([2, 3, 1])
    assert weights("token_mask") == pytest.approx([2, 0, 1])
    assert weights("sequence_truncate") == pytest.approx([3])
    assert weights("sequence_mask") == pytest.approx([0])
    assert weights("sequence_mask", clip_max=None) == pytest.approx([8])
    assert weights("token_truncate", clip_min=2.5, clip_max=None) == pytest.approx([2.5, 4, 2.5])
    assert weights("token_mask", clip_min=2.5, clip_max=None) == pytest.approx([0, 4, 0])


def test_what_stands_outside_the_mask_is_ignored():
    logps, rollout_logps, mask = random_rows(0)
    expected = importance_weights(logps, rollout_logps, mask)
    logps[~mask], rollout_logps[~mask] = torch.nan, -torch.inf
    assert torch.equal(importance_weights(logps, rollout_logps, mask), expected)


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode='token': use one of token_truncate"):
        importance_weights(*random_rows(0), mode="token")


@pytest.mark.parametrize("mode", IMPORTANCE_SAMPLING_MODES)
def test_metrics_are_over_what_is_trained_in_all_micro_batches(mode):
    batches = [random_rows(seed) for seed in range(3)]
    batches[0][1][0, 0] = torch.nan
    batches[0][2][0, 0] = True
    mismatch, ratios, differences = Mismatch(), [], []
    for logps, rollout_logps, mask in batches:
        weights = importance_weights(logps, rollout_logps, mask, mode=mode)
        mismatch.add(logps, rollout_logps, mask, weights)
        for row in range(len(mask)):
            columns = [t for t in range(mask.shape[1]) if mask[row, t]]
            ratios += [weights[row, t].item() for t in columns] if mode.startswith("token") else []
            ratios += [weights[row, 0].item()] if mode.startswith("sequence") and columns else []
            differences += [abs(logps[row, t] - rollout_logps[row, t]).item() for t in columns]
    known = [value for value in differences if not math.isnan(value)]
    assert len(known) == len(differences) - 1
    expected = {
        "sampling/sampling_logp_difference/mean": sum(known) / len(known),
        "sampling/sampling_logp_difference/max": max(known),
        "sampling/importance_sampling_ratio/min": min(ratios),
        "sampling/importance_sampling_ratio/mean": sum(ratios) / len(ratios),
        "sampling/importance_sampling_ratio/max": max(ratios),
    }
    assert mismatch.metrics() == pytest.approx(expected)


def test_metrics_where_nothing_is_trained():
    logps, rollout_logps, mask = random_rows(0)
    mismatch = Mismatch()
    mismatch.add(logps, rollout_logps, torch.zeros_like(mask), importance_weights(logps, rollout_logps, mask))
    zero = {"sampling/sampling_logp_difference/mean": 0.0, "sampling/sampling_logp_difference/max": 0.0}
    assert mismatch.metrics() == Mismatch().metrics() == zero
