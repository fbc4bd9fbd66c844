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
    prefix_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention within each sequence (equations 17-19: a key is [nope; rope], the rope part shared by heads).

    o_t = sum over the j that t sees of softmax_j(scale (q_nope_t . k_nope_j + q_pe_t . k_pe_j)) v_j: every j <= t of
    its own sequence, and all of the sequence that is its prefix.

    q_nope, k_nope: [T, H, N]; q_pe: [T, H, R]; k_pe: [T, R]; v: [T, H, W]; cu_seqlens: int32 [B + 1], sequence b is
    rows cu_seqlens[b] .. cu_seqlens[b + 1] - 1, together all of them; max_seqlen: the longest one's length, its prefix
    included (unused here); prefix: int32 [B], the sequence before sequence b, -1 for none. Returns [T, H, W]; softmax
    in at least fp32.
    """
    outputs, bounds = [], cu_seqlens_B1.tolist()
    prefixes = [-1] * (len(bounds) - 1) if prefix_B is None else prefix_B.tolist()
    for start, end, prefix in zip(bounds[:-1], bounds[1:], prefixes, strict=True):
        rows = torch.arange(start, end, device=v_THW.device)
        before = slice(bounds[prefix], bounds[prefix + 1]) if prefix >= 0 else slice(0, 0)
        k_nope, k_pe, v = (torch.cat([x[before], x[rows]]) for x in (k_nope_THN, k_pe_TR, v_THW))
        scores_HTS = torch.einsum("thn,shn->hts", q_nope_THN[rows], k_nope)
        scores_HTS = scores_HTS + torch.einsum("thr,sr->hts", q_pe_THR[rows], k_pe)
        scores_HTS = scores_HTS.to(torch.promote_types(scores_HTS.dtype, torch.float32)) * scale
        seen = len(v) - len(rows) + 1
        is_future_TS = torch.ones(len(rows), len(v), dtype=torch.bool, device=v.device).triu(seen)
        probs_HTS = scores_HTS.masked_fill(is_future_TS, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hts,shw->thw", probs_HTS.to(v.dtype), v))
    return torch.cat(outputs) if outputs else v_THW.new_zeros(v_THW.shape)
