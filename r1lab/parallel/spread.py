"""A policy trained in shares: FSDP2's, those of expert parallelism, or both, next to a whole copy on every process.

    spread = spread_policy(policy, accelerator, expert_parallel_size=4)
    model, optimizer = prepare_for_training(accelerator, LogpsModel(spread.trained), build_optimizer)
    ...                                                  # passes through `model`, spread.clip_grad_norm_, optimizer
    spread.gather()                                      # after each update, before anybody samples

Training passes go through the shares. Whatever wants a whole policy (rollouts, evaluation, the reference, checkpoints)
has `spread.whole`, which is as new as the last `gather`. Without FSDP2 and expert parallelism both are the same module.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch import nn

from r1lab.model.moe import DeepseekMoE
from r1lab.parallel.expert_parallel import (
    ParallelExperts,
    build_expert_groups,
    clip_grad_norm_,
    load_full_state_dict,
    parallelize_experts,
)
from r1lab.parallel.expert_weights import full_tensors, own_shares, plain_name

State = dict[str, Any]


class ParallelSettingsError(ValueError):
    """Settings that these processes cannot follow; every process raises it alike, before a run begins."""


@dataclass(slots=True)
class SpreadPolicy:
    """A policy as it samples and as it trains."""

    whole: nn.Module
    """All weights, on every process."""
    trained: nn.Module
    """This process's shares, or `whole` itself."""

    @torch.no_grad()
    def gather(self) -> None:
        """Makes `whole` what `trained` is. Every process must call it, and so for the other methods."""
        if self.trained is self.whole:
            return
        state = self.whole.state_dict()
        for name, tensor in full_tensors(self.trained, self.trained.state_dict()):
            state[name].copy_(tensor)

    def scatter(self) -> None:
        """Makes `trained` what `whole` is, which a checkpoint may have changed."""
        if self.trained is not self.whole:
            load_full_state_dict(self.trained, self.whole.state_dict())

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        """Clips the gradients of some parameters of `trained`; returns their norm over all processes, before."""
        return clip_grad_norm_(self.trained, max_norm, parameters)

    def optimizer_state(self, optimizer: torch.optim.Optimizer, is_kept: bool = True) -> State:
        """`optimizer.state_dict()` as one process without shares would have it; what was in shares is on the CPU.

        is_kept=False: only takes part, and keeps its own shares; one process is enough to save.
        """
        state = optimizer.state_dict()
        if self.trained is self.whole:
            return state
        merged = {index: dict(values) for index, values in state["state"].items()}
        names = [name for name, _ in _named_parameters(self.trained)]
        for kind in _moments(merged):
            moments = {names[index]: values[kind] for index, values in merged.items()}
            for index, (_, tensor) in zip(merged, full_tensors(self.trained, moments), strict=True):
                merged[index][kind] = tensor.cpu() if is_kept else merged[index][kind]
        return state | {"state": merged}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: State) -> None:
        """The inverse of `optimizer_state`, whatever the number of processes was; `optimizer` may be new."""
        if self.trained is not self.whole:
            state = state | {"state": self._shares(state["state"])}
        optimizer.load_state_dict(state)

    def _shares(self, whole: State) -> State:
        names = [name for name, _ in _named_parameters(self.whole)]
        own = list(_named_parameters(self.trained))
        shares = {index: dict(values) for index, values in whole.items()}
        for kind in _moments(whole):
            templates = dict(own[index] for index in whole)
            moments = {names[index]: values[kind] for index, values in whole.items()}
            for index, (_, share) in zip(whole, own_shares(self.trained, templates, moments), strict=True):
                shares[index][kind] = share
        return shares


