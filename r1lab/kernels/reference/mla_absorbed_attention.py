"""Latent attention with the expansion folded into queries and outputs (DeepSeek-V2, arXiv:2405.04434, section 2.1.2).

T = tokens of all sequences, H = heads, N = qk_nope_head_dim, R = qk_rope_head_dim, P = R / 2, C = kv_lora_rank,
W = v_head_dim, B = sequences.
"""

import torch

from r1lab.kernels.reference.mla_attention import mla_attention
from r1lab.kernels.reference.rope import rope


def mla_absorbed_attention(
    q_THD: torch.Tensor,
    kv_TC: torch.Tensor,
    k_pe_TR: torch.Tensor,
    kv_b_HEC: torch.Tensor,
    cos_TP: torch.Tensor,
    sin_TP: torch.Tensor,
    interleave: bool,
    cu_seqlens_B1: torch.Tensor,
    max_seqlen: int,
    scale: float,
    prefix_B: torch.Tensor | None = None,
    attention=mla_attention,
) -> torch.Tensor:
    """What `mla_attention` gives for k_nope = W_k kv and v = W_v kv, without either: the scores of a head are
    (W_k^T q_nope) . kv + q_pe . k_pe, its output W_v (sum of probs times kv).

    q: [T, H, N + R], not rotated yet; kv: [T, C], normed latents; k_pe: [T, R], not rotated yet; kv_b: [H, N + W, C],
    a head's W_k, then its W_v; cos, sin: [T, P], the tokens' angles; interleave: as in `rope`; the rest and
    `attention`: `mla_attention`, or a kernel of it. Returns [T, H, W].
    """
    rope_dim = k_pe_TR.shape[-1]
    q_nope_THN, q_pe_THR = q_THD.split([q_THD.shape[-1] - rope_dim, rope_dim], dim=-1)
    w_k_HNC, w_v_HWC = kv_b_HEC.split([q_nope_THN.shape[-1], kv_b_HEC.shape[1] - q_nope_THN.shape[-1]], dim=1)
    q_pe_THR = rope(q_pe_THR, cos_TP, sin_TP, interleave)
    k_pe_TR = rope(k_pe_TR.unsqueeze(1), cos_TP, sin_TP, interleave).squeeze(1)
    q_latent_THC = torch.einsum("thn,hnc->thc", q_nope_THN, w_k_HNC)
    latents_THC = kv_TC.unsqueeze(1).expand_as(q_latent_THC)
    context_THC = attention(
        q_latent_THC, q_pe_THR, latents_THC, k_pe_TR, latents_THC, cu_seqlens_B1, max_seqlen, scale, prefix_B
    )
    return torch.einsum("thc,hwc->thw", context_THC, w_v_HWC)
