"""The GRPO trainer: one `step()` is sample, score, compare, update.

It knows neither files nor terminals: `r1lab.run` drives it and keeps metrics, traces and checkpoints.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.profiler import record_function
from transformers import get_scheduler

from r1lab.config import GRPOConfig
from r1lab.grpo.collect import Collector, PromptStream, Sampler, is_informative
from r1lab.grpo.logps import LogpsModel
from r1lab.grpo.score import RewardFunction
from r1lab.grpo.update import PolicyUpdater
from r1lab.model import check_replayable, has_mtp
from r1lab.parallel.spread import ParallelSettingsError, prepare_for_training, spread_policy
from r1lab.precision import enable_fp8
from r1lab.types import Prompt, RolloutGroup


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


@dataclass(slots=True)
class StepOutput:
    """What one step leaves behind."""

    metrics: dict[str, float]
    """TRL's names, plus `moe/*`; the same on every process, but for times."""
    groups: list[RolloutGroup]
    """Every group that this process sampled."""


class GRPOTrainer:
    """Group Relative Policy Optimization (DeepSeekMath, arXiv:2402.03300; DeepSeek-R1, section 2.2.1).

    Args:
        policy: the model to train: `PolicyForCausalLM` or any causal LM of transformers. It stays whole on every
            process and is new after each step; with FSDP2 or expert parallelism a copy in shares is what trains.
        sample: draws completions from the policy as it is now; `r1lab.rollout` engines provide it.
        decode: completion tokens -> text without special tokens.
        reward_funcs: TRL's contract; `reward_weights` of the config weighs them.
        prompts: the training prompts, encoded.
        pad_token_id: fills up short rows.
        config: the settings.
        accelerator: the caller's, for 1..N processes.
        rollout_metrics: what the engine has to say about what it sampled since it was last asked.
        on_new_weights: called when the policy's weights have changed, by a step or a resume, for an engine that keeps a
            copy of them.

    Raises:
        ValueError: no prompts, a batch that the processes cannot share evenly, `fp8` or `router_replay` for a policy
            without it, or `mtp_loss_weight` without a multi-token-prediction module.
    """

    def __init__(
        self,
        policy: nn.Module,
        *,
        sample: Sampler,
        decode: Callable[[list[int]], str],
        reward_funcs: Sequence[RewardFunction],
        prompts: Sequence[Prompt],
        pad_token_id: int,
        config: GRPOConfig,
        accelerator: Accelerator,
        rollout_metrics: Callable[[], dict[str, float]] = dict,
        on_new_weights: Callable[[], None] = lambda: None,
    ):
        if not prompts:
            raise ValueError("the training dataset has no prompts; give at least one row")
        if config.num_prompts % accelerator.num_processes:
            raise ParallelSettingsError(
                f"generation_batch_size={config.generation_batch_size} is {config.num_prompts} groups of "
                f"num_generations={config.num_generations}, which {accelerator.num_processes} processes cannot share; "
                f"use a multiple of {config.num_generations * accelerator.num_processes}"
            )
        if config.mtp_loss_weight and not has_mtp(policy):
            raise ValueError(
                f"mtp_loss_weight={config.mtp_loss_weight} needs a policy with its multi-token-prediction module; load "
                "it with_mtp=True, or leave mtp_loss_weight at 0"
            )
        if config.router_replay:
            check_replayable(policy)
        if config.fp8:
            enable_fp8(policy)
        self.config, self.accelerator, self.policy = config, accelerator, policy
        self.rollout_metrics, self.on_new_weights = rollout_metrics, on_new_weights
        self.step_index = 0
        self.num_skipped = 0
        self.num_tokens = 0
        self.collector = Collector(
            config, PromptStream(prompts, config.seed), sample, decode, reward_funcs, gather_object,
            accelerator.process_index, accelerator.num_processes,
        )  # fmt: skip
        self.updater = self._build_updater(pad_token_id)

    def _build_updater(self, pad_token_id: int) -> PolicyUpdater:
        config = self.config
        ref_model = copy.deepcopy(self.policy).eval().requires_grad_(False) if config.beta > 0 else None
        if has_mtp(self.policy):
            self.policy.mtp.requires_grad_(config.mtp_loss_weight > 0)
        self.spread = spread_policy(
            self.policy, self.accelerator, config.expert_parallel_size, config.expert_dispatch_dtype
        )
        build_optimizer = partial(
            torch.optim.AdamW,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        model, optimizer = prepare_for_training(
            self.accelerator, LogpsModel(self.spread.trained, with_drafts=has_mtp(self.policy)), build_optimizer
        )
        scheduler = get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.max_steps * config.num_iterations * config.steps_per_generation,
        )
        if ref_model is not None:
            ref_model.to(self.accelerator.device)
        return PolicyUpdater(
            config, self.accelerator, model, self.spread, optimizer, scheduler, pad_token_id, ref_model
        )

    def step(self) -> StepOutput:
        """Sample, score, compare, update.

        Raises:
            TrainingDiverged: `max_skipped_steps` steps in a row were skipped.
            RewardError: a reward function broke its contract.
        """
        start = time.perf_counter()
        self.policy.eval()
        self.rollout_metrics()  # what happened before this step, in an evaluation, is not its own
        with record_function("r1lab/rollout and rewards"):
            collection = self.collector.collect()
        sampled = time.perf_counter()
        metrics = self._rollout_metrics(collection.fresh) | self._engine_metrics()
        with record_function("r1lab/update"):
            metrics |= self.updater.update(collection.trained)
        with record_function("r1lab/gather weights"):
            self.spread.gather()
        _forget_routing(collection.sampled)
        self.on_new_weights()
        self.step_index += 1
        self._count_skipped(metrics["skipped_updates"])
        self._sync_ref_model()
        num_before, metrics["num_tokens"] = self.num_tokens, self._count_tokens(collection.sampled)
        metrics["num_skipped_steps"] = self.num_skipped
        metrics["time/rollout"] = sampled - start
        metrics["step_time"] = time.perf_counter() - start
        per_process = (self.num_tokens - num_before) / self.accelerator.num_processes
        metrics["time/tokens_per_second_per_process"] = per_process / metrics["step_time"]
        return StepOutput(metrics, collection.sampled)

    def _rollout_metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Means over all processes, under TRL's names."""
        rows = gather_object([(r.rewards, r.reward, len(r.completion.token_ids), r.completion.finish_reason)
                              for group in groups for r in group.rollouts])  # fmt: skip
        informative = gather_object([is_informative(group) for group in groups])
        deviations = gather_object([_deviation([r.reward for r in group.rollouts]) for group in groups])
        metrics = {
            "reward": _mean([reward for _, reward, _, _ in rows]),
            "reward_std": _mean(deviations),
            "frac_reward_zero_std": 1 - _mean(informative),
            "completions/mean_length": _mean([length for _, _, length, _ in rows]),
            "completions/min_length": min(length for _, _, length, _ in rows),
            "completions/max_length": max(length for _, _, length, _ in rows),
            "completions/clipped_ratio": _mean([reason == "length" for _, _, _, reason in rows]),
        }
        for name in dict.fromkeys(name for rewards, _, _, _ in rows for name in rewards):
            values = [rewards[name] for rewards, _, _, _ in rows if rewards[name] is not None]
            metrics[f"rewards/{name}/mean"] = _mean(values)
            metrics[f"rewards/{name}/std"] = _deviation(values)
        return metrics

    def _engine_metrics(self) -> dict[str, float]:
        """Means over the processes that have them."""
        parts = gather_object([self.rollout_metrics()])
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: _mean([part[name] for part in parts if name in part]) for name in names}

    def _count_skipped(self, skipped: float) -> None:
        self.num_skipped = self.num_skipped + 1 if skipped else 0
        if self.num_skipped >= self.config.max_skipped_steps:
            raise TrainingDiverged(
                f"loss or gradient not finite in {self.num_skipped} steps in a row (up to step {self.step_index}); "
                f"resume from the last checkpoint with a lower learning_rate than {self.config.learning_rate}"
            )

    def _count_tokens(self, groups: Sequence[RolloutGroup]) -> int:
        own = sum(
            len(group.prompt.token_ids) + sum(len(r.completion.token_ids) for r in group.rollouts) for group in groups
        )
        self.num_tokens += sum(gather_object([own]))
        return self.num_tokens

    def _sync_ref_model(self) -> None:
        """Moves the reference towards the policy every `ref_model_sync_steps` (TR-DPO, arXiv:2404.09656)."""
        ref_model = self.updater.ref_model
        is_due = self.config.sync_ref_model and self.step_index % self.config.ref_model_sync_steps == 0
        if ref_model is None or not is_due:
            return
        # The whole state, not the parameters alone: the routing bias is a buffer, and chooses the experts.
        state = self.policy.state_dict()
        for name, value in ref_model.state_dict().items():
            if value.is_floating_point():
                value.lerp_(state[name], self.config.ref_model_mixup_alpha)

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-exact resume needs besides the policy's weights, for any number of processes.

        Every process must call it; the main process's is the one to save.
        """
        ref_model = self.updater.ref_model
        return {
            "step": self.step_index,
            "num_skipped": self.num_skipped,
            "num_tokens": self.num_tokens,
            "position": self.collector.stream.position,
            "optimizer": self.spread.optimizer_state(self.updater.optimizer, self.accelerator.is_main_process),
            "scheduler": self.updater.scheduler.state_dict(),
            "ref_model": None if ref_model is None else ref_model.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; the policy's weights are loaded before."""
        self.step_index, self.num_skipped = state["step"], state["num_skipped"]
        self.num_tokens = state["num_tokens"]
        self.collector.stream.position = state["position"]
        self.spread.scatter()
        self.spread.load_optimizer_state(self.updater.optimizer, state["optimizer"])
        self.updater.scheduler.load_state_dict(state["scheduler"])
        if self.updater.ref_model is not None:
            self.updater.ref_model.load_state_dict(state["ref_model"])
        self.on_new_weights()


def _forget_routing(groups: Sequence[RolloutGroup]) -> None:
    """It has been read, can be a kilobyte a token (V3's size), and groups are still to be gathered for their traces."""
    for group in groups:
        for rollout in group.rollouts:
            rollout.completion.routing = rollout.completion.prompt_routing = None


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _deviation(values: Sequence[float]) -> float:
    """Unbiased standard deviation of what is not NaN; 0 for fewer than two values."""
    known = [value for value in values if not math.isnan(value)]
    return torch.tensor(known, dtype=torch.float64).std().item() if len(known) > 1 else 0.0