def _named_parameters(policy: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """In the optimizer's order, with the names of `state_dict`: checkpointed layers have others."""
    for name, parameter in policy.named_parameters():
        yield plain_name(name), parameter


def _moments(state: State) -> list[str]:
    """The kinds of optimizer state that have a parameter's shape, in an order that all processes share."""
    first = next(iter(state.values()), {})
    return [kind for kind, value in first.items() if isinstance(value, torch.Tensor) and value.dim() > 0]


def spread_policy(
    policy: nn.Module, accelerator: Accelerator, expert_parallel_size: int = 1, expert_dispatch_dtype: str = "native"
) -> SpreadPolicy:
    """Spreads a policy as `accelerator` (FSDP2) and `expert_parallel_size` ask for; the policy itself stays whole.

    Every process calls it with the same policy. expert_parallel_size: neighbouring processes that share a set of
    routed experts; 1 = each has all. expert_dispatch_dtype: see `parallelize_experts`.

    Raises:
        ParallelSettingsError: sizes that do not divide, nothing to spread, or a way to shard that is not supported.
    """
    check_processes(accelerator, expert_parallel_size)
    if expert_parallel_size > 1:
        _check_experts(policy, expert_parallel_size)
    elif not accelerator.is_fsdp2:
        return SpreadPolicy(policy, policy)
    trained = copy.deepcopy(policy.to(accelerator.device))
    policy.eval().requires_grad_(False)
    if expert_parallel_size > 1:
        per_node = min(expert_parallel_size, _processes_per_node(accelerator))
        groups = build_expert_groups(expert_parallel_size, ranks_per_node=per_node)
        parallelize_experts(trained, groups, dispatch_dtype=expert_dispatch_dtype)
    return SpreadPolicy(policy, trained)


def prepare_for_training(
    accelerator: Accelerator, model: nn.Module, build_optimizer: Callable[..., torch.optim.Optimizer]
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """(model, optimizer): the model wrapped by accelerate, DDP or FSDP2; build_optimizer takes its parameters.

    `model` holds `SpreadPolicy.trained`. FSDP2 shards each layer that its `_no_split_modules` name apart.
    """
    with _fsdp_of_one_model(accelerator, model):
        model, optimizer = accelerator.prepare(model, build_optimizer(model.parameters()))
    return model, optimizer.optimizer


@contextmanager
def _fsdp_of_one_model(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Lends accelerate a copy of its FSDP settings, into which it writes the model's layers: the next has others."""
    if not accelerator.is_fsdp2:
        yield
        return
    state, general = accelerator.state, accelerator.state.fsdp_plugin
    state.fsdp_plugin = copy.copy(general)
    state.fsdp_plugin.cpu_ram_efficient_loading = False  # it drops weights, and every process has them already
    state.fsdp_plugin.ignored_modules = [module for module in model.modules() if isinstance(module, ParallelExperts)]
    try:
        yield
    finally:
        state.fsdp_plugin = general


def enable_fsdp_on_cpus(accelerator: Accelerator) -> Accelerator:
    """`accelerate launch --use_fsdp` shards on accelerators alone; torch's FSDP2 runs on CPUs too."""
    is_asked_for = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    if is_asked_for and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            accelerator.state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
        # Both, as accelerate does: every new view of its state begins with the partial one.
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    return accelerator


def check_processes(accelerator: Accelerator, expert_parallel_size: int = 1) -> None:
    """Raises ParallelSettingsError for what can be told before a policy is loaded: a way to shard that is not
    supported, or processes that cannot be cut into groups of `expert_parallel_size`."""
    kind, num_processes = accelerator.distributed_type, accelerator.num_processes
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ParallelSettingsError(
            f"distributed_type {kind.value} is not supported; use recipes/accelerate_configs/fsdp2.yaml to shard"
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ParallelSettingsError("fsdp_version 1 is not supported; set fsdp_version: 2")
    option, per_node = f"expert_parallel_size={expert_parallel_size}", _processes_per_node(accelerator)
    if num_processes % expert_parallel_size:
        raise ParallelSettingsError(
            f"{option} does not divide the {num_processes} processes of this job; launch a multiple of "
            f"{expert_parallel_size} (accelerate launch --num_processes), or change it"
        )
    if expert_parallel_size > per_node and expert_parallel_size % per_node:
        raise ParallelSettingsError(
            f"{option} spans nodes of {per_node} processes without filling them; use a multiple of {per_node}"
        )


def _check_experts(policy: nn.Module, expert_parallel_size: int) -> None:
    layers = [module for module in policy.modules() if isinstance(module, DeepseekMoE)]
    option = f"expert_parallel_size={expert_parallel_size}"
    if not layers:
        raise ParallelSettingsError(f"{option}: only DeepSeek-V3 policies have experts to spread; leave it at 1")
    num_experts = layers[0].gate.num_experts
    if num_experts % expert_parallel_size:
        raise ParallelSettingsError(f"{option} does not divide the {num_experts} routed experts; use a divisor of them")


def _processes_per_node(accelerator: Accelerator) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


def exit_together(message: str) -> NoReturn:
    """Ends every process with exit code 1 and one line of the first one's; for what all of them have met alike."""
    state = PartialState()
    if state.is_main_process:
        print(message, file=sys.stderr, flush=True)
    state.wait_for_everyone()  # the launcher ends the others as soon as one has ended
    sys.exit(1)
