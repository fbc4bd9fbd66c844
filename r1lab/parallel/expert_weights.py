"""The experts' weights when they are spread: gradients, the gradient norm, and whole checkpoints.

A module with spread experts is known by its `placement`, `groups`, `gate_up_shard` [S, 2F, D] and `down_shard`
[S, D, F]; S = slots of this process.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from r1lab.parallel.expert_groups import ExpertGroups
from r1lab.parallel.placement import Placement

WHOLE_NAMES = {"gate_up_shard": "gate_up_proj", "down_shard": "down_proj"}


def expert_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The spread weights: FSDP2's `ignored_params`, or a parameter group of their own for optimizers that do not take
    sharded and plain tensors in one. Empty for a model whose experts are not spread."""
    return {getattr(module, name) for _, module in _spread_modules(model) for name in WHOLE_NAMES}


def _spread_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if all(hasattr(module, shard) for shard in WHOLE_NAMES):
            yield plain_name(name), module


def plain_name(name: str) -> str:
    """A module's or parameter's name as `state_dict` has it, which passes over activation checkpointing's wrappers."""
    return name.replace("_checkpoint_wrapped_module.", "")


def reduce_gradient(grad_S: torch.Tensor, placement: Placement, groups: ExpertGroups) -> torch.Tensor:
    """One backward's gradient of a shard [S, ...] -> the mean over the world, the same on all copies of an expert."""
    grad_S = grad_S / groups.ep_size
    if placement.is_redundant:
        grad_S = _sum_over_copies(grad_S, placement, groups)
    if groups.replica is not None:
        dist.all_reduce(grad_S, group=groups.replica)
        grad_S /= dist.get_world_size(groups.replica)
    return grad_S


def _sum_over_copies(grad_S: torch.Tensor, placement: Placement, groups: ExpertGroups) -> torch.Tensor:
    copied = [expert for expert, slots in enumerate(placement.slots_of_expert) if len(slots) > 1]
    index_of = {expert: index for index, expert in enumerate(copied)}
    own = [(slot, index_of[e]) for slot, e in enumerate(placement.experts_of_rank(groups.ep_rank)) if e in index_of]
    slots, indices = torch.tensor(own, dtype=torch.int64, device=grad_S.device).view(-1, 2).unbind(1)
    total = grad_S.new_zeros(len(copied), *grad_S.shape[1:]).index_add(0, indices, grad_S[slots])
    dist.all_reduce(total, group=groups.expert)
    return grad_S.index_copy(0, slots, total[indices])


@torch.no_grad()
def clip_grad_norm_(
    model: nn.Module, max_norm: float, parameters: Iterable[nn.Parameter] | None = None
) -> torch.Tensor:
    """`torch.nn.utils.clip_grad_norm_` for a model with spread experts, sharded by FSDP2 or not: the norm of the whole
    model's gradient, each expert counted once, the same on every process (the usual one counts other experts on each,
    and the processes' other weights would drift apart). Every process must call it.

    parameters: those of the model that count and are clipped; None: all. Returns the norm before clipping, a scalar.
    """
    chosen = list(model.parameters() if parameters is None else parameters)
    total = grad_norm(model, chosen)
    spread = expert_parameters(model)
    # Apart, since the usual weights may be DTensors, which do not go together with the plain ones.
    for is_spread in (False, True):
        torch.nn.utils.clip_grads_with_norm_([p for p in chosen if (p in spread) == is_spread], max_norm, total)
    return total


@torch.no_grad()
def grad_norm(model: nn.Module, parameters: Iterable[nn.Parameter] | None = None) -> torch.Tensor:
    """The norm of the whole model's gradient (of those parameters; None: all), each expert counted once, a scalar.
    Every process must call it."""
    chosen = list(model.parameters() if parameters is None else parameters)
    spread = expert_parameters(model)
    norm = torch.nn.utils.get_total_norm([p.grad for p in chosen if p.grad is not None and p not in spread])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if spread.isdisjoint(chosen):
        return norm
    return (norm.float().square() + _square_of_experts(model, set(chosen))).sqrt()


def _square_of_experts(model: nn.Module, chosen: set[nn.Parameter]) -> torch.Tensor:
    """The squared norm of the spread experts' gradient over the expert group, a scalar."""
    squares = []
    for _, module in _spread_modules(model):
        copies = [len(slots) for slots in module.placement.slots_of_expert]
        own = module.placement.experts_of_rank(module.groups.ep_rank)
        share_S = torch.tensor([1.0 / copies[e] for e in own], device=module.down_shard.device)
        for parameter in (getattr(module, name) for name in WHOLE_NAMES):
            if parameter in chosen and parameter.grad is not None:
                squares.append((parameter.grad.float().square().flatten(1).sum(1) * share_S).sum())
    groups = next(module.groups for _, module in _spread_modules(model))
    square = sum(squares, torch.zeros((), device=next(iter(chosen)).device))
    dist.all_reduce(square, group=groups.expert)
    return square


@torch.no_grad()
def full_state_dict(policy: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that the policy would have on one process; `save_pretrained(state_dict=...)` and
    `save_checkpoint(policy_state_dict=...)` take it. Every process must call it, and gets it."""
    return dict(full_tensors(policy, policy.state_dict()))


@torch.no_grad()
def full_tensors(policy: nn.Module, shares: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The whole of each tensor that lies over the processes as the policy's tensor of that name does (a weight, or an
    optimizer's moments of it), under the name that it has on one process; one at a time, so that one is held at a time.
    Every process must go through all of them."""
    spread = dict(_spread_modules(policy))
    for name, tensor in shares.items():
        prefix, _, last = name.rpartition(".")
        if prefix in spread and last in WHOLE_NAMES:
            yield f"{prefix}.{WHOLE_NAMES[last]}", _gather(tensor, spread[prefix])
        else:
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _gather(shard: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """[S, ...] of each process -> [E, ...]."""
    parts = [torch.empty_like(shard) for _ in range(module.groups.ep_size)]
    dist.all_gather(parts, shard.contiguous(), group=module.groups.expert)
    first = [slots[0] for slots in module.placement.slots_of_expert]
    return torch.cat(parts)[first]


@torch.no_grad()
def load_full_state_dict(policy: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `full_state_dict`, for any number of processes; in place.

    Raises KeyError, before anything is copied, when `state` lacks a tensor of the policy, and ValueError for a shape
    that does not fit.
    """
    pairs = list(own_shares(policy, policy.state_dict(), state))
    for tensor, share in pairs:
        tensor.copy_(share)


@torch.no_grad()
def own_shares(
    policy: nn.Module, shares: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The inverse of `full_tensors`: of each tensor of `shares`, (itself, what it should be according to `whole`).

    Raises KeyError and ValueError as `load_full_state_dict`.
    """
    spread = dict(_spread_modules(policy))
    for name, tensor in shares.items():
        prefix, _, last = name.rpartition(".")
        if prefix in spread and last in WHOLE_NAMES:
            module = spread[prefix]
            value = whole[f"{prefix}.{WHOLE_NAMES[last]}"]
            value = value[list(module.placement.experts_of_rank(module.groups.ep_rank))]
        else:
            value = whole[name]
        if value.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the state dict's {tuple(value.shape)}")
        if isinstance(tensor, DTensor):  # each process has the whole, and takes its share without asking the others
            value = value.to(tensor.device)
            value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
        yield tensor, value
