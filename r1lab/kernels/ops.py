"""The public ops. Each call picks a backend: the compiled CPU kernel for fp32 tensors on the CPU, the Triton kernel for
CUDA tensors where Triton is installed, else the reference.

T = tokens, D = hidden, E = experts, F = expert intermediate, K = experts per token, V = vocabulary. All ops but
mla_decode, sampling and those on E4M3 numbers are differentiable once (first derivatives), and go through
torch.compile, DDP and FSDP as torch.library ops; CPU kernels compute in fp32 under autocast, too. `r1lab.precision` has
the gradients of products in E4M3.
"""

import functools
import importlib.util
import os
import warnings

import torch
from torch import Tensor

from r1lab.kernels import cpu, reference
from r1lab.kernels.build import load_extension
from r1lab.kernels.reference import MlaWeights

__all__ = [
    "MlaWeights", "dequantize_tiles", "has_kernel", "linear", "mla_absorbed_attention", "mla_attention", "mla_block",
    "mla_decode", "moe_experts", "moe_gate", "moe_gate_weights", "quantize_tiles", "random_uniform", "rms_norm",
    "rope", "sampling", "scaled_gemm", "swiglu", "token_logps",
]  # fmt: skip


FEWEST_ROWS = 16
"""Of a product that is worth packing its weights."""


