"""The routed SwiGLU experts in plain PyTorch (V3 technical report, arXiv:2412.19437, equation 12, routed part).

T = tokens, D = hidden, E = experts, F = expert intermediate, K = experts per token.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def moe_experts(
    x_TD: torch.Tensor,
    topk_idx_TK: torch.Tensor,
    topk_weights_TK: torch.Tensor,
    gate_up_E2FD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """y_t = sum over k of topk_weights[t, k] * FFN_{topk_idx[t, k]}(x_t), FFN_e(x) = down_e (silu(gate_e x) * up_e x).

    x_TD: [T, D]; topk_idx_TK: [T, K] int64; topk_weights_TK: [T, K]; gate_up_E2FD: [E, 2F, D], the first F rows of an
    expert are gate, the last F up; down_EDF: [E, D, F]. Returns [T, D].
    """
    experts = list(zip(gate_up_E2FD.unbind(0), down_EDF.unbind(0), strict=True))
    return run_experts(x_TD, topk_idx_TK, topk_weights_TK, experts, _swiglu)


def _swiglu(x_TD: torch.Tensor, gate_up_2FD: torch.Tensor, down_DF: torch.Tensor) -> torch.Tensor:
    gate_TF, up_TF = F.linear(x_TD, gate_up_2FD).chunk(2, dim=-1)
    return F.linear(F.silu(gate_TF) * up_TF, down_DF)


def run_experts(
    x_TD: torch.Tensor,
    topk_idx_TK: torch.Tensor,
    topk_weights_TK: torch.Tensor,
    experts: Sequence[tuple],
    swiglu: Callable,
) -> torch.Tensor:
    """Weighted sum of each token's experts, [T, D], one expert after the other.

    experts: the weights of each, in whatever form; swiglu(x [rows, D], *weights) -> [rows, D].
    """
    # Pairs (token, choice) sorted by expert, so that each expert sees one block of rows.
    pairs = topk_idx_TK.reshape(-1).argsort(stable=True)
    counts = torch.bincount(topk_idx_TK.reshape(-1), minlength=len(experts)).tolist()
    tokens = pairs // topk_idx_TK.shape[1]
    blocks = x_TD.index_select(0, tokens).split(counts)
    outputs = [swiglu(block, *weights) for block, weights in zip(blocks, experts, strict=True)]
    weighted = torch.cat(outputs) * topk_weights_TK.reshape(-1, 1).index_select(0, pairs).to(x_TD.dtype)
    return torch.zeros_like(x_TD).index_add(0, tokens, weighted)
