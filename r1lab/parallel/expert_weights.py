"""The experts' weights when they are spread: gradients, the gradient norm, and whole checkpoints.

A module with spread experts is known by its `placement`, `groups`, `gate_up_shard` [S, 2F, D] and `down_shard`
[S, D, F]; S = slots of this process.
"""

from collections.abc import Iterator

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
            yield name, module


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
def clip_grad_norm_(model: nn.Module, max_norm: float) -> torch.Tensor:
    """`torch.nn.utils.clip_grad_norm_` for a model with spread experts: the norm of the whole model's gradient, each
    expert counted once, the same on every process (the usual one counts other experts on each, and the processes'
    other weights would drift apart). Every process must call it. Returns the norm before clipping, a scalar.
    """
    total = grad_norm(model)
    spread = expert_parameters(model)
    with_grad = [parameter for parameter in model.parameters() if parameter.grad is not None]
    # Apart, since the usual weights may be DTensors, which do not go together with the plain ones.
    for parameters in ([p for p in with_grad if p not in spread], [p for p in with_grad if p in spread]):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return total


@torch.no_grad()
def grad_norm(model: nn.Module) -> torch.Tensor:
    """The norm of the whole model's gradient, each expert counted once, a scalar. Every process must call it."""
    spread = expert_parameters(model)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None and p not in spread])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    square = torch.zeros((), device=norm.device)
    groups = None
    for _, module in _spread_modules(model):
        groups, placement = module.groups, module.placement
        copies = [len(slots) for slots in placement.slots_of_expert]
        share_S = torch.tensor([1.0 / copies[e] for e in placement.experts_of_rank(groups.ep_rank)])
        for name in WHOLE_NAMES:
            grad = getattr(module, name).grad
            if grad is not None:
                square += (grad.float().square().flatten(1).sum(1) * share_S.to(grad.device)).sum()
    if groups is not None:
        dist.all_reduce(square, group=groups.expert)
    return (norm.float().square() + square).sqrt()


@torch.no_grad()
def full_state_dict(policy: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that the policy would have on one process; `save_pretrained(state_dict=...)` and
    `save_checkpoint(policy_state_dict=...)` take it. Every process must call it, and gets it."""
    spread = dict(_spread_modules(policy))
    state = {}
    for name, tensor in policy.state_dict().items():
        prefix, _, last = name.rpartition(".")
        if prefix in spread and last in WHOLE_NAMES:
            state[f"{prefix}.{WHOLE_NAMES[last]}"] = _gather(tensor, spread[prefix])
        else:
            state[name] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return state


def _gather(shard: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """[S, ...] of each process -> [E, ...]."""
    parts = [torch.empty_like(shard) for _ in range(module.groups.ep_size)]
    dist.all_gather(parts, shard.contiguous(), group=module.groups.expert)
    first = [slots[0] for slots in module.placement.slots_of_expert]
    return torch.cat(parts)[first]


@torch.no_grad()
def load_full_state_dict(policy: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """The inverse of `full_state_dict`, for any number of processes; in place.

    Raises KeyError, before anything is copied, when `state` lacks a tensor of the policy, and ValueError for a shape
    that does not fit.
    """
    spread = dict(_spread_modules(policy))
    pairs = []
    for name, tensor in policy.state_dict().items():
        prefix, _, last = name.rpartition(".")
        if prefix in spread and last in WHOLE_NAMES:
            module = spread[prefix]
            whole = state[f"{prefix}.{WHOLE_NAMES[last]}"]
            value = whole[list(module.placement.experts_of_rank(module.groups.ep_rank))]
        else:
            value = state[name]
        if value.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the state dict's {tuple(value.shape)}")
        pairs.append((tensor, value))
    for tensor, value in pairs:
        if isinstance(tensor, DTensor):
            value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
        tensor.copy_(value)