def has_kernel(*tensors: Tensor) -> bool:
    """Whether ops on these tensors run as a kernel, and not as the PyTorch reference."""
    return _use_cpu_kernel(*tensors) or _use_gpu_kernel(*tensors)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias; head by head where the heads have weights of their own.

    x [..., K], weight [N, K], bias [N] or None -> [..., N]; or x [T, H, K], weight [H, N, K], no bias -> [T, H, N].
    The CPU kernel adds up in the rollout's order, about as fast as MKL; it is left out below FEWEST_ROWS rows, where
    packing the weights would take longer than the product. On a GPU this is cuBLAS.
    Raises ValueError when the shapes do not fit.
    """
    _check_linear(x, weight, bias)
    num_rows = x.shape[:-1].numel() if weight.dim() == 2 else len(x)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if num_rows >= FEWEST_ROWS and _use_cpu_kernel(*tensors):
        return cpu.linear(x, weight, bias)
    return reference.linear(x, weight, bias)


def mla_attention(
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    k_nope_THN: Tensor,
    k_pe_TR: Tensor,
    v_THW: Tensor,
    cu_seqlens_B1: Tensor,
    max_seqlen: int,
    scale: float,
    prefix_B: Tensor | None = None,
) -> Tensor:
    """Causal attention over expanded MLA heads within each of several sequences (DeepSeek-V2 report, eq. 17-19).

    T = tokens of all sequences, H = heads, N, R = sizes of a key's two parts, W = a value's size, B = sequences.
    q_nope, k_nope: [T, H, N]; q_pe: [T, H, R]; k_pe: [T, R], shared by the heads; v: [T, H, W]; any strides.
    cu_seqlens: int32 [B + 1], from 0 to T, sequence b is rows cu_seqlens[b] .. cu_seqlens[b + 1] - 1; max_seqlen: the
    longest one's length, its prefix included. prefix: int32 [B], the number of an earlier sequence, without a prefix
    itself, whose tokens come before those of sequence b (each of which sees all of them), -1 for none; None: no
    sequence has one. Returns [T, H, W].
    Raises ValueError on shapes, sequence bounds or prefixes that do not fit.
    """
    _check_attention(q_nope_THN, q_pe_THR, k_nope_THN, k_pe_TR, v_THW, cu_seqlens_B1)
    _check_prefixes(prefix_B, cu_seqlens_B1)
    tensors = (q_nope_THN, q_pe_THR, k_nope_THN, k_pe_TR, v_THW)
    if _use_cpu_kernel(*tensors):
        prefix_B = _given_prefixes(prefix_B, cu_seqlens_B1)
        return cpu.mla_attention(*tensors, cu_seqlens_B1, prefix_B, scale)[0]
    if _use_gpu_kernel(*tensors):
        if prefix_B is None:
            return _gpu().mla_attention(*tensors, cu_seqlens_B1, max_seqlen, scale)
        return _attention_with_copies(_gpu().mla_attention, tensors, cu_seqlens_B1, max_seqlen, scale, prefix_B)
    return reference.mla_attention(*tensors, cu_seqlens_B1, max_seqlen, scale, prefix_B)


def _attention_with_copies(
    attention, tensors: tuple[Tensor, ...], cu_seqlens_B1: Tensor, max_seqlen: int, scale: float, prefix_B: Tensor
) -> Tensor:
    """A kernel that knows no prefixes, on sequences each of which holds a copy of its own; exact, gradients too."""
    starts_B, lengths_B = cu_seqlens_B1[:-1].long(), cu_seqlens_B1.diff().long()
    parent_B = prefix_B.clamp(min=0).long()
    before_B = lengths_B[parent_B] * (prefix_B >= 0)
    cu_seqlens = torch.cat([cu_seqlens_B1[:1].long(), (before_B + lengths_B).cumsum(0)])
    sequence_S = torch.repeat_interleave(torch.arange(len(starts_B), device=starts_B.device), before_B + lengths_B)
    place_S = torch.arange(len(sequence_S), device=starts_B.device) - cu_seqlens[sequence_S]
    own_place_S = place_S - before_B[sequence_S]
    is_copy_S = own_place_S < 0
    first_S = torch.where(is_copy_S, starts_B[parent_B][sequence_S], starts_B[sequence_S])
    source_S = first_S + torch.where(is_copy_S, place_S, own_place_S)
    copies = (x.index_select(0, source_S) for x in tensors)
    return attention(*copies, cu_seqlens.int(), max_seqlen, scale)[~is_copy_S]


def mla_absorbed_attention(
    q_THD: Tensor,
    kv_TC: Tensor,
    k_pe_TR: Tensor,
    kv_b_HEC: Tensor,
    cos_TP: Tensor,
    sin_TP: Tensor,
    interleave: bool,
    cu_seqlens_B1: Tensor,
    max_seqlen: int,
    scale: float,
    prefix_B: Tensor | None = None,
) -> Tensor:
    """`mla_attention` over the latents, without expanding them (DeepSeek-V2 report, section 2.1.2), rotary embedding
    included: on a CPU bit for bit what a decode step computes.

    q: [T, H, N + R] and k_pe: [T, R], not rotated yet; kv: [T, C], normed latents; kv_b: [H, N + W, C], a head's
    weights of keys, then of values; cos, sin: [T, R / 2], the tokens' angles, without gradient; interleave: as in
    `rope`; the rest as in `mla_attention`. Returns [T, H, W].
    Raises ValueError on shapes, sequence bounds or prefixes that do not fit.
    """
    T, H, D = q_THD.shape
    (C, R), nope_dim = (kv_TC.shape[-1], k_pe_TR.shape[-1]), q_THD.shape[-1] - k_pe_TR.shape[-1]
    latents_THC = kv_TC.unsqueeze(1).expand(-1, H, -1)
    _check_attention(
        q_THD.new_empty(1).expand(T, H, C), q_THD[..., nope_dim:], latents_THC, k_pe_TR, latents_THC, cu_seqlens_B1
    )
    _check_prefixes(prefix_B, cu_seqlens_B1)
    is_angle = cos_TP.shape == sin_TP.shape == (T, R // 2) and R % 2 == 0
    if not is_angle or kv_b_HEC.shape[::2] != (H, C) or not 0 < nope_dim < kv_b_HEC.shape[1]:
        raise ValueError(
            f"q_THD has shape {(T, H, D)}, k_pe_TR {tuple(k_pe_TR.shape)}, kv_b_HEC {tuple(kv_b_HEC.shape)}, cos_TP "
            f"{tuple(cos_TP.shape)}, sin_TP {tuple(sin_TP.shape)}: expected [T, H, N + R], [T, R], [H, N + W, C={C}], "
            "[T, R / 2] twice, R even"
        )
    tensors = (q_THD, kv_TC, k_pe_TR, kv_b_HEC, cos_TP, sin_TP)
    if _use_cpu_kernel(*tensors):
        prefix_B = _given_prefixes(prefix_B, cu_seqlens_B1)
        return cpu.mla_absorbed_attention(*tensors, interleave, cu_seqlens_B1, prefix_B, scale)[0]
    rest = (interleave, cu_seqlens_B1, max_seqlen, scale, prefix_B)
    return reference.mla_absorbed_attention(*tensors, *rest, attention=mla_attention)


def mla_block(
    x_TD: Tensor,
    weights: MlaWeights,
    cos_TP: Tensor,
    sin_TP: Tensor,
    interleave: bool,
    cu_seqlens_B1: Tensor,
    max_seqlen: int,
    scale: float,
    prefix_B: Tensor | None = None,
) -> Tensor:
    """x + attention(norm(x)): the attention half of a pre-norm block, [T, D] -> [T, D] (DeepSeek-V2 report, eq. 37-47).

    The same numbers as its parts one by one, as one node of autograd that keeps less; see `reference.mla_block`, and
    `mla_absorbed_attention` for the arguments.
    Raises ValueError on weights, sequence bounds, prefixes or angles that do not fit.
    """
    T, R = len(x_TD), weights.kv_a.shape[0] - weights.kv_norm.shape[0]
    _check_block(x_TD, weights)
    _check_bounds(cu_seqlens_B1, T)
    _check_prefixes(prefix_B, cu_seqlens_B1)
    if not cos_TP.shape == sin_TP.shape == (T, R // 2):
        raise ValueError(
            f"cos_TP has shape {tuple(cos_TP.shape)}, sin_TP {tuple(sin_TP.shape)}: expected [T, R / 2]={T, R // 2}"
        )
    parts = (weights.q_a, weights.q_norm, weights.q_b, weights.kv_a, weights.kv_norm, weights.kv_b, weights.o)
    tensors = (x_TD, weights.input_norm, cos_TP, sin_TP, *(part for part in parts if part is not None))
    if not _use_cpu_kernel(*tensors):
        rest = (cos_TP, sin_TP, interleave, cu_seqlens_B1, max_seqlen, scale, prefix_B)
        return reference.mla_block(x_TD, weights, *rest, attention=mla_attention)
    prefix_B = _given_prefixes(prefix_B, cu_seqlens_B1)
    rest = (cos_TP, sin_TP, cu_seqlens_B1, prefix_B, interleave, scale, *weights.eps)
    return cpu.mla_block(x_TD, weights.input_norm, *parts, *rest)[0]


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich, 2019, eq. 4).

    x_TD: [..., D], any leading dimensions; weight_D: [D]. Returns the shape of x.
    Raises ValueError when the shapes do not fit.
    """
    if x_TD.dim() < 1 or weight_D.shape != x_TD.shape[-1:]:
        raise ValueError(f"weight_D has shape {tuple(weight_D.shape)}, x_TD {tuple(x_TD.shape)}: expected weight_D [D]")
    if _use_cpu_kernel(x_TD, weight_D) and x_TD.shape[-1] > 0:
        return cpu.rms_norm(x_TD, weight_D, eps)[0]
    if _use_gpu_kernel(x_TD, weight_D) and x_TD.shape[-1] > 0:
        return _gpu().rms_norm(x_TD, weight_D, eps)
    return reference.rms_norm(x_TD, weight_D, eps)


