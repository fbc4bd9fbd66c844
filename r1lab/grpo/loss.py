"""Policy losses: one objective per token or sequence, then one way to average. TRL's arithmetic, as pure functions.

| loss_type | ratio                  | average                                       | source                         |
|-----------|------------------------|-----------------------------------------------|--------------------------------|
| grpo      | per token, clipped     | mean over rows of each row's token mean       | DeepSeekMath, arXiv:2402.03300 |
| bnpo      | per token, clipped     | mean over the tokens of the (micro-)batch     | TRL                            |
| dr_grpo   | per token, clipped     | sum / (rows * max_completion_length)          | Dr. GRPO, arXiv:2503.20783     |
| dapo      | per token, clipped     | mean over the tokens of the whole batch       | DAPO, arXiv:2503.14476         |
| gspo      | per sequence, clipped  | mean over rows                                | GSPO, arXiv:2507.18071         |
| cispo     | per token, capped and  | mean over the tokens of the whole batch       | MiniMax-M1, arXiv:2506.13585   |
|           | detached, times logp   |                                               |                                |
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from r1lab.types import LossOutput


def policy_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor | None,
    advantages: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    ref_logps: torch.Tensor | None = None,
    loss_type: str = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    max_completion_length: int | None = None,
    num_items_in_batch: float | torch.Tensor | None = None,
    num_rows: float | torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    rollout_weights: torch.Tensor | None = None,
) -> LossOutput:
    """The loss of B rows of T tokens; differentiable in `logps` only.

    logps, old_logps, ref_logps, entropy: [B, T] nats; completion_mask: [B, T], true where the token is trained, and
    whatever stands elsewhere (NaN too) is ignored; advantages: [B], [B, 1] or, per token, [B, T].
    old_logps=None means the policy that sampled is this one: ratio 1, with its gradient.
    epsilon, epsilon_high (default: epsilon) bound the ratio to [1 - epsilon, 1 + epsilon_high]; for cispo epsilon_high
    is itself the cap on the ratio, as in TRL (5.0 is its recommended value).
    beta weighs the k3 estimate of KL(policy || ref), which needs ref_logps.
    rollout_weights, [B, T] or [B, 1], multiply every term but the KL's: `r1lab.grpo.mismatch.importance_weights`, where
    another engine than the policy itself drew the tokens.

    Gradient accumulation: pass to every micro-batch the totals of the whole batch, `num_items_in_batch` (trained
    tokens: bnpo, dapo, cispo) and `num_rows` (grpo, gspo, dr_grpo); the micro-batch losses then *sum* to the loss of
    the whole batch. Left out, this call's own rows are the whole batch. Where gradients are averaged over processes
    (DDP), pass the global totals divided by the number of processes. See `r1lab.grpo.batch.BatchTotals`.

    Metrics are means over this call's tokens (rows for gspo), for `combine_metrics` to join: `clip_ratio/low_mean`,
    `clip_ratio/high_mean`, `clip_ratio/region_mean` (`cispo_clip_ratio` for cispo), `ratio/mean`, `ratio/min`,
    `ratio/max`, `kl` if beta != 0, `entropy` if given.

    Raises ValueError for an unknown loss_type, shapes that do not fit, or a missing ref_logps / max_completion_length.
    """
    objective, aggregate = _lookup(loss_type)
    mask = completion_mask.bool()
    advantages = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
    _check_shapes(logps, old_logps, mask, ref_logps if beta != 0.0 else None, entropy)
    _check_per_row_or_token("advantages", advantages, logps)
    if rollout_weights is not None:
        _check_per_row_or_token("rollout_weights", rollout_weights, logps)
    if beta != 0.0 and ref_logps is None:
        raise ValueError(f"beta={beta} needs ref_logps; pass the reference policy's, or beta=0.0")
    if loss_type == "cispo" and (epsilon if epsilon_high is None else epsilon_high) < 1.0:
        warnings.warn("cispo caps the ratio at epsilon_high itself, here below 1; use epsilon_high=5.0", stacklevel=2)

    # Masked positions become 0 before any arithmetic: 0 * NaN would otherwise reach the sum, and the gradient.
    logps = _zero_outside(mask, logps)
    old_logps = logps.detach() if old_logps is None else _zero_outside(mask, old_logps)
    clip = Clip(epsilon, epsilon if epsilon_high is None else epsilon_high)
    terms = objective(logps, old_logps, advantages, mask, clip)
    metrics = _ratio_metrics(loss_type, terms, mask)

    losses = terms.losses if rollout_weights is None else terms.losses * rollout_weights
    if beta != 0.0:
        kl = kl_to_ref(logps, _zero_outside(mask, ref_logps))
        losses = losses + beta * kl
        metrics["kl"] = _mean(kl, mask)
    if entropy is not None:
        metrics["entropy"] = _mean(entropy, mask)
    scale = Normalisers(
        num_tokens=mask.sum() if num_items_in_batch is None else num_items_in_batch,
        num_rows=mask.shape[0] if num_rows is None else num_rows,
        max_completion_length=max_completion_length,
    )
    return LossOutput(aggregate(losses, mask, scale), _to_floats(metrics))


def kl_to_ref(logps: torch.Tensor, ref_logps: torch.Tensor) -> torch.Tensor:
    """The k3 estimate of KL(policy || ref) per token, never negative (Schulman 2020; DeepSeekMath equation 4)."""
    log_ratio = ref_logps - logps
    return torch.exp(log_ratio) - log_ratio - 1


def combine_metrics(outputs: Sequence[LossOutput], weights: Sequence[float]) -> dict[str, float]:
    """Join the metrics of micro-batches: `*/min` and `*/max` by extremes, all others by weighted mean.

    weights: trained tokens of each micro-batch (rows for gspo). Micro-batches of weight 0 are ignored.
    """
    pairs = [(output.metrics, weight) for output, weight in zip(outputs, weights, strict=True) if weight > 0]
    combined = {}
    for name in dict.fromkeys(name for metrics, _ in pairs for name in metrics):
        known = [(metrics[name], weight) for metrics, weight in pairs if name in metrics]
        values = [value for value, _ in known]
        if name.endswith("/min"):
            combined[name] = min(values)
        elif name.endswith("/max"):
            combined[name] = max(values)
        else:
            combined[name] = sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
    return combined


# Objectives: (logps, old_logps [B, T], advantages [B, 1] or [B, T], mask, clip) -> Terms


@dataclass(frozen=True, slots=True)
class Clip:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Terms:
    """Losses to average and what they say about clipping; [B, T] by token, [B, 1] by sequence."""

    losses: torch.Tensor
    ratio: torch.Tensor
    low_clipped: torch.Tensor
    high_clipped: torch.Tensor


def clipped_tokens(logps, old_logps, advantages, mask, clip: Clip) -> Terms:
    """PPO's clipped surrogate, token by token (DeepSeekMath equation 3)."""
    return _clipped_surrogate(torch.exp(logps - old_logps), advantages, clip)


