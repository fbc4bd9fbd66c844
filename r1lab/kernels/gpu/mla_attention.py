"""Causal multi-head latent attention of packed sequences (DeepSeek-V2, section 2.1, equations 17-19; naive path).

    s_tj = scale (q_nope_t . k_nope_j + q_pe_t . k_pe_j),    o_t = sum over j <= t of softmax_j(s_t) v_j

Tiles and online softmax as in FlashAttention-2 (Dao, 2023, arXiv:2307.08691, algorithms 1 and 2), with what MLA
changes: a score is the sum of two products, so query and key are never concatenated nor the shared rotary key copied
to every head; the value head has its own width. With P = exp(s - lse) and delta_t = dO_t . O_t:

    dV = P^T dO,   dS = P (dO V^T - delta),   dQ = scale dS K,   dK = scale dS^T Q,   dk_pe = sum over heads

The backward runs once per key tile (dK, dV) and once per query tile (dQ): scores are computed twice instead of adding
dQ up with atomics, so the gradients have the same bits every time.

T = tokens of all sequences, H = heads, N = nope, R = rope, W = value head width, B = sequences;
BLOCK_M = queries, BLOCK_S = keys in a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1lab.kernels.gpu.launch import block, dot_precision, has_large_tiles, unit_stride

_LOG2_E = 1.4426950408889634


@triton.jit
def _load(ptr, rows, stride, row_mask, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of a [.., SIZE] tensor as a [rows, BLOCK] tile, zeros outside."""
    columns = tl.arange(0, BLOCK)
    mask = row_mask[:, None]
    if SIZE != BLOCK:
        mask = mask & (columns < SIZE)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _store(ptr, rows, stride, row_mask, tile, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    mask = row_mask[:, None] & (columns < SIZE)[None, :]
    tl.store(ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :], tile, mask=mask)


