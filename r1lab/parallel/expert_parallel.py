"""Expert parallelism: the routed experts spread over processes (DeepSeek-V3 report, sections 3.2 to 3.4).

    groups = build_expert_groups(ep_size=4)              # under torchrun or accelerate launch
    parallelize_experts(policy, groups, dispatch_dtype="fp8", combine_dtype="bf16")
    model = DistributedDataParallel(policy, broadcast_buffers=False)
    # or fully_shard(policy, ignored_params=expert_parameters(policy))

Each process keeps its own tokens and all other weights, and the slots of some experts. Every process must do the same
number of forward passes (with or without gradient) and backward passes, since its experts serve the others' tokens; a
process without tokens passes [0, D]. Gradients come out as means over all processes, as DDP's and FSDP's do: those of
an expert are divided by the size of its group, summed over its redundant copies and averaged over the groups, in each
backward pass. DDP leaves the experts alone by itself, FSDP2 when told as above. Clip with `clip_grad_norm_`, save with
`full_state_dict`, load before spreading or with `load_full_state_dict`.

A process that ends or hangs ends the others with an ExpertGroupError that names their group, within the timeout given
to `build_expert_groups`; give `init_process_group` the same for the exchanges that are not ours.

Suffixes: T = tokens, K = experts per token, P = pairs, D = hidden, S = slots of this process, F = expert intermediate.
"""

import torch
from torch import nn
from torch.profiler import record_function

from r1lab.kernels import ops
from r1lab.model.moe import DeepseekMoE, RoutedExperts
from r1lab.parallel.dispatch import Hop, Tokens, start_dispatch
from r1lab.parallel.expert_groups import ExpertGroups, build_expert_groups, check_agreement, fingerprint
from r1lab.parallel.expert_weights import (
    clip_grad_norm_,
    expert_parameters,
    full_state_dict,
    load_full_state_dict,
    reduce_gradient,
)
from r1lab.parallel.payload import FORMATS, Payload
from r1lab.parallel.placement import Placement, ReplicaChoice, default_placement

__all__ = [
    "ExpertGroups", "ParallelExperts", "build_expert_groups", "clip_grad_norm_", "expert_parameters", "full_state_dict",
    "load_full_state_dict", "parallelize_experts",
]  # fmt: skip


class ParallelExperts(nn.Module):
    """Takes the place of `RoutedExperts`: the slots of this process, and the way to the others'.

    The weights have names of their own, so that nothing takes a share for the whole.
    """

    def __init__(self, experts: RoutedExperts, placement: Placement, groups: ExpertGroups, hops: list[Hop]) -> None:
        super().__init__()
        self.placement, self.groups, self.hops = placement, groups, hops
        self.replicas = ReplicaChoice(placement)
        own = torch.tensor(placement.experts_of_rank(groups.ep_rank), device=experts.down_proj.device)
        self.gate_up_shard = nn.Parameter(experts.gate_up_proj.detach()[own], experts.gate_up_proj.requires_grad)
        self.down_shard = nn.Parameter(experts.down_proj.detach()[own], experts.down_proj.requires_grad)

    def forward(
        self, x_TD: torch.Tensor, topk_idx_TK: torch.Tensor, topk_weights_TK: torch.Tensor, shared_experts: nn.Module
    ) -> torch.Tensor:
        """As in `RoutedExperts`; the shared experts are computed while the tokens travel.

        Raises ExpertGroupError when a process of the group is gone.
        """
        num_tokens, top_k = topk_idx_TK.shape
        row_P = torch.arange(num_tokens, device=x_TD.device).repeat_interleave(top_k)
        slot_P = self.replicas.slots(topk_idx_TK, self.groups.ep_rank).flatten()
        tokens = Tokens(x_TD, row_P, slot_P, topk_weights_TK.flatten())
        trips = [start_dispatch(tokens, self.hops[0])]
        with record_function("r1lab/shared experts"):
            shared_TD = shared_experts(x_TD)
        tokens = trips[0].finish()
        for hop in self.hops[1:]:
            trips.append(start_dispatch(tokens, hop))
            tokens = trips[-1].finish()
        with record_function("r1lab/routed experts"):
            y = self._compute(tokens)
        for trip in reversed(trips):
            y = trip.combine(y)
        return y + shared_TD

    def _compute(self, tokens: Tokens) -> torch.Tensor:
        """The copies received [N, D] -> for each, the weighted sum over the pairs it came with, [N, D]."""
        x_ND, row_P = tokens.x_TD, tokens.row_P
        gate_up, down = (
            _ReduceGradient.apply(weight, self).to(x_ND.dtype) for weight in (self.gate_up_shard, self.down_shard)
        )
        # One pair a row: a copy asks for one to K of the experts here, and the kernel knows no absent choices.
        x_PD = x_ND.index_select(0, row_P)
        y_PD = ops.moe_experts(x_PD, tokens.slot_P.unsqueeze(1), tokens.weight_P.unsqueeze(1), gate_up, down)
        return torch.zeros_like(x_ND).index_add(0, row_P, y_PD)


class _ReduceGradient(torch.autograd.Function):
    """A weight as it is; its gradient made the mean over all processes that have it."""

    @staticmethod
    def forward(ctx, weight, experts):
        ctx.experts = experts
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        return reduce_gradient(grad, ctx.experts.placement, ctx.experts.groups), None


