"""Feed-forward layers: dense SwiGLU, and DeepSeekMoE with auxiliary-loss-free load balancing.

DeepSeek-V3 report, section 2.1.2. T = tokens, D = hidden, E = routed experts, F = expert intermediate size,
K = experts per token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import DeepseekV3Config

from r1lab.kernels import ops
from r1lab.model.linear import PolicyLinear, are_plain
from r1lab.model.packing import Packing
from r1lab.model.replay import LayerReplay


class SwiGLU(nn.Module):
    """Dense feed-forward: down(silu(gate(x)) * up(x)); also the shared experts, side by side in one matrix."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = PolicyLinear(hidden_size, intermediate_size, bias=False)
        self.up_proj = PolicyLinear(hidden_size, intermediate_size, bias=False)
        self.down_proj = PolicyLinear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., D] -> [..., D]."""
        if not are_plain(self.gate_proj, self.up_proj, self.down_proj):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return ops.swiglu(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


class TopkGate(nn.Module):
    """Sigmoid gate with group-limited top-k (eq. 12-16) in fp32, and the load it has seen."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.num_experts = config.n_routed_experts
        self.top_k = config.num_experts_per_tok
        self.n_group, self.topk_group = config.n_group or 1, config.topk_group or 1
        self.norm_topk_prob = bool(config.norm_topk_prob)
        self.routed_scaling_factor = float(config.routed_scaling_factor)
        _check_routing(self)
        self.weight = nn.Parameter(torch.zeros(self.num_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(self.num_experts))
        load_E = torch.zeros(self.num_experts, dtype=torch.int64)
        self.register_buffer("expert_load_E", load_E, persistent=False)

    def forward(
        self, x_TD: torch.Tensor, replay: LayerReplay | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [T, D] -> (logits_TE fp32, topk_idx_TK int64, topk_weights_TK fp32).

        replay: the experts to choose in place of the gate's own; their weights are the gate's all the same.
        """
        logits_TE = ops.linear(x_TD.float(), self.weight.float())
        topk_idx_TK, topk_weights_TK = ops.moe_gate(
            logits_TE,
            self.e_score_correction_bias,
            self.n_group,
            self.topk_group,
            self.top_k,
            self.norm_topk_prob,
            self.routed_scaling_factor,
        )
        if replay is not None:
            topk_idx_TK = replay.choose(topk_idx_TK)
            topk_weights_TK = ops.moe_gate_weights(
                logits_TE, topk_idx_TK, self.norm_topk_prob, self.routed_scaling_factor
            )
        return logits_TE, topk_idx_TK, topk_weights_TK

    @torch.no_grad()
    def count_load(
        self, topk_idx_TK: torch.Tensor, token_mask_T: torch.Tensor | None, weight_T: torch.Tensor | None = None
    ) -> None:
        """Add to `expert_load_E` how often each expert was chosen by the tokens whose mask is True (None: all), each
        counted `weight` times (int64; None: once)."""
        if weight_T is not None:
            chosen_TE = torch.zeros(len(topk_idx_TK), self.num_experts, dtype=torch.int64, device=topk_idx_TK.device)
            chosen_TE.scatter_(1, topk_idx_TK, weight_T[:, None].expand_as(topk_idx_TK))
            self.expert_load_E += (chosen_TE if token_mask_T is None else chosen_TE[token_mask_T]).sum(0)
            return
        if token_mask_T is not None:
            topk_idx_TK = topk_idx_TK[token_mask_T]
        self.expert_load_E += torch.bincount(topk_idx_TK.flatten(), minlength=self.num_experts)


class RoutedExperts(nn.Module):
    """The routed experts' weights, stacked; first F rows of `gate_up_proj` are the gate, the others up."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        E, D, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * inner, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, inner))

    def forward(
        self,
        x_TD: torch.Tensor,
        topk_idx_TK: torch.Tensor,
        topk_weights_TK: torch.Tensor,
        shared_experts: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Weighted sum of the chosen experts' outputs plus the shared experts' output, [T, D].

        The shared experts come as an argument because experts on other processes are waited for meanwhile
        (`r1lab.parallel.expert_parallel`).
        """
        return self.weighted_sum(x_TD, topk_idx_TK, topk_weights_TK) + shared_experts(x_TD)

    def weighted_sum(
        self, x_TD: torch.Tensor, topk_idx_TK: torch.Tensor, topk_weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """Of the chosen experts' outputs, [T, D]."""
        return ops.moe_experts(x_TD, topk_idx_TK, topk_weights_TK, self.gate_up_proj, self.down_proj)


class DeepseekMoE(nn.Module):
    """Shared experts plus the routed experts the gate picks (eq. 12)."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.gate = TopkGate(config)
        self.experts = RoutedExperts(config)
        shared_size = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = SwiGLU(config.hidden_size, shared_size)
        self.seq_aux_loss_alpha = float(getattr(config, "seq_aux_loss_alpha", 0.0) or 0.0)

    def forward(
        self,
        x_BTD: torch.Tensor,
        token_mask_BT: torch.Tensor | None = None,
        packing: Packing | None = None,
        replay: LayerReplay | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [B, T, D] -> (y [B, T, D], sequence-wise auxiliary loss or None).

        token_mask [B, T] bool, False on padding: it is routed but counts neither as load nor in the loss. packing: x is
        [1, N, D], the tokens of several sequences; one that stands in several of them counts as often. replay: experts
        to use in place of the gate's choice, and to count as its load. In training mode every call adds to
        `gate.expert_load_E` (twice under gradient checkpointing, in all layers alike, which changes neither a bias step
        nor MaxVio), and returns the auxiliary loss if the config's `seq_aux_loss_alpha` is above 0.
        """
        x_TD = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_TE, topk_idx_TK, topk_weights_TK = self.gate(x_TD, replay)
        y_BTD = self.experts(x_TD, topk_idx_TK, topk_weights_TK, self.shared_experts).view_as(x_BTD)
        if not self.training:
            return y_BTD, None
        token_mask_T = None if token_mask_BT is None else token_mask_BT.flatten()
        self.gate.count_load(topk_idx_TK, token_mask_T, None if packing is None else packing.weight_N)
        if self.seq_aux_loss_alpha <= 0:
            return y_BTD, None
        logits, topk_idx = (x.view(*x_BTD.shape[:2], -1) for x in (logits_TE, topk_idx_TK))
        if packing is not None:
            logits, topk_idx = packing.to_sequences(logits), packing.to_sequences(topk_idx)
            token_mask_BT = packing.sequence_mask()
        return y_BTD, sequence_aux_loss(logits, topk_idx, self.seq_aux_loss_alpha, token_mask_BT)


def sequence_aux_loss(
    logits_BTE: torch.Tensor, topk_idx_BTK: torch.Tensor, alpha: float, token_mask_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """Complementary sequence-wise balance loss, eq. 17-20, averaged over the sequences that have tokens; a scalar.

    Per sequence of length T: alpha * sum_i f_i P_i, with f_i = E / (K T) * #(tokens that chose i) (no gradient) and
    P_i the mean over tokens of expert i's share of the token's sigmoid scores. Equals alpha at perfect balance.
    token_mask: True on tokens; None means all.
    """
    E, K = logits_BTE.shape[-1], topk_idx_BTK.shape[-1]
    scores_BTE = logits_BTE.float().sigmoid()
    share_BTE = scores_BTE / (scores_BTE.sum(-1, keepdim=True) + 1e-20)
    chosen_BTE = torch.zeros_like(share_BTE).scatter_(-1, topk_idx_BTK, 1.0)
    if token_mask_BT is None:
        length_B = share_BTE.new_full((share_BTE.shape[0],), share_BTE.shape[1])
    else:
        mask_BT1 = token_mask_BT.to(share_BTE.dtype).unsqueeze(-1)
        share_BTE, chosen_BTE = share_BTE * mask_BT1, chosen_BTE * mask_BT1
        length_B = mask_BT1.sum(dim=(1, 2))
    length_B1 = length_B.clamp_min(1.0).unsqueeze(1)
    f_BE = chosen_BTE.sum(1) * (E / K) / length_B1
    p_BE = share_BTE.sum(1) / length_B1
    num_sequences = (length_B > 0).sum().clamp_min(1)
    return alpha * (f_BE * p_BE).sum() / num_sequences


@dataclass(slots=True)
class _LayerBalance:
    max_vio: float
    bias_norm: float


@torch.no_grad()
def update_routing_bias(model: nn.Module, speed: float) -> dict[str, float]:
    """One step of auxiliary-loss-free balancing (section 2.1.2); call it once per optimiser step.

    Every gate's bias moves by `speed` (gamma, the report's bias update speed; 0 only measures): up for experts with
    less than the mean load since the last call, down for those with more. The step is mean-centred, so that the biases
    do not drift together. Loads are summed over processes when torch.distributed is initialised, then reset. Gates
    that have seen no token are left alone.

    Returns, averaged over the gates with load, "moe/max_vio" (max load / mean load - 1; 0 is perfect balance) and
    "moe/bias_norm" (root mean square of the biases); {} for a model without such gates.
    Raises ValueError on a negative speed.
    """
    if speed < 0:
        raise ValueError(f"speed must not be negative, got {speed}; 0 measures without moving the biases")
    gates = [module for module in model.modules() if isinstance(module, TopkGate)]
    if not gates:
        return {}
    load_LE = torch.stack([gate.expert_load_E for gate in gates])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(load_LE)
    stats = [_balance_gate(gate, load_E.double(), speed) for gate, load_E in zip(gates, load_LE)]
    stats = [stat for stat in stats if stat is not None]
    if not stats:
        return {}
    return {
        "moe/max_vio": sum(stat.max_vio for stat in stats) / len(stats),
        "moe/bias_norm": sum(stat.bias_norm for stat in stats) / len(stats),
    }


def _balance_gate(gate: TopkGate, load_E: torch.Tensor, speed: float) -> _LayerBalance | None:
    gate.expert_load_E.zero_()
    mean = load_E.mean()
    if mean == 0:
        return None
    bias_E = gate.e_score_correction_bias
    step_E = torch.sign(mean - load_E)
    bias_E += (speed * (step_E - step_E.mean())).to(bias_E.dtype)
    return _LayerBalance(float(load_E.max() / mean - 1), float(bias_E.float().pow(2).mean().sqrt()))


def _check_routing(gate: TopkGate) -> None:
    E, groups = gate.num_experts, gate.n_group
    if E % groups or (E // groups < 2):
        raise ValueError(f"n_routed_experts={E} must be a multiple of n_group={groups}, with 2 experts a group or more")
    if not 1 <= gate.topk_group <= groups:
        raise ValueError(f"topk_group={gate.topk_group} must lie between 1 and n_group={groups}")
    reachable = gate.topk_group * (E // groups)
    if not 1 <= gate.top_k <= reachable:
        raise ValueError(
            f"num_experts_per_tok={gate.top_k} must lie in 1..{reachable}, the experts of {gate.topk_group} groups"
        )