@triton.jit
def _forward_kernel(
    q_nope_ptr, q_pe_ptr, k_nope_ptr, k_pe_ptr, v_ptr, cu_seqlens_ptr, out_ptr, lse_ptr, scale_log2, T, H,
    q_nope_t, q_nope_h, q_pe_t, q_pe_h, k_nope_t, k_nope_h, k_pe_t, v_t, v_h,
    N: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    start, end = tl.load(cu_seqlens_ptr + tl.program_id(2)), tl.load(cu_seqlens_ptr + tl.program_id(2) + 1)
    head = tl.program_id(1)
    # The last tile has the most keys to read: it starts first.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    if first >= end - start:
        return
    queries = first + tl.arange(0, BLOCK_M)
    q_mask = queries < end - start
    q_nope = _load(q_nope_ptr + head * q_nope_h, start + queries, q_nope_t, q_mask, N, BLOCK_N)
    q_pe = _load(q_pe_ptr + head * q_pe_h, start + queries, q_pe_t, q_mask, R, BLOCK_R)
    top = tl.full([BLOCK_M], -1e30, tl.float32)  # finite: the difference of two of them is no NaN
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_W], tl.float32)
    for first_key in tl.range(0, tl.minimum(first + BLOCK_M, end - start), BLOCK_S, num_stages=STAGES):
        keys = first_key + tl.arange(0, BLOCK_S)
        k_mask = keys < end - start
        k_nope = _load(k_nope_ptr + head * k_nope_h, start + keys, k_nope_t, k_mask, N, BLOCK_N)
        k_pe = _load(k_pe_ptr, start + keys, k_pe_t, k_mask, R, BLOCK_R)
        v = _load(v_ptr + head * v_h, start + keys, v_t, k_mask, W, BLOCK_W)
        scores = tl.dot(q_nope, tl.trans(k_nope), input_precision=PRECISION)
        scores = tl.dot(q_pe, tl.trans(k_pe), scores, input_precision=PRECISION) * scale_log2
        scores = tl.where(keys[None, :] <= queries[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        probs = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(probs, axis=1)
        out = tl.dot(probs.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        top = new_top
    _store(out_ptr + head * W, start + queries, H * W, q_mask, out / total[:, None], W, BLOCK_W)
    tl.store(lse_ptr + head * T + start + queries, top + tl.log2(total), mask=q_mask)


@triton.jit
def _delta_kernel(
    out_ptr, grad_out_ptr, delta_ptr, T, H, grad_t, grad_h,
    W: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    tokens, head = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.program_id(1)
    mask = tokens < T
    out = _load(out_ptr + head * W, tokens, H * W, mask, W, BLOCK_W).to(tl.float32)
    grad_out = _load(grad_out_ptr + head * grad_h, tokens, grad_t, mask, W, BLOCK_W).to(tl.float32)
    tl.store(delta_ptr + head * T + tokens, tl.sum(out * grad_out, axis=1), mask=mask)


@triton.jit
def _grad_kv_kernel(
    q_nope_ptr, q_pe_ptr, k_nope_ptr, k_pe_ptr, v_ptr, grad_out_ptr, cu_seqlens_ptr, lse_ptr, delta_ptr,
    grad_k_nope_ptr, grad_k_pe_ptr, grad_v_ptr, scale, scale_log2, T, H,
    q_nope_t, q_nope_h, q_pe_t, q_pe_h, k_nope_t, k_nope_h, k_pe_t, v_t, v_h, grad_t, grad_h,
    N: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    start, end = tl.load(cu_seqlens_ptr + tl.program_id(2)), tl.load(cu_seqlens_ptr + tl.program_id(2) + 1)
    head, first = tl.program_id(1), tl.program_id(0) * BLOCK_S
    if first >= end - start:
        return
    keys = first + tl.arange(0, BLOCK_S)
    k_mask = keys < end - start
    k_nope = _load(k_nope_ptr + head * k_nope_h, start + keys, k_nope_t, k_mask, N, BLOCK_N)
    k_pe = _load(k_pe_ptr, start + keys, k_pe_t, k_mask, R, BLOCK_R)
    v = _load(v_ptr + head * v_h, start + keys, v_t, k_mask, W, BLOCK_W)
    grad_k_nope = tl.zeros([BLOCK_S, BLOCK_N], tl.float32)
    grad_k_pe = tl.zeros([BLOCK_S, BLOCK_R], tl.float32)
    grad_v = tl.zeros([BLOCK_S, BLOCK_W], tl.float32)
    for first_query in tl.range(first // BLOCK_M * BLOCK_M, end - start, BLOCK_M, num_stages=STAGES):
        queries = first_query + tl.arange(0, BLOCK_M)
        q_mask = queries < end - start
        q_nope = _load(q_nope_ptr + head * q_nope_h, start + queries, q_nope_t, q_mask, N, BLOCK_N)
        q_pe = _load(q_pe_ptr + head * q_pe_h, start + queries, q_pe_t, q_mask, R, BLOCK_R)
        grad_out = _load(grad_out_ptr + head * grad_h, start + queries, grad_t, q_mask, W, BLOCK_W)
        lse = tl.load(lse_ptr + head * T + start + queries, mask=q_mask, other=0.0)
        delta = tl.load(delta_ptr + head * T + start + queries, mask=q_mask, other=0.0)
        # Transposed [keys, queries], so that no tile of probabilities has to be turned.
        scores = tl.dot(k_nope, tl.trans(q_nope), input_precision=PRECISION)
        scores = tl.dot(k_pe, tl.trans(q_pe), scores, input_precision=PRECISION) * scale_log2
        is_seen = (keys[:, None] <= queries[None, :]) & q_mask[None, :]
        probs = tl.where(is_seen, tl.exp2(scores - lse[None, :]), 0.0)
        grad_v = tl.dot(probs.to(v.dtype), grad_out, grad_v, input_precision=PRECISION)
        grad_probs = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
        grad_scores = (probs * (grad_probs - delta[None, :])).to(v.dtype)
        grad_k_nope = tl.dot(grad_scores, q_nope, grad_k_nope, input_precision=PRECISION)
        grad_k_pe = tl.dot(grad_scores, q_pe, grad_k_pe, input_precision=PRECISION)
    _store(grad_v_ptr + head * W, start + keys, H * W, k_mask, grad_v, W, BLOCK_W)
    _store(grad_k_nope_ptr + head * N, start + keys, H * N, k_mask, grad_k_nope * scale, N, BLOCK_N)
    _store(grad_k_pe_ptr + head * R, start + keys, H * R, k_mask, grad_k_pe * scale, R, BLOCK_R)


@triton.jit
def _grad_q_kernel(
    q_nope_ptr, q_pe_ptr, k_nope_ptr, k_pe_ptr, v_ptr, grad_out_ptr, cu_seqlens_ptr, lse_ptr, delta_ptr,
    grad_q_nope_ptr, grad_q_pe_ptr, scale, scale_log2, T, H,
    q_nope_t, q_nope_h, q_pe_t, q_pe_h, k_nope_t, k_nope_h, k_pe_t, v_t, v_h, grad_t, grad_h,
    N: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    start, end = tl.load(cu_seqlens_ptr + tl.program_id(2)), tl.load(cu_seqlens_ptr + tl.program_id(2) + 1)
    head = tl.program_id(1)
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    if first >= end - start:
        return
    queries = first + tl.arange(0, BLOCK_M)
    q_mask = queries < end - start
    q_nope = _load(q_nope_ptr + head * q_nope_h, start + queries, q_nope_t, q_mask, N, BLOCK_N)
    q_pe = _load(q_pe_ptr + head * q_pe_h, start + queries, q_pe_t, q_mask, R, BLOCK_R)
    grad_out = _load(grad_out_ptr + head * grad_h, start + queries, grad_t, q_mask, W, BLOCK_W)
    lse = tl.load(lse_ptr + head * T + start + queries, mask=q_mask, other=0.0)
    delta = tl.load(delta_ptr + head * T + start + queries, mask=q_mask, other=0.0)
    grad_q_nope = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    grad_q_pe = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for first_key in tl.range(0, tl.minimum(first + BLOCK_M, end - start), BLOCK_S, num_stages=STAGES):
        keys = first_key + tl.arange(0, BLOCK_S)
        k_mask = keys < end - start
        k_nope = _load(k_nope_ptr + head * k_nope_h, start + keys, k_nope_t, k_mask, N, BLOCK_N)
        k_pe = _load(k_pe_ptr, start + keys, k_pe_t, k_mask, R, BLOCK_R)
        v = _load(v_ptr + head * v_h, start + keys, v_t, k_mask, W, BLOCK_W)
        scores = tl.dot(q_nope, tl.trans(k_nope), input_precision=PRECISION)
        scores = tl.dot(q_pe, tl.trans(k_pe), scores, input_precision=PRECISION) * scale_log2
        probs = tl.where(keys[None, :] <= queries[:, None], tl.exp2(scores - lse[:, None]), 0.0)
        grad_probs = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
        grad_scores = (probs * (grad_probs - delta[:, None])).to(v.dtype)
        grad_q_nope = tl.dot(grad_scores, k_nope, grad_q_nope, input_precision=PRECISION)
        grad_q_pe = tl.dot(grad_scores, k_pe, grad_q_pe, input_precision=PRECISION)
    _store(grad_q_nope_ptr + head * N, start + queries, H * N, q_mask, grad_q_nope * scale, N, BLOCK_N)
    _store(grad_q_pe_ptr + head * R, start + queries, H * R, q_mask, grad_q_pe * scale, R, BLOCK_R)


def _sizes(q_nope: Tensor, q_pe: Tensor, v: Tensor) -> dict[str, int | str]:
    N, R, W = q_nope.shape[2], q_pe.shape[2], v.shape[2]
    return {
        "N": N, "R": R, "W": W, "BLOCK_N": block(N, 16), "BLOCK_R": block(R, 16), "BLOCK_W": block(W, 16),
        "PRECISION": dot_precision(),
    }  # fmt: skip


def _tiles(dtype: torch.dtype, kernel: str) -> dict[str, int]:
    """Chosen so that nothing spills for heads of 128 + 64 and 128. kernel: "forward", "grad_kv" or "grad_q"."""
    if dtype == torch.float32:
        return {"BLOCK_M": 32, "BLOCK_S": 32, "STAGES": 1, "num_warps": 4}
    if has_large_tiles():
        M, S, stages = {"forward": (128, 64, 2), "grad_kv": (64, 64, 2), "grad_q": (64, 64, 2)}[kernel]
    else:
        M, S, stages = {"forward": (128, 32, 2), "grad_kv": (64, 32, 1), "grad_q": (32, 64, 1)}[kernel]
    return {"BLOCK_M": M, "BLOCK_S": S, "STAGES": stages, "num_warps": 8}


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:-1]]


def forward(
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    k_nope_THN: Tensor,
    k_pe_TR: Tensor,
    v_THW: Tensor,
    cu_seqlens_B1: Tensor,
    max_seqlen: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Launch: out [T, H, W] and the scores' log2-sum-exp2, fp32 [H, T] (log2: the hardware's exponential is 2^x)."""
    tensors = [unit_stride(x) for x in (q_nope_THN, q_pe_THR, k_nope_THN, k_pe_TR, v_THW)]
    T, H, W = v_THW.shape
    out_THW = torch.empty(T, H, W, dtype=v_THW.dtype, device=v_THW.device)
    lse_HT = torch.empty(H, T, dtype=torch.float32, device=v_THW.device)
    if T:
        tiles = _tiles(v_THW.dtype, "forward")
        grid = (triton.cdiv(max_seqlen, tiles["BLOCK_M"]), H, cu_seqlens_B1.shape[0] - 1)
        _forward_kernel[grid](
            *tensors, cu_seqlens_B1.contiguous(), out_THW, lse_HT, scale * _LOG2_E, T, H, *_strides(*tensors),
            **_sizes(q_nope_THN, q_pe_THR, v_THW), **tiles,
        )  # fmt: skip
    return out_THW, lse_HT


def backward(
    grad_out: Tensor,
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    k_nope_THN: Tensor,
    k_pe_TR: Tensor,
    v_THW: Tensor,
    cu_seqlens_B1: Tensor,
    out_THW: Tensor,
    lse_HT: Tensor,
    max_seqlen: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch: gradients of q_nope, q_pe, k_nope, k_pe, v."""
    inputs = (q_nope_THN, q_pe_THR, k_nope_THN, k_pe_TR, v_THW)
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs]
    if v_THW.numel() == 0:
        return tuple(grads)
    tensors = [unit_stride(x) for x in (*inputs, grad_out)]
    T, H, W = v_THW.shape
    # Every head's share of the one rotary key's gradient; fp32, as they are still to be added up.
    grad_k_pe_THR = torch.empty(q_pe_THR.shape, dtype=torch.float32, device=v_THW.device)
    delta_HT, cu_seqlens = torch.empty_like(lse_HT), cu_seqlens_B1.contiguous()
    sizes = _sizes(q_nope_THN, q_pe_THR, v_THW)
    _delta_kernel[(triton.cdiv(T, 32), H)](
        out_THW, tensors[-1], delta_HT, T, H, *_strides(tensors[-1]), W=W, BLOCK_W=sizes["BLOCK_W"], BLOCK_M=32
    )
    batch = cu_seqlens_B1.shape[0] - 1
    numbers = (scale, scale * _LOG2_E, T, H, *_strides(*tensors))
    tiles = _tiles(v_THW.dtype, "grad_kv")
    _grad_kv_kernel[(triton.cdiv(max_seqlen, tiles["BLOCK_S"]), H, batch)](
        *tensors, cu_seqlens, lse_HT, delta_HT, grads[2], grad_k_pe_THR, grads[4], *numbers, **sizes, **tiles
    )
    tiles = _tiles(v_THW.dtype, "grad_q")
    _grad_q_kernel[(triton.cdiv(max_seqlen, tiles["BLOCK_M"]), H, batch)](
        *tensors, cu_seqlens, lse_HT, delta_HT, grads[0], grads[1], *numbers, **sizes, **tiles
    )
    grads[3] = grad_k_pe_THR.sum(1).to(k_pe_TR.dtype)
    return tuple(grads)


_op = torch.library.custom_op("r1lab_gpu::mla_attention", forward, mutates_args=())
_backward_op = torch.library.custom_op("r1lab_gpu::mla_attention_backward", backward, mutates_args=())


@_op.register_fake
def _(q_nope, q_pe, k_nope, k_pe, v, cu_seqlens, max_seqlen, scale):
    T, H, _ = v.shape
    return v.new_empty(v.shape), v.new_empty(H, T, dtype=torch.float32)


@_backward_op.register_fake
def _(grad_out, q_nope, q_pe, k_nope, k_pe, v, cu_seqlens, out, lse, max_seqlen, scale):
    return tuple(x.new_empty(x.shape) for x in (q_nope, q_pe, k_nope, k_pe, v))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.max_seqlen, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_lse):
    if grad_out is None:
        return (None,) * 8
    return *_backward_op(grad_out, *ctx.saved_tensors, ctx.max_seqlen, ctx.scale), None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


def mla_attention(
    q_nope_THN: Tensor,
    q_pe_THR: Tensor,
    k_nope_THN: Tensor,
    k_pe_TR: Tensor,
    v_THW: Tensor,
    cu_seqlens_B1: Tensor,
    max_seqlen: int,
    scale: float,
) -> Tensor:
    """As `ops.mla_attention`, for tensors of one dtype in `launch.DTYPES`; slices of wider heads are read in place."""
    return _op(q_nope_THN, q_pe_THR, k_nope_THN, k_pe_TR, v_THW, cu_seqlens_B1, max_seqlen, scale)[0]