def parallelize_experts(
    policy: nn.Module,
    groups: ExpertGroups,
    *,
    dispatch_dtype: str = "native",
    combine_dtype: str = "native",
    placements: list[Placement] | None = None,
) -> nn.Module:
    """Spreads the routed experts of a policy over `groups`, in place; returns the policy.

    Every process calls it with the same whole policy (loaded, or built from the same seed) and the same arguments,
    before it wraps the policy in DDP or FSDP and builds the optimizer. The gate stays as it is: its loads are counted
    per process, and `update_routing_bias` sums them over all of them.

    Args:
        dispatch_dtype: how tokens travel to their experts, and their outputs' gradients in the backward: native, bf16
            or fp8 (section 3.3.3: E4M3, scales of 1 x 128 tiles).
        combine_dtype: how the outputs travel back, and the tokens' gradients in the backward: native or bf16.
        placements: which experts live where, one for each layer with experts (`plan_placement`); None: neighbouring
            experts together.

    Raises:
        ValueError: nothing to spread, sizes that do not divide, expert groups that straddle nodes, or processes that
            disagree about any of it. The policy is untouched then.
    """
    layers = [module for module in policy.modules() if isinstance(module, DeepseekMoE)]
    _check_formats(dispatch_dtype, combine_dtype)
    if not layers:
        raise ValueError("the policy has no routed experts to spread; leave expert parallelism out for a dense model")
    if any(isinstance(layer.experts, ParallelExperts) for layer in layers):
        raise ValueError("the policy's experts are spread already; call parallelize_experts once")
    if placements is None:
        placements = [default_placement(layer.gate.num_experts, groups.ep_size) for layer in layers]
    if len(placements) != len(layers):
        raise ValueError(f"{len(placements)} placements for {len(layers)} layers with experts; give one for each")
    for layer, placement in zip(layers, placements):
        _check_placement(layer, placement, groups)
    check_agreement(_signature(layers, placements, dispatch_dtype, combine_dtype))
    names = {module: name for name, module in policy.named_modules()}
    for layer, placement in zip(layers, placements):
        hops = _build_hops(
            groups, placement, Payload(dispatch_dtype), Payload(combine_dtype), names[layer] or "experts"
        )
        layer.experts = ParallelExperts(layer.experts, placement, groups, hops)
    _hide_from_ddp(policy)
    policy.has_spread_experts = True
    return policy


def _build_hops(
    groups: ExpertGroups, placement: Placement, dispatch: Payload, combine: Payload, name: str
) -> list[Hop]:
    slots = placement.slots_per_rank
    if groups.across_nodes is None:
        return [Hop(groups.expert, slots, dispatch, combine, name)]
    return [
        Hop(groups.across_nodes, slots * groups.ranks_per_node, dispatch, combine, f"{name} across nodes"),
        Hop(groups.inside_node, slots, dispatch, combine, f"{name} inside the node"),
    ]


def _hide_from_ddp(policy: nn.Module) -> None:
    shards = {id(parameter) for parameter in expert_parameters(policy)}
    ignored = list(getattr(policy, "_ddp_params_and_buffers_to_ignore", ()))
    ignored += [name for name, parameter in policy.named_parameters() if id(parameter) in shards]
    policy._ddp_params_and_buffers_to_ignore = ignored


def _check_formats(dispatch_dtype: str, combine_dtype: str) -> None:
    if dispatch_dtype not in FORMATS:
        raise ValueError(f"dispatch_dtype={dispatch_dtype!r}: use one of {', '.join(FORMATS)}")
    if combine_dtype not in ("native", "bf16"):
        raise ValueError(f"combine_dtype={combine_dtype!r}: use native or bf16; sums lose too much in fewer bits")


def _check_placement(layer: DeepseekMoE, placement: Placement, groups: ExpertGroups) -> None:
    gate = layer.gate
    if placement.num_ranks != groups.ep_size or placement.num_slots % groups.ep_size:
        raise ValueError(
            f"a placement of {placement.num_slots} slots on {placement.num_ranks} processes does not fit an expert "
            f"group of {groups.ep_size}"
        )
    if set(placement.expert_of_slot) != set(range(gate.num_experts)):
        raise ValueError(f"a placement must hold each of the {gate.num_experts} experts at least once, and no other")
    if groups.num_nodes == 1 or gate.topk_group == gate.n_group:
        return
    size, slots = gate.num_experts // gate.n_group, placement.slots_per_rank * groups.ranks_per_node
    homes = {(expert // size, slot // slots) for slot, expert in enumerate(placement.expert_of_slot)}
    if len(homes) > gate.n_group:
        raise ValueError(
            f"n_group={gate.n_group} expert groups do not lie whole on {groups.num_nodes} nodes, so the gate's limit "
            f"of topk_group={gate.topk_group} would not limit the network; use a number of nodes that divides n_group"
        )


def _signature(layers: list[DeepseekMoE], placements: list[Placement], *formats: str) -> dict[str, object]:
    """What all processes must agree on."""
    weights = [weight for layer in layers for weight in layer.experts.parameters()]
    return {
        "shapes of the experts": [tuple(weight.shape) for weight in weights],
        "experts per token": [layer.gate.top_k for layer in layers],
        "dispatch_dtype and combine_dtype": formats,
        "placements": placements,
        "weights of the experts": [fingerprint(weight) for weight in weights],
    }
