"""The routed SwiGLU experts in plain PyTorch (V3 technical report, arXiv:2412.19437, equation 12, routed part).

T = tokens, D = hidden, E = experts, F = expert intermediate, K = experts per token.
"""

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
    num_experts = gate_up_E2FD.shape[0]
    top_k = topk_idx_TK.shape[1]
    # Pairs (token, choice) sorted by expert, so that each expert sees one block of rows.
    pairs = topk_idx_TK.reshape(-1).argsort(stable=True)
    counts = torch.bincount(topk_idx_TK.reshape(-1), minlength=num_experts).tolist()
    tokens = pairs // top_k
    rows = x_TD.index_select(0, tokens)
    outputs = []
    for expert, block in enumerate(rows.split(counts)):
        gate, up = F.linear(block, gate_up_E2FD[expert]).chunk(2, dim=-1)
        outputs.append(F.linear(F.silu(gate) * up, down_EDF[expert]))
    weighted = torch.cat(outputs) * topk_weights_TK.reshape(-1, 1).index_select(0, pairs).to(x_TD.dtype)
    return torch.zeros_like(x_TD).index_add(0, tokens, weighted)
