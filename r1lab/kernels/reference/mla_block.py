"""The attention half of a pre-norm block in plain PyTorch: norm, projections, absorbed attention, residual.

DeepSeek-V2 report (arXiv:2405.04434), equations 37-47. T = tokens of all sequences, D = hidden, Q = q_lora_rank; H, N,
R, P, C, W, B as in `mla_absorbed_attention`.
"""

from dataclasses import dataclass

import torch

from r1lab.kernels.reference.linear import linear
from r1lab.kernels.reference.mla_absorbed_attention import mla_absorbed_attention
from r1lab.kernels.reference.mla_attention import mla_attention
from r1lab.kernels.reference.rms_norm import rms_norm


@dataclass(slots=True)
class MlaWeights:
    """Of one layer."""

    input_norm: torch.Tensor
    """[D]."""
    q_a: torch.Tensor | None
    """[Q, D]; None: queries are projected at once."""
    q_norm: torch.Tensor | None
    """[Q]; None with q_a."""
    q_b: torch.Tensor
    """[H (N + R), Q or D]."""
    kv_a: torch.Tensor
    """[C + R, D]."""
    kv_norm: torch.Tensor
    """[C]."""
    kv_b: torch.Tensor
    """[H, N + W, C]: a head's keys, then its values."""
    o: torch.Tensor
    """[D, H W]."""
    eps: tuple[float, float, float]
    """Of input_norm, q_norm, kv_norm."""


def mla_block(
    x_TD: torch.Tensor,
    weights: MlaWeights,
    cos_TP: torch.Tensor,
    sin_TP: torch.Tensor,
    interleave: bool,
    cu_seqlens_B1: torch.Tensor,
    max_seqlen: int,
    scale: float,
    prefix_B: torch.Tensor | None = None,
    attention=mla_attention,
) -> torch.Tensor:
    """x [T, D] -> x + attention(norm(x)), [T, D]; the other arguments as in `mla_absorbed_attention`."""
    eps, q_eps, kv_eps = weights.eps
    normed_TD = rms_norm(x_TD, weights.input_norm, eps)
    q_in = normed_TD
    if weights.q_a is not None:
        q_in = rms_norm(linear(normed_TD, weights.q_a), weights.q_norm, q_eps)
    q_THD = linear(q_in, weights.q_b).unflatten(-1, (len(weights.kv_b), -1))
    rank = weights.kv_norm.shape[0]
    latent = linear(normed_TD, weights.kv_a)
    kv_TC = rms_norm(latent[:, :rank], weights.kv_norm, kv_eps)
    out_THW = mla_absorbed_attention(
        q_THD, kv_TC, latent[:, rank:], weights.kv_b, cos_TP, sin_TP, interleave, cu_seqlens_B1, max_seqlen, scale,
        prefix_B, attention,
    )  # fmt: skip
    return x_TD + linear(out_THW.flatten(1), weights.o)