def clipped_sequences(logps, old_logps, advantages, mask, clip: Clip) -> Terms:
    """The clipped surrogate on the geometric mean of a row's token ratios (GSPO equations 5 and 7)."""
    if advantages.shape[1] != 1:
        raise ValueError(f"gspo has one ratio per row; advantages {list(advantages.shape)} must be [B] or [B, 1]")
    log_ratio = (logps - old_logps).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return _clipped_surrogate(torch.exp(log_ratio), advantages, clip)


def capped_tokens(logps, old_logps, advantages, mask, clip: Clip) -> Terms:
    """REINFORCE weighed by the capped, detached ratio: no token loses its gradient (MiniMax-M1 equation 4)."""
    ratio = torch.exp(logps - old_logps)
    losses = -ratio.clamp(max=clip.high).detach() * advantages * logps
    high = (ratio > clip.high) & (advantages > 0)
    return Terms(losses, ratio, torch.zeros_like(high), high)


def _clipped_surrogate(ratio: torch.Tensor, advantages: torch.Tensor, clip: Clip) -> Terms:
    bounded = ratio.clamp(1 - clip.low, 1 + clip.high)
    losses = -torch.min(ratio * advantages, bounded * advantages)
    low = (ratio < 1 - clip.low) & (advantages < 0)
    high = (ratio > 1 + clip.high) & (advantages > 0)
    return Terms(losses, ratio, low, high)


# Aggregations: (losses [B, T] or [B, 1], mask [B, T], Normalisers) -> scalar


@dataclass(frozen=True, slots=True)
class Normalisers:
    num_tokens: float | torch.Tensor
    num_rows: float | torch.Tensor
    max_completion_length: int | None


