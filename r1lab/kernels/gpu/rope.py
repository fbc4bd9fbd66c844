"""Rotary position embedding (Su et al., 2021, eq. 34): (a, b) -> (a cos - b sin, b cos + a sin) for every pair.

DeepSeek-V3 stores pairs side by side (interleaved), other models as two halves; the output is always two halves, see
`reference.rope`. A rotation's transpose is its inverse, so the backward is the same kernel with -sin, read as halves
and written in the input's layout. x may be a slice of a wider head (the rotary part of a query): it is read in place.

T = tokens, H = heads, R = rotary dimensions of a head, P = R / 2 pairs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1lab.kernels.gpu.launch import block, unit_stride, warps

_TILE = 2048
"""Elements of x a program turns."""


@triton.jit
def _load_pairs(row_ptr, mask, P, BLOCK_P: tl.constexpr, INTERLEAVED: tl.constexpr):
    """First and second members [ROWS, BLOCK_P] in fp32."""
    if INTERLEAVED:
        # One contiguous read of whole heads, taken apart in registers.
        columns = tl.arange(0, 2 * BLOCK_P)
        x = tl.load(row_ptr + columns[None, :], mask=mask & (columns < 2 * P)[None, :], other=0.0)
        first, second = tl.split(tl.reshape(x, [x.shape[0], BLOCK_P, 2]))
    else:
        columns = tl.arange(0, BLOCK_P)
        mask = mask & (columns < P)[None, :]
        first = tl.load(row_ptr + columns[None, :], mask=mask, other=0.0)
        second = tl.load(row_ptr + P + columns[None, :], mask=mask, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _store_pairs(row_ptr, first, second, mask, P, BLOCK_P: tl.constexpr, INTERLEAVED: tl.constexpr):
    if INTERLEAVED:
        columns = tl.arange(0, 2 * BLOCK_P)
        x = tl.reshape(tl.join(first, second), [first.shape[0], 2 * BLOCK_P])
        tl.store(row_ptr + columns[None, :], x, mask=mask & (columns < 2 * P)[None, :])
    else:
        columns = tl.arange(0, BLOCK_P)
        mask = mask & (columns < P)[None, :]
        tl.store(row_ptr + columns[None, :], first, mask=mask)
        tl.store(row_ptr + P + columns[None, :], second, mask=mask)


@triton.jit
def _rope_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, num_rows, H, P, stride_t, stride_h,
    READ_INTERLEAVED: tl.constexpr, WRITE_INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # one row = one head of one token
    mask = (rows < num_rows)[:, None]
    tokens, heads = rows // H, rows % H
    pairs = tl.arange(0, BLOCK_P)
    angle_mask = mask & (pairs < P)[None, :]
    angles = tokens[:, None] * P + pairs[None, :]
    cos = tl.load(cos_ptr + angles, mask=angle_mask, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angles, mask=angle_mask, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    row_ptr = x_ptr + (tokens * stride_t + heads * stride_h)[:, None]
    first, second = _load_pairs(row_ptr, mask, P, BLOCK_P, READ_INTERLEAVED)
    turned_first, turned_second = first * cos - second * sin, second * cos + first * sin
    _store_pairs(y_ptr + rows[:, None] * (2 * P), turned_first, turned_second, mask, P, BLOCK_P, WRITE_INTERLEAVED)


def rotate(x_THR: Tensor, cos_TP: Tensor, sin_TP: Tensor, interleave: bool, inverse: bool) -> Tensor:
    """Launch: x turned by the angles into halves; inverse: halves turned back into x's layout."""
    x_THR, cos_TP, sin_TP = unit_stride(x_THR), cos_TP.contiguous(), sin_TP.contiguous()
    T, H, R = x_THR.shape
    y_THR = torch.empty(x_THR.shape, dtype=x_THR.dtype, device=x_THR.device)
    if y_THR.numel():
        BLOCK_P = block(R // 2)
        rows = max(1, _TILE // (2 * BLOCK_P))
        _rope_kernel[(triton.cdiv(T * H, rows),)](
            x_THR, cos_TP, sin_TP, y_THR, T * H, H, R // 2, x_THR.stride(0), x_THR.stride(1),
            READ_INTERLEAVED=interleave and not inverse, WRITE_INTERLEAVED=interleave and inverse, INVERSE=inverse,
            ROWS=rows, BLOCK_P=BLOCK_P, num_warps=warps(rows * BLOCK_P * 2),
        )  # fmt: skip
    return y_THR


_op = torch.library.custom_op("r1lab_gpu::rope", rotate, mutates_args=())


@_op.register_fake
def _(x_THR, cos_TP, sin_TP, interleave, inverse):
    return x_THR.new_empty(x_THR.shape)


def _setup_context(ctx, inputs, output):
    _, cos, sin, ctx.interleave, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx, grad_y):
    return _op(grad_y, *ctx.saved_tensors, ctx.interleave, not ctx.inverse), None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


def rope(x_THR: Tensor, cos_TP: Tensor, sin_TP: Tensor, interleave: bool) -> Tensor:
    """As `ops.rope`, for x [T, H, R] in `launch.DTYPES`; cos and sin [T, R / 2] get no gradient."""
    return _op(x_THR, cos_TP, sin_TP, interleave, False)
