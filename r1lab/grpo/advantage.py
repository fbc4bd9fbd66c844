"""Group-relative advantages (DeepSeekMath, arXiv:2402.03300, section 4.1.2; DeepSeek-R1, equation 3)."""

from typing import Literal

import torch

STD_EPSILON = 1e-4
"""Added to the standard deviation, as TRL does."""

EQUAL_TOLERANCE = 1e-6
"""Rewards of a group that differ by no more than this, relative to max(1, largest |reward|), count as equal."""


def group_advantages(rewards: torch.Tensor, scale: Literal["group", "batch", "none"] = "group") -> torch.Tensor:
    """Rewards [P, G] of G completions for each of P prompts -> advantages [P, G].

    Each reward minus the mean of its group, divided by (standard deviation + 1e-4): the group's own ("group", GRPO),
    that of the whole batch ("batch"), or not divided ("none", Dr. GRPO). The deviation is the unbiased one, as in TRL.
    A NaN reward (no reward function applied) is left out of mean and deviation and gets advantage 0.
    A group of equal rewards gets exactly 0: rounding noise divided by the 1e-4 would survive, and Adam, blind to the
    gradient's scale, would turn it into full steps.

    Raises ValueError for a tensor that is not [P, G] floating point, an infinite reward or an unknown `scale`.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale={scale!r} is unknown; use 'group', 'batch' or 'none'")
    if rewards.dim() != 2 or not rewards.is_floating_point():
        raise ValueError(f"rewards is {rewards.dtype} {list(rewards.shape)}; pass a floating-point [P, G] tensor")
    if torch.isinf(rewards).any():
        raise ValueError("rewards holds an infinite value; a reward function must return finite numbers or None")
    if rewards.numel() == 0:
        return torch.zeros_like(rewards)

    centred = rewards - torch.nanmean(rewards, dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (_nanstd(rewards, dim=1) + STD_EPSILON)
    elif scale == "batch":
        centred = centred / (_nanstd(rewards.reshape(1, -1), dim=1) + STD_EPSILON)
    return torch.where(rewards.isnan() | _equal_groups(rewards), torch.zeros_like(centred), centred)


def _nanstd(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Unbiased standard deviation of the numbers along `dim` (kept, size 1), NaN where there are fewer than two."""
    squares = (values - torch.nanmean(values, dim=dim, keepdim=True)) ** 2
    count = (~values.isnan()).sum(dim=dim, keepdim=True)
    return (torch.nansum(squares, dim=dim, keepdim=True) / (count - 1)).sqrt()


def _equal_groups(rewards: torch.Tensor) -> torch.Tensor:
    """[P, 1] True where all rewards of the group are equal, or at most one of them is a number."""
    highest = rewards.nan_to_num(nan=-torch.inf).amax(dim=1, keepdim=True)
    lowest = rewards.nan_to_num(nan=torch.inf).amin(dim=1, keepdim=True)
    magnitude = rewards.nan_to_num(nan=0.0).abs().amax(dim=1, keepdim=True).clamp(min=1.0)
    return highest - lowest <= EQUAL_TOLERANCE * magnitude
