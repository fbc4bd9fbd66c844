"""Rollout groups -> optimiser updates: the second half of a step."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.profiler import record_function

from r1lab.config import GRPOConfig
from r1lab.grpo.batch import BatchTotals, build_batches, has_gradient
from r1lab.grpo.logps import completion_logps, shares_prompts, unwrap
from r1lab.grpo.loss import combine_metrics, policy_loss
from r1lab.grpo.mismatch import Mismatch, importance_weights
from r1lab.model import count_recorded_load, has_mtp, num_moe_layers, update_routing_bias
from r1lab.parallel.spread import SpreadPolicy
from r1lab.types import LossOutput, RolloutGroup, TrainBatch

BY_TOKEN = ("kl", "entropy", "mtp/loss", "mtp/acceptance")
"""Metrics that are means over tokens under every loss."""


@dataclass(slots=True)
class Minibatch:
    """The rows of one optimiser update on this process, in micro-batches that fit in memory."""

    batches: list[TrainBatch]
    """As many on every process, of which the last ones may be empty: every pass is an exchange with the others."""
    skipped: list[TrainBatch]
    """Rows without gradient (advantage 0, or no trained token), whose tokens still count for the experts' load; also
    filled up with empty ones."""
    recorded: list[torch.Tensor]
    """The experts [tokens, MoE layers, K] that such rows had in the rollout, which saves the pass to find out: of all
    tokens but each row's last, which the rollout does not feed."""
    totals: BatchTotals
    """Over all processes."""


