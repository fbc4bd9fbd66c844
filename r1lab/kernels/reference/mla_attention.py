"""Multi-head latent attention over expanded heads, several sequences in one row (DeepSeek-V2, arXiv:2405.04434, 2.1).

T = tokens of all sequences, H = heads, N = qk_nope_head_dim, R = qk_rope_head_dim, W = v_head_dim, B = sequences.
"""

import torch


def mla_attention(
    q_nope_THN: torch.Tensor,
    q_pe_THR: torch.Tensor,
    k_nope_THN: torch.Tensor,
    k_pe_TR: torch.Tensor,
    v_THW: torch.Tensor,
    cu_seqlens_B1: torch.Tensor,
    max_seqlen: int,
    scale: float,
) -> torch.Tensor:
    """Causal attention within each sequence (equations 17-19: a key is [nope; rope], the rope part shared by heads).

    o_t = sum over j <= t of softmax_j(scale (q_nope_t . k_nope_j + q_pe_t . k_pe_j)) v_j.

    q_nope, k_nope: [T, H, N]; q_pe: [T, H, R]; k_pe: [T, R]; v: [T, H, W]; cu_seqlens: int32 [B + 1], sequence b is
    rows cu_seqlens[b] .. cu_seqlens[b + 1] - 1, together all of them; max_seqlen: the longest one's length (unused
    here). Returns [T, H, W]; softmax in at least fp32.
    """
    outputs = []
    for start, end in zip(cu_seqlens_B1.tolist()[:-1], cu_seqlens_B1.tolist()[1:], strict=True):
        rows = slice(start, end)
        scores_HTS = torch.einsum("thn,shn->hts", q_nope_THN[rows], k_nope_THN[rows])
        scores_HTS = scores_HTS + torch.einsum("thr,sr->hts", q_pe_THR[rows], k_pe_TR[rows])
        scores_HTS = scores_HTS.to(torch.promote_types(scores_HTS.dtype, torch.float32)) * scale
        is_future_TS = torch.ones(end - start, end - start, dtype=torch.bool, device=v_THW.device).triu(1)
        probs_HTS = scores_HTS.masked_fill(is_future_TS, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hts,shw->thw", probs_HTS.to(v_THW.dtype), v_THW[rows]))
    return torch.cat(outputs) if outputs else v_THW.new_zeros(v_THW.shape)