def mean_of_row_means(losses, mask, scale: Normalisers) -> torch.Tensor:
    """Every completion weighs the same, whatever its length. A row without trained tokens counts as a row of loss 0."""
    row_means = _zero_outside(mask, losses).sum(1) / mask.sum(1).clamp(min=1)
    return row_means.sum() / _nonzero(scale.num_rows)


def mean_over_tokens(losses, mask, scale: Normalisers) -> torch.Tensor:
    """Every token weighs the same."""
    return _zero_outside(mask, losses).sum() / _nonzero(scale.num_tokens)


def constant_length(losses, mask, scale: Normalisers) -> torch.Tensor:
    """Every token weighs the same, and the same in every batch: the divisor knows no actual length."""
    if not scale.max_completion_length:
        raise ValueError(f"dr_grpo divides by max_completion_length={scale.max_completion_length}; pass a positive one")
    return _zero_outside(mask, losses).sum() / (_nonzero(scale.num_rows) * scale.max_completion_length)


OBJECTIVES: dict[str, Callable[..., Terms]] = {
    "grpo": clipped_tokens,
    "bnpo": clipped_tokens,
    "dr_grpo": clipped_tokens,
    "dapo": clipped_tokens,
    "gspo": clipped_sequences,
    "cispo": capped_tokens,
}
AGGREGATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "grpo": mean_of_row_means,
    "bnpo": mean_over_tokens,
    "dr_grpo": constant_length,
    "dapo": mean_over_tokens,
    "gspo": mean_of_row_means,
    "cispo": mean_over_tokens,
}


def _lookup(loss_type: str) -> tuple[Callable[..., Terms], Callable[..., torch.Tensor]]:
    if loss_type not in OBJECTIVES:
        raise ValueError(f"loss_type={loss_type!r} is unknown; use one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[loss_type], AGGREGATIONS[loss_type]


def _check_shapes(logps, old_logps, mask, ref_logps, entropy) -> None:
    if logps.dim() != 2:
        raise ValueError(f"logps is {list(logps.shape)}; pass [B, T]")
    named = {"completion_mask": mask, "old_logps": old_logps, "ref_logps": ref_logps, "entropy": entropy}
    for name, tensor in named.items():
        if tensor is not None and tensor.shape != logps.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, logps {list(logps.shape)}; they must agree")


def _check_per_row_or_token(name: str, values: torch.Tensor, logps: torch.Tensor) -> None:
    if values.dim() != 2 or values.shape[0] != logps.shape[0] or values.shape[1] not in (1, logps.shape[1]):
        shapes = f"{name} is {list(values.shape)}, logps {list(logps.shape)}"
        raise ValueError(f"{shapes}; pass {name} as [B, 1] or [B, T]")


def _zero_outside(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _nonzero(count: float | torch.Tensor) -> float | torch.Tensor:
    # Not max(count, 1): a DDP share, total / processes, may rightly lie between 0 and 1.
    if isinstance(count, torch.Tensor):
        return torch.where(count > 0, count, torch.ones_like(count))
    return count if count > 0 else 1.0


def _ratio_metrics(loss_type: str, terms: Terms, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    ratio = terms.ratio.detach()
    counted = mask if ratio.shape[1] == mask.shape[1] else mask.any(1, keepdim=True)
    lowest, highest = (
        torch.where(counted, ratio, torch.inf).amin() if counted.any() else torch.ones(()).to(ratio),
        torch.where(counted, ratio, -torch.inf).amax() if counted.any() else torch.ones(()).to(ratio),
    )
    metrics = {"ratio/mean": _mean(ratio, mask), "ratio/min": lowest, "ratio/max": highest}
    if loss_type == "cispo":
        return metrics | {"cispo_clip_ratio": _mean(terms.high_clipped, mask)}
    return metrics | {
        "clip_ratio/low_mean": _mean(terms.low_clipped, mask),
        "clip_ratio/high_mean": _mean(terms.high_clipped, mask),
        "clip_ratio/region_mean": _mean(terms.low_clipped | terms.high_clipped, mask),
    }


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over trained tokens of [B, T], or over all rows of [B, 1]."""
    values = values.detach().float()
    if values.shape[1] != mask.shape[1]:
        return values.sum() / max(values.shape[0], 1)
    return _zero_outside(mask, values).sum() / mask.sum().clamp(min=1)


def _to_floats(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    # One transfer for all of them: each .item() would wait for the device on its own.
    values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))