@dataclass(slots=True)
class PolicyUpdater:
    """Turns groups into updates of the policy."""

    config: GRPOConfig
    accelerator: Accelerator
    model: nn.Module
    """The prepared `LogpsModel`."""
    spread: SpreadPolicy
    """Its `trained` is the bare policy inside `model`."""
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    pad_token_id: int
    ref_model: nn.Module | None = None

    @property
    def policy(self) -> nn.Module:
        """The bare policy inside `model`."""
        return self.spread.trained

    def update(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """`num_iterations` passes of `steps_per_generation` updates over this process's groups.

        Returns metrics over all processes. An update whose loss or gradient is not finite on any process is skipped
        on all of them and counted in `skipped_updates`.
        """
        with record_function("r1lab/batches"):
            minibatches = [self._build(part) for part in _split(groups, self.config.steps_per_generation)]
        num_updates = self.config.num_iterations * len(minibatches)
        with record_function("r1lab/old and ref logps"):
            for minibatch in minibatches:
                self._add_logps(minibatch, needs_old=num_updates > 1)
        results = [
            self._update_once(minibatch, is_first=iteration == 0 and index == 0)
            for iteration in range(self.config.num_iterations)
            for index, minibatch in enumerate(minibatches)
        ]
        names = dict.fromkeys(name for result in results for name in result)
        metrics = {name: _finite_mean([result[name] for result in results if name in result]) for name in names}
        metrics["skipped_updates"] = sum(result["skipped_updates"] for result in results)
        return metrics

    def _build(self, groups: Sequence[RolloutGroup]) -> Minibatch:
        limits = {"pad_token_id": self.pad_token_id, "max_tokens_per_batch": self.config.max_tokens_per_batch,
                  "share_prompts": shares_prompts(self.policy),
                  "replay_routing": self.config.router_replay}  # fmt: skip
        skip, mask_truncated = self.config.beta == 0, self.config.mask_truncated_completions
        batches, own = build_batches(
            groups, **limits, skip_zero_advantage=skip, mask_truncated_completions=mask_truncated
        )
        skipped, recorded = [], []
        if _counts_idle_load(self.policy, self.config):
            idle = [
                RolloutGroup(group.prompt, [r for r in group.rollouts if not has_gradient(r, mask_truncated)])
                for group in groups
            ]
            if reads_recorded_load(self.policy, self.config):
                idle, recorded = _take_recorded(idle)
            skipped = build_batches(idle, **limits, skip_zero_advantage=False)[0]
        counts = gather_object([(own.num_tokens, own.num_rows, len(batches), len(skipped))])
        num_tokens, num_rows, num_batches, num_skipped = zip(*counts)
        return Minibatch(
            self._fill_up(batches, max(1, *num_batches)),
            self._fill_up(skipped, max(num_skipped)),
            recorded,
            BatchTotals(sum(num_tokens), sum(num_rows)),
        )

    def _fill_up(self, batches: list[TrainBatch], count: int) -> list[TrainBatch]:
        missing = count - len(batches)
        return [batch.to(self.accelerator.device) for batch in batches + [_empty_batch(self.pad_token_id)] * missing]

    @torch.no_grad()
    def _add_logps(self, minibatch: Minibatch, needs_old: bool) -> None:
        """Records the logps of the policy before this phase, where later updates need them, and the reference's.

        With a single update the ratio is 1 by definition, and no separate pass is made.
        """
        whole = self.spread.whole
        # Not in training mode: these passes must not count for the experts' load.
        whole.eval()
        for batch in minibatch.batches:
            if needs_old:
                batch.old_logps, entropy, *_ = completion_logps(whole, batch, self.config.temperature)
                _keep_on_rollouts(batch, batch.old_logps, entropy)
            if self.ref_model is not None:
                # It routes for itself: the KL is to the distribution that the reference is, with its own experts.
                routed_freely = replace(batch, routing=None)
                batch.ref_logps = completion_logps(self.ref_model, routed_freely, self.config.temperature)[0]

    def _update_once(self, minibatch: Minibatch, is_first: bool) -> dict[str, float]:
        outputs, mismatch, batches = [], Mismatch(), minibatch.batches
        # Before the step, so that every row's load is that of the same weights; and before the passes with a backward,
        # after which FSDP lets go of the weights that it has brought together.
        with record_function("r1lab/experts' load of idle rows"):
            self._count_load(minibatch)
        for index, batch in enumerate(batches):
            self._set_mode(batch)
            # DDP reduces gradients in the last backward pass; FSDP in each, as whole ones would not fit.
            is_reduced = index == len(batches) - 1 or self.accelerator.is_fsdp2
            with nullcontext() if is_reduced else self.accelerator.no_sync(self.model):
                with record_function("r1lab/forward"):
                    logps, entropy, *extras = completion_logps(self.model, batch, self.config.temperature)
                    flips = None if batch.routing is None else extras.pop()
                    weights = self._rollout_weights(batch, logps)
                    output = self._loss(batch, logps, entropy, minibatch.totals, weights)
                    draft_loss = self._draft_loss(batch, extras, minibatch.totals, output.metrics)
                with record_function("r1lab/backward"):
                    self.accelerator.backward(output.loss + draft_loss)
            if batch.old_logps is None:
                _keep_on_rollouts(batch, logps, entropy)
            outputs.append(output)
            if is_first:
                mismatch.add(logps, batch.rollout_logps, batch.completion_mask, weights, flips)
        metrics = self._gather_metrics(batches, outputs)
        metrics |= mismatch.metrics() if is_first else {}
        with record_function("r1lab/optimizer"):
            metrics |= self._step(is_finite=math.isfinite(metrics["loss"]))
        speed = 0.0 if metrics["skipped_updates"] else self.config.routing_bias_speed
        return metrics | update_routing_bias(self.policy, speed)

    def _rollout_weights(self, batch: TrainBatch, logps: torch.Tensor) -> torch.Tensor | None:
        """Corrects for the engine that sampled; None where that was the policy itself."""
        config = self.config
        if not (config.use_vllm and config.vllm_importance_sampling_correction):
            return None
        return importance_weights(
            logps if batch.old_logps is None else batch.old_logps,
            batch.rollout_logps,
            batch.completion_mask,
            mode=config.vllm_importance_sampling_mode,
            clip_min=config.vllm_importance_sampling_clip_min,
            clip_max=config.vllm_importance_sampling_clip_max,
        )

    def _loss(
        self,
        batch: TrainBatch,
        logps: torch.Tensor,
        entropy: torch.Tensor,
        totals: BatchTotals,
        weights: torch.Tensor | None,
    ) -> LossOutput:
        # Gradients are averaged over processes, so each divides by its share of the totals.
        world_size = self.accelerator.num_processes
        return policy_loss(
            logps,
            batch.old_logps,
            batch.advantages,
            batch.completion_mask,
            ref_logps=batch.ref_logps,
            loss_type=self.config.loss_type,
            epsilon=self.config.epsilon,
            epsilon_high=self.config.epsilon_high,
            beta=self.config.beta,
            max_completion_length=self.config.max_completion_length,
            num_items_in_batch=totals.num_tokens / world_size,
            num_rows=totals.num_rows / world_size,
            entropy=entropy,
            rollout_weights=weights,
        )

    def _draft_loss(self, batch: TrainBatch, drafts: list[torch.Tensor], totals: BatchTotals, metrics: dict):
        """The multi-token-prediction module's part of the loss, a mean over all trained tokens; adds its metrics."""
        if not drafts:
            return 0.0
        logps, acceptance = drafts
        count = max(1, int(batch.completion_mask[:, 1:].sum()))
        metrics |= {"mtp/loss": -logps.sum().item() / count, "mtp/acceptance": acceptance.sum().item() / count}
        if not self.config.mtp_loss_weight:
            return 0.0
        return -self.config.mtp_loss_weight * logps.sum() * self.accelerator.num_processes / max(1, totals.num_tokens)

    def _gather_metrics(self, batches: list[TrainBatch], outputs: list[LossOutput]) -> dict[str, float]:
        sizes = [(int(batch.completion_mask.sum()), int(batch.completion_mask.any(1).sum())) for batch in batches]
        parts = gather_object([(output.metrics, *size) for output, size in zip(outputs, sizes, strict=True)])
        gathered = [LossOutput(None, metrics) for metrics, _, _ in parts]
        combined = combine_metrics(gathered, [tokens for _, tokens, _ in parts])
        if self.config.loss_type == "gspo":  # its ratios are one a row; KL and entropy stay one a token
            by_row = combine_metrics(gathered, [rows for _, _, rows in parts])
            combined |= {name: value for name, value in by_row.items() if name not in BY_TOKEN}
        losses = gather_object([sum(output.loss.item() for output in outputs)])
        return {"loss": sum(losses) / len(losses), **combined}

    def _step(self, is_finite: bool) -> dict[str, float]:
        limit = self.config.max_grad_norm or math.inf
        draft = list(self.policy.mtp.parameters()) if has_mtp(self.policy) else []
        known = {id(parameter) for parameter in draft}
        own = [parameter for parameter in self.model.parameters() if id(parameter) not in known]
        # Apart, so that the module's gradient does not shorten the policy's step.
        norm = float(self.spread.clip_grad_norm_(own, limit))
        draft_norm = float(self.spread.clip_grad_norm_(draft, limit)) if draft else 0.0
        is_finite = all(gather_object([is_finite and math.isfinite(norm) and math.isfinite(draft_norm)]))
        learning_rate = self.scheduler.get_last_lr()[0]
        if is_finite:
            self.optimizer.step()
            self.scheduler.step()
        self.optimizer.zero_grad()
        return {"grad_norm": norm, "learning_rate": learning_rate, "skipped_updates": 0.0 if is_finite else 1.0}

    @torch.no_grad()
    def _count_load(self, minibatch: Minibatch) -> None:
        count_recorded_load(self.policy, minibatch.recorded)
        model = unwrap(self.model)  # DDP would prepare for a backward
        for batch in minibatch.skipped:
            self._set_mode(batch)
            model(
                batch.input_ids, batch.attention_mask, None,
                shared_lengths=batch.shared_lengths, routing=batch.routing,
            )  # fmt: skip

    def _set_mode(self, batch: TrainBatch) -> None:
        """Training mode counts for the experts' load, where an empty batch's tokens, which are nobody's, do not."""
        self.model.train(bool(batch.rollouts))
        if has_mtp(self.policy) and not self.config.mtp_loss_weight:
            self.policy.mtp.eval()


def _split(groups: Sequence[RolloutGroup], parts: int) -> Iterator[Sequence[RolloutGroup]]:
    """`parts` runs of whole groups, as even as possible."""
    bounds = [round(i * len(groups) / parts) for i in range(parts + 1)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        yield groups[start:end]


def _keep_on_rollouts(batch: TrainBatch, logps: torch.Tensor, entropy: torch.Tensor) -> None:
    """Leaves the logps and entropies [B, T - 1] of the policy before its update on the rollouts that they are of."""
    columns = (one.detach().cpu() for one in (batch.completion_mask, logps, entropy))
    for rollout, mask, row_logps, row_entropy in zip(batch.rollouts, *columns, strict=False):
        if mask.any():
            rollout.train_logps, rollout.entropies = row_logps[mask].tolist(), row_entropy[mask].tolist()


def _empty_batch(pad_token_id: int) -> TrainBatch:
    """One row with nothing to train: its loss is 0 and touches every parameter."""
    ids = torch.full((1, 2), pad_token_id, dtype=torch.int64)
    none = torch.zeros(1, 1)
    return TrainBatch(ids, torch.ones_like(ids), none.bool(), none[:, 0], none)


def reads_recorded_load(policy: nn.Module, config: GRPOConfig) -> bool:
    """Whether rollouts that record their routing save a pass over the rows without gradient. Not where the
    multi-token-prediction module trains: they say nothing of its experts."""
    return _counts_idle_load(policy, config) and not config.mtp_loss_weight


def _counts_idle_load(policy: nn.Module, config: GRPOConfig) -> bool:
    """Whether the experts' load of rows without gradient matters, and no training pass counts it anyway."""
    return config.beta == 0 and config.routing_bias_speed > 0 and _has_routed_experts(policy)


def _take_recorded(groups: list[RolloutGroup]) -> tuple[list[RolloutGroup], list[torch.Tensor]]:
    """-> (what the groups hold without recorded routing, the routing of the others)."""
    rest, recorded = [], []
    for group in groups:
        rest.append(RolloutGroup(group.prompt, [r for r in group.rollouts if r.completion.routing is None]))
        for completion in (r.completion for r in group.rollouts if r.completion.routing is not None):
            recorded += [completion.prompt_routing, completion.routing]
    return rest, recorded


def _has_routed_experts(policy: nn.Module) -> bool:
    return callable(getattr(policy, "hidden_states", None)) and num_moe_layers(policy.config) > 0


def _finite_mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
