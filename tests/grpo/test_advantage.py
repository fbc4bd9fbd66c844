import math

import pytest
import torch

from r1lab.grpo.advantage import group_advantages

NAN = math.nan


def trl_rule(rewards: torch.Tensor, scale: str) -> torch.Tensor:
    """TRL 1.16, GRPOTrainer._generate_and_score_completions, `sum_then_normalize`, with TRL's own nanstd."""
    from trl.trainer.utils import nanstd

    flat, size = rewards.flatten(), rewards.shape[1]
    mean = torch.nanmean(rewards, dim=1).repeat_interleave(size)
    std = nanstd(flat).expand_as(flat) if scale == "batch" else nanstd(rewards, dim=1).repeat_interleave(size)
    advantages = flat - mean if scale == "none" else (flat - mean) / (std + 1e-4)
    return torch.nan_to_num(advantages, nan=0.0).view_as(rewards)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equals_trl(scale):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(16, 8, generator=generator)
    rewards[torch.rand(16, 8, generator=generator) < 0.2] = NAN
    rewards[3] = NAN
    torch.testing.assert_close(group_advantages(rewards, scale), trl_rule(rewards, scale))


def test_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, NAN, 2.0]])
    std = math.sqrt(1 / 3)
    high = 0.5 / (std + 1e-4)
    expected = [[high, -high, -high, high], [1 / (1 + 1e-4), -1 / (1 + 1e-4), 0.0, 0.0]]
    torch.testing.assert_close(group_advantages(rewards), torch.tensor(expected))
    assert group_advantages(rewards, "none").tolist() == [[0.5, -0.5, -0.5, 0.5], [1.0, -1.0, 0.0, 0.0]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_noise_around_equal_rewards_is_exactly_zero(scale, dtype):
    # The second group is one value reached by different orders of summation.
    noisy = [0.1 + 0.2, 0.3, 0.2 + 0.1 + 1e-16, 0.3 - 1e-16]
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0], noisy, [1e4 / 3] * 3 + [1e4 / 3 * (1 + 1e-7)]], dtype=dtype)
    if dtype == torch.float64:
        assert rewards[1].std() > 0, "the case must hold noise to be a test"
    advantages = group_advantages(rewards, scale)
    assert (advantages[1:] == 0).all()
    assert (advantages[0] != 0).all()


@pytest.mark.parametrize("row", [[NAN] * 4, [NAN, NAN, 1.0, NAN], [0.0] * 4], ids=str)
def test_groups_without_a_contrast_are_zero(row):
    for scale in ("group", "batch", "none"):
        advantages = group_advantages(torch.tensor([row, [0.0, 1.0, 0.0, 0.0]]), scale)
        assert advantages[0].tolist() == [0.0] * 4
        assert advantages.isfinite().all()


def test_nan_neighbours_do_not_move_the_others():
    with_nan = group_advantages(torch.tensor([[1.0, 0.0, NAN, 0.0]]))
    without = group_advantages(torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(with_nan[0, [0, 1, 3]], without[0])


def test_one_completion_per_group_learns_nothing():
    assert group_advantages(torch.tensor([[1.0], [0.0]]), "batch").tolist() == [[0.0], [0.0]]


def test_the_input_is_left_alone():
    rewards = torch.tensor([[1.0, NAN, 0.0]])
    group_advantages(rewards)
    assert rewards.isnan().tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("rewards", "scale", "message"),
    [
        (torch.zeros(2, 2), "std", "scale='std'"),
        (torch.zeros(4), "group", r"\[4\]"),
        (torch.zeros(2, 2, dtype=torch.int64), "group", "int64"),
        (torch.tensor([[1.0, math.inf]]), "group", "infinite"),
    ],
)
def test_bad_input_says_what_to_do(rewards, scale, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, scale)