def moe_gate(
    logits_TE: Tensor,
    bias_E: Tensor,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[Tensor, Tensor]:
    """Choose and weigh K experts a token (DeepSeek-V3 report, equations 12-16; transformers' DeepseekV3TopkRouter).

    logits_TE: [T, E]; bias_E: [E], added to the scores for the choice only and given no gradient. The choice is made
    among the topk_group best of n_group equal groups. Returns topk_idx [T, K] int64, best first, and topk_weights
    [T, K], whose gradient flows to the logits.
    Raises ValueError on shapes or counts that do not fit.
    """
    _check_gate(logits_TE, bias_E, n_group, topk_group, top_k)
    args = (logits_TE, bias_E, n_group, topk_group, top_k, norm_topk_prob, routed_scaling_factor)
    if _use_cpu_kernel(logits_TE, bias_E):
        topk_weights_TK, topk_idx_TK = cpu.moe_gate(*args)
        return topk_idx_TK, topk_weights_TK
    if _use_gpu_kernel(logits_TE):
        return _gpu().moe_gate(*args)
    return reference.moe_gate(*args)


def moe_gate_weights(
    logits_TE: Tensor, topk_idx_TK: Tensor, norm_topk_prob: bool, routed_scaling_factor: float
) -> Tensor:
    """Weigh K given experts a token as `moe_gate` weighs those that it chooses (DeepSeek-V3 report, equations 13, 15).

    logits_TE: [T, E]; topk_idx_TK: [T, K] int64 in 0..E-1. Returns topk_weights [T, K], whose gradient flows to the
    logits. On a GPU the reference serves: it is a lookup, and off by default (Rollout Routing Replay).
    Raises ValueError on shapes, dtypes or expert numbers that do not fit.
    """
    if logits_TE.dim() != 2 or topk_idx_TK.dim() != 2 or len(topk_idx_TK) != len(logits_TE):
        raise ValueError(
            f"logits_TE has shape {tuple(logits_TE.shape)}, topk_idx_TK {tuple(topk_idx_TK.shape)}: expected [T, E] "
            "and [T, K]"
        )
    if topk_idx_TK.dtype != torch.int64:
        raise ValueError(f"topk_idx_TK is {topk_idx_TK.dtype}: expected torch.int64")
    _check_range("topk_idx_TK", topk_idx_TK, logits_TE.shape[1])
    if _use_cpu_kernel(logits_TE):
        return cpu.moe_gate_weights(logits_TE, topk_idx_TK, norm_topk_prob, routed_scaling_factor)
    return reference.moe_gate_weights(logits_TE, topk_idx_TK, norm_topk_prob, routed_scaling_factor)


def moe_experts(
    x_TD: Tensor, topk_idx_TK: Tensor, topk_weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Weighted sum of each token's K SwiGLU experts (DeepSeek-V3 report, equation 12, without the shared experts).

    x_TD: [T, D]; topk_idx_TK: [T, K] int64 in 0..E-1; topk_weights_TK: [T, K]; gate_up_E2FD: [E, 2F, D], an expert's
    first F rows are gate, the last F up; down_EDF: [E, D, F]. Returns y [T, D].
    Raises ValueError on shapes, dtypes or expert numbers that do not fit.
    """
    _check_experts(x_TD, topk_idx_TK, topk_weights_TK, gate_up_E2FD, down_EDF)
    floats = (x_TD, topk_weights_TK, gate_up_E2FD, down_EDF)
    if _use_cpu_kernel(*floats):
        return cpu.moe_experts(x_TD, topk_idx_TK, topk_weights_TK, gate_up_E2FD, down_EDF)
    if _use_gpu_kernel(x_TD, gate_up_E2FD, down_EDF):
        return _gpu().moe_experts(x_TD, topk_idx_TK, topk_weights_TK, gate_up_E2FD, down_EDF)
    _check_range("topk_idx_TK", topk_idx_TK, gate_up_E2FD.shape[0])
    return reference.moe_experts(x_TD, topk_idx_TK, topk_weights_TK, gate_up_E2FD, down_EDF)


def swiglu(x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """A dense feed-forward, down(silu(gate(x)) * up(x)) (Shazeer, 2020, eq. 6), or the shared experts side by side.

    x: [..., D]; gate_FD, up_FD: [F, D]; down_DF: [D, F]. Returns the shape of x. The CPU kernel is that of the routed
    experts, with one that every row chooses: it keeps nothing but its inputs for the backward, where autograd would
    keep 4F numbers a row. On a GPU these are cuBLAS's products.
    Raises ValueError when the shapes do not fit.
    """
    F, D = gate_FD.shape
    if up_FD.shape != (F, D) or down_DF.shape != (D, F) or x.shape[-1:] != (D,):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, gate_FD {(F, D)}, up_FD {tuple(up_FD.shape)}, down_DF "
            f"{tuple(down_DF.shape)}: expected [..., D], [F, D], [F, D] and [D, F]"
        )
    num_rows = x.shape[:-1].numel()
    if num_rows < FEWEST_ROWS or not _use_cpu_kernel(x, gate_FD, up_FD, down_DF):
        return reference.swiglu(x, gate_FD, up_FD, down_DF)
    return cpu.swiglu(x, gate_FD, up_FD, down_DF)


def token_logps(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p[target] and entropy, in nats, of p = softmax(hidden @ head.T / temperature).

    hidden_TD: [T, D]; head_VD: [V, D]; targets_T: [T] int64 in 0..V-1; temperature > 0. Returns logps [T] and
    entropy [T]; entropy carries no gradient. The kernels never hold all the logits.
    Raises ValueError on shapes, dtypes, targets or a temperature that do not fit.
    """
    _check_logps(hidden_TD, head_VD, targets_T, temperature)
    if _use_cpu_kernel(hidden_TD, head_VD):
        logps, entropy, _ = cpu.token_logps(hidden_TD, head_VD, targets_T, temperature)
        return logps, entropy
    if _use_gpu_kernel(hidden_TD, head_VD):
        return _gpu().token_logps(hidden_TD, head_VD, targets_T, temperature)
    _check_range("targets_T", targets_T, head_VD.shape[0])
    return reference.token_logps(hidden_TD, head_VD, targets_T, temperature)


def rope(x_THR: Tensor, cos_TP: Tensor, sin_TP: Tensor, interleave: bool) -> Tensor:
    """Rotary position embedding of heads (Su et al., 2021, eq. 34); see `reference.rope` for the two layouts.

    x_THR: [T, H, R], R even; cos_TP, sin_TP: [T, R / 2], without gradient. Returns [T, H, R] as two halves.
    Raises ValueError when the shapes do not fit.
    """
    if x_THR.dim() != 3 or x_THR.shape[2] % 2 or not cos_TP.shape == sin_TP.shape == (len(x_THR), x_THR.shape[2] // 2):
        raise ValueError(
            f"x_THR has shape {tuple(x_THR.shape)}, cos_TP {tuple(cos_TP.shape)}, sin_TP {tuple(sin_TP.shape)}: "
            "expected [T, H, R] with R even, and [T, R / 2] twice"
        )
    if _use_gpu_kernel(x_THR):
        return _gpu().rope(x_THR, cos_TP, sin_TP, interleave)
    return reference.rope(x_THR, cos_TP, sin_TP, interleave)


def mla_decode(
    q_latent_BHC: Tensor,
    q_pe_BHR: Tensor,
    kv_cache_NSC: Tensor,
    pe_cache_NSR: Tensor,
    block_table_BP: Tensor,
    lengths_B: Tensor,
    scale: float,
) -> Tensor:
    """One decode step of absorbed latent attention over a paged cache (DeepSeek-V2 report, section 2.1.2); no gradient.

    q_latent: [B, H, C]; q_pe: [B, H, R]; kv_cache: [pages, page size, C]; pe_cache: [pages, page size, R];
    block_table: int32 [B, P], the pages of each row in order; lengths: int32 [B], tokens a row sees, at most P * page
    size; 0 gives zeros. Returns the weighted sums of latents [B, H, C].
    Raises ValueError when the shapes do not fit.
    """
    args = (q_latent_BHC, q_pe_BHR, kv_cache_NSC, pe_cache_NSR, block_table_BP, lengths_B)
    (B, H, C), R, pages = q_latent_BHC.shape, q_pe_BHR.shape[-1], tuple(kv_cache_NSC.shape[:2])
    expected = [(B, H, C), (B, H, R), (*pages, C), (*pages, R), (B, block_table_BP.shape[-1]), (B,)]
    if [tuple(arg.shape) for arg in args] != expected:
        raise ValueError(
            "q_latent, q_pe, kv_cache, pe_cache, block_table, lengths have shapes "
            f"{[tuple(arg.shape) for arg in args]}: expected {expected}"
        )
    op = _gpu().mla_decode if _use_gpu_kernel(*args[:4]) else reference.mla_decode
    return op(*args, scale)


def sampling(
    logits_BV: Tensor,
    uniform_B: Tensor,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    banned_V: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose a token per row by inverse CDF, after temperature, top_k and top_p; see `reference.sampling` for the rule.

    logits_BV: [B, V]; uniform_B: float64 [B] in [0, 1); temperature 0: the likeliest; top_k 0: all; banned_V: bool [V],
    tokens never chosen. Returns tokens int64 [B] and logps fp32 [B], in nats over the full vocabulary.
    Raises ValueError on shapes or settings that do not fit.
    """
    if logits_BV.dim() != 2 or uniform_B.shape != logits_BV.shape[:1]:
        given = f"logits_BV has shape {tuple(logits_BV.shape)}, uniform_B {tuple(uniform_B.shape)}"
        raise ValueError(f"{given}: expected [B, V] and [B]")
    if banned_V is not None and banned_V.shape != logits_BV.shape[1:]:
        raise ValueError(f"banned_V has shape {tuple(banned_V.shape)}: expected [V], V={logits_BV.shape[1]}")
    if not temperature >= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: expected temperature >= 0, top_k >= 0, "
            "0 < top_p <= 1"
        )
    op = _gpu().sampling if _use_gpu_kernel(logits_BV) else reference.sampling
    return op(logits_BV, uniform_B, temperature, top_k, top_p, banned_V)


def random_uniform(stream_B: Tensor, index_B: Tensor) -> Tensor:
    """Number `index` of each random `stream`, both int64 [B]: float64 [B] in [0, 1), the same bits on every device."""
    if stream_B.device.type == "cuda" and _is_triton_usable():
        return _gpu().random_uniform(stream_B, index_B)
    return reference.random_uniform(stream_B, index_B)


def quantize_tiles(x_MK: Tensor, tile_rows: int, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Tile-wise quantisation to E4M3 (DeepSeek-V3 report, section 3.3.2); see `reference.quantize_tiles` for the rule.

    x: [M, K], any strides; tile_rows: 1 for 1x128 tiles (activations, gradients), 128 for 128x128 blocks (weights).
    Returns q E4M3 [M, K] and scale fp32 [ceil(M / tile_rows), ceil(K / 128)]; tiles at the edges may be smaller.
    Raises ValueError on another number of dimensions or of rows, TypeError when x is not a floating-point tensor.
    """
    if x_MK.dim() != 2:
        raise ValueError(f"x_MK has shape {tuple(x_MK.shape)}: expected [M, K]; flatten the leading dimensions")
    if tile_rows not in (1, reference.TILE):
        raise ValueError(f"tile_rows={tile_rows}: expected 1 or {reference.TILE}")
    if not x_MK.is_floating_point() or x_MK.dtype.itemsize < 2:
        raise TypeError(f"x_MK is {x_MK.dtype}: expected float32, bfloat16 or float16")
    if _use_cpu_kernel(x_MK):
        return cpu.quantize_tiles(x_MK, tile_rows, power_of_two)
    if _use_e4m3_kernel(x_MK):
        return _gpu().quantize_tiles(x_MK, tile_rows, power_of_two)
    return reference.quantize_tiles(x_MK, tile_rows, power_of_two)


def dequantize_tiles(q_MK: Tensor, scale: Tensor, tile_rows: int) -> Tensor:
    """q * scale, fp32 [M, K], for what `quantize_tiles` returned.

    Raises ValueError or TypeError when scale or the dtypes do not fit.
    """
    _check_tiles("q_MK", q_MK, "scale", scale, (tile_rows,))
    if _use_cpu_kernel(scale):
        return cpu.dequantize_tiles(q_MK, scale, tile_rows)
    return reference.dequantize_tiles(q_MK, scale, tile_rows)


def scaled_gemm(a_MK: Tensor, a_scale_MG: Tensor, b_NK: Tensor, b_scale: Tensor) -> Tensor:
    """a @ b.T of two matrices in E4M3 with their scales, fp32 [M, N] (DeepSeek-V3 report, section 3.3.2).

    a [M, K] has scales of 1x128 tiles, [M, ceil(K / 128)]; b [N, K] those of 1x128 tiles or of 128x128 blocks,
    [ceil(N / 128), ceil(K / 128)]. Sums are fp32, promoted every 128 of K; see `reference.scaled_gemm`.
    Raises ValueError on shapes, TypeError on dtypes that do not fit.
    """
    _check_tiles("a_MK", a_MK, "a_scale_MG", a_scale_MG, (1,))
    _check_tiles("b_NK", b_NK, "b_scale", b_scale, (1, reference.TILE))
    if a_MK.shape[1] != b_NK.shape[1]:
        raise ValueError(f"a_MK has shape {tuple(a_MK.shape)}, b_NK {tuple(b_NK.shape)}: expected the same K")
    if _use_cpu_kernel(a_scale_MG, b_scale):
        return cpu.scaled_gemm(a_MK, a_scale_MG, b_NK, b_scale)
    if _use_e4m3_kernel(a_MK, b_NK):
        return _gpu().scaled_gemm(a_MK, a_scale_MG, b_NK, b_scale)
    return reference.scaled_gemm(a_MK, a_scale_MG, b_NK, b_scale)


@torch.compiler.assume_constant_result
def _is_extension_loaded() -> bool:
    return load_extension()


def _use_cpu_kernel(*tensors: Tensor) -> bool:
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return False
    return _is_extension_loaded()


def _gpu():
    from r1lab.kernels import gpu  # needs Triton, and takes a second

    return gpu


@torch.compiler.assume_constant_result
@functools.cache
def _is_triton_usable() -> bool:
    if os.environ.get("R1LAB_KERNELS") == "reference":
        return False
    if importlib.util.find_spec("triton") is None:
        warnings.warn("r1lab: Triton is not installed, using the slower PyTorch reference on the GPU", stacklevel=2)
        return False
    return True


def _use_gpu_kernel(*tensors: Tensor) -> bool:
    for tensor in tensors:
        if tensor.device.type != "cuda":
            return False
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) == 1 and dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        return _is_triton_usable()
    if not torch.compiler.is_compiling():
        _warn_of_reference(" and ".join(sorted(str(dtype) for dtype in dtypes)))
    return False


def _use_e4m3_kernel(*tensors: Tensor) -> bool:
    """Tensor cores multiply E4M3 numbers from compute capability 8.9 on."""
    if any(tensor.device.type != "cuda" for tensor in tensors) or not _is_triton_usable():
        return False
    return torch.cuda.get_device_capability(tensors[0].device) >= (8, 9)


@functools.cache
def _warn_of_reference(dtypes: str) -> None:
    warnings.warn(f"r1lab: no GPU kernel for {dtypes} in one call, using the slower PyTorch reference", stacklevel=3)


def _check_range(name: str, values: Tensor, end: int) -> None:
    if values.numel() == 0 or values.device.type != "cpu":  # on an accelerator the indexing itself asserts
        return
    low, high = (value.item() for value in values.aminmax())
    if low < 0 or high >= end:
        raise ValueError(f"{name} holds {low if low < 0 else high}; expected 0..{end - 1}")


def _check_tiles(name: str, q_MK: Tensor, scale_name: str, scale: Tensor, tile_rows: tuple[int, ...]) -> None:
    if q_MK.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(q_MK.shape)}: expected two dimensions")
    if q_MK.dtype != torch.float8_e4m3fn or scale.dtype != torch.float32:
        raise TypeError(f"{name} is {q_MK.dtype}, {scale_name} {scale.dtype}: expected float8_e4m3fn and float32")
    M, K = q_MK.shape
    expected = [(-(-M // rows), -(-K // reference.TILE)) for rows in tile_rows]
    if tuple(scale.shape) not in expected:
        raise ValueError(
            f"{scale_name} has shape {tuple(scale.shape)}: expected {' or '.join(map(str, expected))}, one scale for "
            f"each tile of {name} {tuple(q_MK.shape)}"
        )


def _check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    fits = x.dim() >= 1 and weight.dim() in (2, 3) and x.shape[-1] == weight.shape[-1]
    if fits and weight.dim() == 3:
        fits = x.dim() == 3 and x.shape[1] == weight.shape[0] and bias is None
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, weight {tuple(weight.shape)}, bias "
            f"{None if bias is None else tuple(bias.shape)}: expected [..., K], [N, K] and [N] or None; or [T, H, K], "
            "[H, N, K] and None"
        )


def _check_attention(
    q_nope_THN: Tensor, q_pe_THR: Tensor, k_nope_THN: Tensor, k_pe_TR: Tensor, v_THW: Tensor, cu_seqlens_B1: Tensor
) -> None:
    T, H, N = q_nope_THN.shape
    R, W = q_pe_THR.shape[-1], v_THW.shape[-1]
    expected = {
        "q_pe_THR": (q_pe_THR, (T, H, R)), "k_nope_THN": (k_nope_THN, (T, H, N)), "k_pe_TR": (k_pe_TR, (T, R)),
        "v_THW": (v_THW, (T, H, W)),
    }  # fmt: skip
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            given = tuple(q_nope_THN.shape)
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {shape} beside q_nope_THN {given}")
    _check_bounds(cu_seqlens_B1, T)


def _check_block(x_TD: Tensor, weights: MlaWeights) -> None:
    (H, E, C), D, q_size = weights.kv_b.shape, x_TD.shape[-1], weights.q_b.shape[0]
    Q, R = (D if weights.q_a is None else weights.q_a.shape[0]), weights.kv_a.shape[0] - C
    N = q_size // H - R
    expected = {
        "input_norm": (D,), "q_a": (Q, D), "q_norm": (Q,), "q_b": (H * (N + R), Q), "kv_a": (C + R, D),
        "kv_norm": (C,), "o": (D, H * (E - N)),
    }  # fmt: skip
    given = {name: getattr(weights, name) for name in expected}
    shapes = {name: None if part is None else tuple(part.shape) for name, part in given.items()}
    fits = all(shape is None or shape == expected[name] for name, shape in shapes.items())
    if not fits or min(N, E - N, R) < 1 or R % 2 or (weights.q_a is None) != (weights.q_norm is None):
        raise ValueError(
            f"x_TD has shape {tuple(x_TD.shape)}, kv_b {(H, E, C)}, the other weights {shapes}: they do not fit; see "
            "MlaWeights, and q_a and q_norm come together, R is even"
        )


def _check_bounds(cu_seqlens_B1: Tensor, T: int) -> None:
    if cu_seqlens_B1.dtype != torch.int32 or cu_seqlens_B1.dim() != 1:
        raise ValueError(f"cu_seqlens_B1 is {cu_seqlens_B1.dtype} {tuple(cu_seqlens_B1.shape)}: expected int32 [B + 1]")
    if cu_seqlens_B1.device.type == "cpu":
        bounds = cu_seqlens_B1.tolist()
        if not bounds or bounds[0] != 0 or bounds[-1] != T or sorted(bounds) != bounds:
            raise ValueError(f"cu_seqlens_B1 goes {bounds[:3]} ... {bounds[-2:]}: expected 0, rising to T={T}")


def _check_prefixes(prefix_B: Tensor | None, cu_seqlens_B1: Tensor) -> None:
    if prefix_B is None:
        return
    if prefix_B.dtype != torch.int32 or prefix_B.shape != cu_seqlens_B1[1:].shape:
        raise ValueError(
            f"prefix_B is {prefix_B.dtype} {tuple(prefix_B.shape)}: expected int32 [B], B={len(cu_seqlens_B1) - 1}"
        )
    if prefix_B.device.type == "cpu":
        prefixes = prefix_B.tolist()
        for b, prefix in enumerate(prefixes):
            if not -1 <= prefix < b or (prefix >= 0 and prefixes[prefix] >= 0):
                raise ValueError(
                    f"prefix_B[{b}]={prefix}: expected -1, or an earlier sequence that has no prefix itself"
                )


def _given_prefixes(prefix_B: Tensor | None, cu_seqlens_B1: Tensor) -> Tensor:
    """As the CPU kernels take them: -1 for none."""
    return torch.full_like(cu_seqlens_B1[1:], -1) if prefix_B is None else prefix_B


def _check_gate(logits_TE: Tensor, bias_E: Tensor, n_group: int, topk_group: int, top_k: int) -> None:
    if logits_TE.dim() != 2 or bias_E.shape != logits_TE.shape[1:]:
        raise ValueError(
            f"logits_TE has shape {tuple(logits_TE.shape)}, bias_E {tuple(bias_E.shape)}: expected [T, E] and [E]"
        )
    num_experts = logits_TE.shape[1]
    if n_group < 1 or num_experts % n_group:
        raise ValueError(f"n_group={n_group} does not divide the {num_experts} experts into equal groups")
    if not 1 <= topk_group <= n_group:
        raise ValueError(f"topk_group={topk_group}: expected 1..n_group={n_group}")
    most = topk_group * (num_experts // n_group)
    if not 1 <= top_k <= most:
        raise ValueError(f"top_k={top_k}: expected 1..{most}, the experts in topk_group={topk_group} groups")


def _check_experts(
    x_TD: Tensor, topk_idx_TK: Tensor, topk_weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> None:
    if x_TD.dim() != 2:
        raise ValueError(f"x_TD has shape {tuple(x_TD.shape)}: expected [T, D]; flatten the leading dimensions")
    if topk_idx_TK.dim() != 2 or topk_idx_TK.shape[0] != x_TD.shape[0] or topk_idx_TK.shape[1] < 1:
        raise ValueError(
            f"topk_idx_TK has shape {tuple(topk_idx_TK.shape)}: expected [T, K], T={x_TD.shape[0]}, K >= 1"
        )
    if topk_weights_TK.shape != topk_idx_TK.shape:
        raise ValueError(
            f"topk_weights_TK has shape {tuple(topk_weights_TK.shape)}, topk_idx_TK {tuple(topk_idx_TK.shape)}: "
            "expected the same"
        )
    if topk_idx_TK.dtype != torch.int64:
        raise ValueError(f"topk_idx_TK is {topk_idx_TK.dtype}: expected torch.int64")
    if down_EDF.dim() != 3 or down_EDF.shape[1] != x_TD.shape[1]:
        raise ValueError(f"down_EDF has shape {tuple(down_EDF.shape)}: expected [E, D, F], D={x_TD.shape[1]}")
    num_experts, hidden_size, intermediate_size = down_EDF.shape
    expected = (num_experts, 2 * intermediate_size, hidden_size)
    if gate_up_E2FD.shape != expected:
        raise ValueError(f"gate_up_E2FD has shape {tuple(gate_up_E2FD.shape)}: expected {expected}, from down_EDF")
    if not x_TD.dtype == gate_up_E2FD.dtype == down_EDF.dtype:
        raise ValueError(
            f"x_TD is {x_TD.dtype}, gate_up_E2FD {gate_up_E2FD.dtype}, down_EDF {down_EDF.dtype}: expected the same"
        )


def _check_logps(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, temperature: float) -> None:
    if hidden_TD.dim() != 2 or head_VD.dim() != 2 or hidden_TD.shape[1] != head_VD.shape[1]:
        raise ValueError(
            f"hidden_TD has shape {tuple(hidden_TD.shape)}, head_VD {tuple(head_VD.shape)}: expected [T, D] and [V, D]"
        )
    if targets_T.shape != hidden_TD.shape[:1]:
        raise ValueError(f"targets_T has shape {tuple(targets_T.shape)}: expected [T], T={hidden_TD.shape[0]}")
    if targets_T.dtype != torch.int64:
        raise ValueError(f"targets_T is {targets_T.dtype}: expected torch.int64")
    if hidden_TD.dtype != head_VD.dtype:
        raise ValueError(f"hidden_TD is {hidden_TD.dtype}, head_VD {head_VD.dtype}: expected the same")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected more than 0; greedy decoding has no log-probabilities")
