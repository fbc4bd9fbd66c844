"""Rollouts of another engine: how far its log-probabilities are from training's, and the weights that correct for it.

An engine with kernels and a precision of its own (vLLM) samples from mu, which is near the policy pi but not equal to
it. Each term of the loss is then weighed by pi / mu of what was sampled, bounded to keep the variance finite: truncated
importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"), or
masked (Liu et al. 2025, "When speed kills stability"). TRL's arithmetic and names.
"""

import math
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object

from r1lab.config import IMPORTANCE_SAMPLING_MODES


@torch.no_grad()
def importance_weights(
    logps: torch.Tensor,
    rollout_logps: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    mode: str = "sequence_mask",
    clip_min: float | None = None,
    clip_max: float | None = 3.0,
) -> torch.Tensor:
    """Weights pi / mu: [B, T] in the token modes, [B, 1], of the product over a row's tokens, in the sequence modes.

    logps: training's, before the update; rollout_logps: the engine's; [B, T] nats, read where completion_mask [B, T] is
    true. A token whose logp the engine did not give (NaN) counts as equal. Weights outside [clip_min, clip_max] are
    moved to the bound (`*_truncate`) or to 0 (`*_mask`); None is no bound.

    Raises ValueError for an unknown mode.
    """
    if mode not in IMPORTANCE_SAMPLING_MODES:
        raise ValueError(f"mode={mode!r}: use one of {', '.join(IMPORTANCE_SAMPLING_MODES)}")
    granularity, bound = mode.split("_")
    differences = torch.where(completion_mask, logps - rollout_logps, 0.0).nan_to_num(nan=0.0)
    if granularity == "sequence":
        differences = differences.sum(1, keepdim=True)
    ratio = differences.exp()
    low, high = -math.inf if clip_min is None else clip_min, math.inf if clip_max is None else clip_max
    if bound == "truncate":
        return ratio.clamp(low, high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


@dataclass(slots=True)
class Mismatch:
    """Collects, over micro-batches, what sampling and training say about the same tokens under the same weights."""

    differences: list[torch.Tensor] = field(default_factory=list)
    """|training's logp - the rollout's| of the trained tokens, nats."""
    ratios: list[torch.Tensor] = field(default_factory=list)
    """Importance weights, bounded: one a trained token or row."""
    flips: list[torch.Tensor] = field(default_factory=list)
    """Share of the MoE layers that would have chosen other experts than the rollout did, one a trained token."""

    def add(
        self,
        logps: torch.Tensor,
        rollout_logps: torch.Tensor,
        completion_mask: torch.Tensor,
        weights: torch.Tensor | None = None,
        flips: torch.Tensor | None = None,
    ) -> None:
        """logps, rollout_logps, completion_mask: [B, T]; weights: `importance_weights`, None without correction; flips
        [B, T]: of `LogpsModel`, None without recorded routing."""
        known = completion_mask & ~rollout_logps.isnan()
        self.differences.append((logps.detach() - rollout_logps).abs()[known])
        if weights is not None:
            counted = (
                completion_mask if weights.shape == completion_mask.shape else completion_mask.any(1, keepdim=True)
            )
            self.ratios.append(weights[counted])
        if flips is not None:
            self.flips.append(flips[completion_mask])

    def metrics(self) -> dict[str, float]:
        """Over all processes, which must call it together: `sampling/sampling_logp_difference/mean` and `/max`; with
        weights, and where a token was trained, `sampling/importance_sampling_ratio/min`, `/mean` and `/max`; with
        flips, likewise, `sampling/routing_flips`."""
        own = tuple(_summary(parts) for parts in (self.differences, self.ratios, self.flips))
        differences, ratios, flips = zip(*gather_object([own]))
        metrics = {
            "sampling/sampling_logp_difference/mean": _mean(differences),
            "sampling/sampling_logp_difference/max": max(
                (one.highest for one in differences if one.count), default=0.0
            ),
        }
        known = [one for one in ratios if one.count]
        if known:
            metrics |= {
                "sampling/importance_sampling_ratio/min": min(one.lowest for one in known),
                "sampling/importance_sampling_ratio/mean": _mean(known),
                "sampling/importance_sampling_ratio/max": max(one.highest for one in known),
            }
        if any(one.count for one in flips):
            metrics["sampling/routing_flips"] = _mean(flips)
        return metrics


@dataclass(frozen=True, slots=True)
class _Summary:
    total: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    count: int = 0


def _summary(parts: list[torch.Tensor]) -> _Summary:
    values = torch.cat(parts) if parts else torch.zeros(0)
    if not len(values):
        return _Summary()
    return _Summary(values.sum().item(), values.min().item(), values.max().item(), len(values))


def _mean(parts: list[_Summary]) -> float:
    return sum(one.total for one in parts) / max(1, sum(one.count for one in parts))
