"""Rollout Routing Replay (R3; Ma et al. 2025, arXiv:2510.11370): experts chosen while sampling, used again in training.

Where sampling and training compute a little differently (FP8, other kernels, an engine of its own), the two may choose
different experts for the same token, and its log-probability then jumps. Replay keeps the choice of the rollout; the
weights of the chosen experts still come from the training pass's own scores, so the gate learns as without.

B rows, T columns, N tokens to compute, L = MoE layers, K = experts per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from r1lab.model.packing import Packing

NOT_RECORDED = -1


@dataclass(slots=True)
class LayerReplay:
    """What one MoE layer reads and leaves."""

    recorded_NK: torch.Tensor
    """int64; NOT_RECORDED where the layer chooses for itself."""
    is_flipped_N: torch.Tensor
    """bool, filled in: whether the layer would have chosen another set of experts than the recorded one."""

    @torch.no_grad()
    def choose(self, own_NK: torch.Tensor) -> torch.Tensor:
        """The layer's own choice [N, K] -> the experts to compute with [N, K]."""
        is_known_N = (self.recorded_NK != NOT_RECORDED).all(-1)
        differs_N = (own_NK.sort(-1).values != self.recorded_NK.sort(-1).values).any(-1)
        # Assigned, not added up: gradient checkpointing runs a layer twice.
        self.is_flipped_N.copy_(differs_N & is_known_N)
        return torch.where(is_known_N[:, None], self.recorded_NK, own_NK)


@dataclass(slots=True)
class RoutingReplay:
    """The routing of one forward pass."""

    layers: list[LayerReplay | None]
    """One a layer; None: a dense one."""

    def flips(self, shape: tuple[int, int], packing: Packing | None) -> torch.Tensor:
        """[B, T] float32: the share of the MoE layers that would have chosen another set of experts; 0 on padding."""
        flips_N = torch.stack([layer.is_flipped_N for layer in self.layers if layer]).float().mean(0)
        return flips_N.view(shape) if packing is None else packing.put_back(flips_N[None])


def build_replay(
    routing_BTLK: torch.Tensor, shape: tuple[int, int], config, packing: Packing | None = None
) -> RoutingReplay:
    """From recorded experts [B, T, L, K], of any integer type; of a shared prompt those of its first row are used.

    Raises ValueError for a policy without MoE layers, another shape, or experts that the policy does not have.
    """
    sizes = (num_moe_layers(config), config.num_experts_per_tok)
    if not sizes[0]:
        raise ValueError("routing was recorded, and the policy has no MoE layers; leave routing out")
    if routing_BTLK.shape != (*shape, *sizes):
        raise ValueError(
            f"routing has shape {tuple(routing_BTLK.shape)}, expected {(*shape, *sizes)}: [B, T, MoE layers, experts "
            "per token] of the policy that recorded it"
        )
    if routing_BTLK.numel() and not NOT_RECORDED <= routing_BTLK.min() <= routing_BTLK.max() < config.n_routed_experts:
        raise ValueError(
            f"routing names experts {routing_BTLK.min()} to {routing_BTLK.max()}, expected 0 to "
            f"{config.n_routed_experts - 1}, or {NOT_RECORDED} where none were recorded"
        )
    routing = routing_BTLK.flatten(0, 1) if packing is None else packing.take(routing_BTLK).squeeze(0)
    by_layer = routing.long().transpose(0, 1).contiguous()
    moe_layers = [LayerReplay(each, torch.zeros_like(each[:, 0], dtype=torch.bool)) for each in by_layer]
    return RoutingReplay([None] * config.first_k_dense_replace + moe_layers)


@torch.no_grad()
def count_recorded_load(policy: nn.Module, recorded: Sequence[torch.Tensor]) -> None:
    """Adds recorded experts, [tokens, L, K] each, to the load of the policy's gates, as their pass would."""
    if not recorded:
        return
    layers = policy.model.layers[: policy.config.num_hidden_layers]
    gates = [layer.mlp.gate for layer in layers if hasattr(layer.mlp, "gate")]
    recorded_NLK = torch.cat(list(recorded)).long()
    for gate, chosen_NK in zip(gates, recorded_NLK.unbind(1), strict=True):
        gate.count_load(chosen_NK.to(gate.expert_load_E.device), None)


def num_moe_layers(config) -> int:
    """Of a DeepSeek-V3 config, the multi-token-prediction module not counted."""
    return max(0, config.num_hidden_layers - config.first_k_dense_replace)


def check_replayable(policy: nn.Module) -> None:
    """Raises ValueError for a policy that cannot replay its routing."""
    if not getattr(policy, "replays_routing", False):
        raise ValueError(
            f"router_replay=True replays the experts of r1lab's PolicyForCausalLM, not of {type(policy).__name__}; "
            "leave router_replay off"
        )
    if not num_moe_layers(policy.config):
        raise ValueError("router_replay=True needs a policy with MoE layers, and this one is dense; leave it off")
