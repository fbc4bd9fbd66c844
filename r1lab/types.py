"""One type per arrow of the data flow.

    Prompt -> Completion -> Rollout (+ rewards) -> RolloutGroup (+ advantages) -> TrainBatch -> LossOutput

Every stage of r1lab reads the type to its left and makes the one to its right; `rollout` and `grpo` never import
each other, they meet here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

Gather = Callable[[list], list]
"""Concatenates a list over all processes, in the order of their ranks: `accelerate.utils.gather_object`."""

FinishReason = Literal["stop", "length"]


@dataclass(slots=True)
class Prompt:
    """A problem as the policy reads it."""

    text: str | list[dict]
    """What reward functions receive as `prompt`: plain text, or chat messages."""
    token_ids: list[int]
    """The tokens the policy continues from."""
    columns: dict[str, Any] = field(default_factory=dict)
    """The dataset row's other columns; reward functions receive them by keyword."""


@dataclass(slots=True)
class Completion:
    """What the policy wrote for one prompt."""

    token_ids: list[int]
    """Sampled tokens, the end-of-sequence token included when it was sampled."""
    logps: list[float]
    """Log-probability of each token under the policy that sampled it, at the sampling temperature and before
    top-k / top-p, so that it compares with the training forward. Nats; same length as `token_ids`."""
    finish_reason: FinishReason
    """"stop": the end-of-sequence token was sampled; "length": cut at `max_tokens`."""
    routing: torch.Tensor | None = field(default=None, repr=False, compare=False)
    """int16 [len(token_ids), MoE layers, K]: the experts that each layer chose, best first, for the token that each of
    `token_ids` was predicted from: the prompt's last, then all that was sampled but the last. None: not recorded."""
    prompt_routing: torch.Tensor | None = field(default=None, repr=False, compare=False)
    """int16 [prompt tokens - 1, MoE layers, K]: the same of the prompt's other tokens; one tensor for the whole group.
    """


@dataclass(slots=True)
class Rollout:
    """One completion, judged."""

    completion: Completion
    text: str
    """The completion as text, special tokens left out."""
    rewards: dict[str, float | None] = field(default_factory=dict)
    """One entry per reward function; None = not applicable, left out of the sum."""
    reward: float = float("nan")
    """Weighted sum of `rewards`; NaN when every one of them is None."""
    advantage: float = 0.0
    """Filled in from the group; 0 leaves the policy unchanged."""
    extras: dict[str, Any] = field(default_factory=dict)
    """What reward functions logged beside their number, by column (TRL's `log_extra`): why a reward is what it is."""
    train_logps: list[float] | None = None
    """Log-probability of each token in the training pass, before any update. Nats; None: not trained."""
    entropies: list[float] | None = None
    """Entropy of the distribution that each token was drawn from, of the same pass. Nats; None as above."""


@dataclass(slots=True)
class RolloutGroup:
    """The G = `num_generations` rollouts of one prompt."""

    prompt: Prompt
    rollouts: list[Rollout]


@dataclass(slots=True)
class TrainBatch:
    """A micro-batch: B rows `prompt + completion`, right-padded to T tokens.

    Tensors that speak about sampled tokens have T - 1 columns: column t speaks about token t + 1, predicted from the
    tokens up to t.
    """

    input_ids: torch.Tensor
    """[B, T] int64."""
    attention_mask: torch.Tensor
    """[B, T] int64, 1 on tokens, 0 on padding."""
    completion_mask: torch.Tensor
    """[B, T - 1] bool, True where the token is trained."""
    advantages: torch.Tensor
    """[B] float."""
    rollout_logps: torch.Tensor
    """[B, T - 1] float, what the rollout engine recorded; 0 where `completion_mask` is False."""
    old_logps: torch.Tensor | None = None
    """[B, T - 1] float, the policy's before this optimisation phase; None: taken from the current forward (exact for
    the first update, whose ratio is 1)."""
    ref_logps: torch.Tensor | None = None
    """[B, T - 1] float, the reference policy's; None without a KL term."""
    shared_lengths: torch.Tensor | None = None
    """[B] int64: how many first tokens, its prompt's, a row has in common with the row above it, 0 for none. A policy
    that can computes them once. None: rows are to be computed apart."""
    routing: torch.Tensor | None = None
    """[B, T, MoE layers, K] int16: the experts to compute each token with (`Completion.routing`); -1 where none were
    recorded: on padding, and on a row's last token, which was never fed. None: every layer chooses for itself."""
    rollouts: list[Rollout] = field(default_factory=list)
    """[B], whose rows these are: they keep what the training pass finds."""

    def to(self, device: torch.device) -> "TrainBatch":
        """The same batch with every tensor on `device`."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        moved = {name: one.to(device) if isinstance(one, torch.Tensor) else one for name, one in values.items()}
        return TrainBatch(**moved)


@dataclass(slots=True)
class LossOutput:
    """What a loss returns: a scalar to differentiate, and plain numbers to log."""

    loss: torch.Tensor
    metrics: dict[str, float] = field(default_factory=dict)
