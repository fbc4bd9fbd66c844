"""RMSNorm: y = weight * x / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019, eq. 4).

With r = 1 / sqrt(mean(x^2) + eps), x' = r x and g = weight * dy:
    dx = r (g - x' mean(g x')),    dweight = sum over tokens of dy x'.

One tile holds whole rows, so x is read once in each direction. dweight goes through one partial sum per program, added
up in a fixed order: no atomics, the same bits every time.

T = tokens, D = hidden, P = programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1lab.kernels.gpu.launch import block, rows_of, warps

_TILE = 2048
"""Elements of a tile when rows are short."""
_BACKWARD_PROGRAMS = 264
"""Twice an H100's 132 multiprocessors; fixed, so that dweight does not depend on the card."""


@triton.jit
def _forward_kernel(
    x_ptr, weight_ptr, y_ptr, inverse_rms_ptr, num_rows, D, x_stride, eps, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    mask = (rows < num_rows)[:, None] & (columns < D)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
    x_fp32 = x.to(tl.float32)
    inverse_rms = 1.0 / tl.sqrt(tl.sum(x_fp32 * x_fp32, axis=1) / D + eps)
    # Rounded to the input's type before the weight, as the reference (and transformers) does.
    normed = (x_fp32 * inverse_rms[:, None]).to(x.dtype).to(tl.float32)
    tl.store(y_ptr + rows[:, None] * D + columns[None, :], weight[None, :] * normed, mask=mask)
    tl.store(inverse_rms_ptr + rows, inverse_rms, mask=rows < num_rows)


@triton.jit
def _backward_kernel(
    grad_y_ptr, x_ptr, weight_ptr, inverse_rms_ptr, grad_x_ptr, partial_ptr,
    num_rows, D, grad_stride, x_stride, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK_D], tl.float32)
    step = tl.num_programs(0) * ROWS
    for first in range(tl.program_id(0) * ROWS, num_rows, step):
        rows = (first + tl.arange(0, ROWS)).to(tl.int64)
        mask = (rows < num_rows)[:, None] & (columns < D)[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        grad_y = tl.load(grad_y_ptr + rows[:, None] * grad_stride + columns[None, :], mask=mask, other=0.0)
        grad_y = grad_y.to(tl.float32)
        inverse_rms = tl.load(inverse_rms_ptr + rows, mask=rows < num_rows, other=0.0)
        normed = x * inverse_rms[:, None]
        weighted = grad_y * weight[None, :]
        along = tl.sum(weighted * normed, axis=1) / D
        grad_x = (weighted - normed * along[:, None]) * inverse_rms[:, None]
        tl.store(grad_x_ptr + rows[:, None] * D + columns[None, :], grad_x, mask=mask)
        grad_weight += tl.sum(grad_y * normed, axis=0)
    tl.store(partial_ptr + tl.program_id(0) * D + columns, grad_weight, mask=columns < D)


def _tile(D: int) -> dict[str, int]:
    BLOCK_D = block(D)
    rows = max(1, _TILE // BLOCK_D)
    return {"ROWS": rows, "BLOCK_D": BLOCK_D, "num_warps": warps(rows * BLOCK_D)}


def forward(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Launch: y in x's shape and 1 / rms, fp32 [T]."""
    rows, weight_D = rows_of(x_TD), weight_D.contiguous()
    num_rows, D = rows.shape
    y = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    inverse_rms = torch.empty(num_rows, dtype=torch.float32, device=x_TD.device)
    if num_rows:
        tile = _tile(D)
        _forward_kernel[(triton.cdiv(num_rows, tile["ROWS"]),)](
            rows, weight_D, y, inverse_rms, num_rows, D, rows.stride(0), eps, **tile
        )
    return y, inverse_rms


def backward(grad_y: Tensor, x_TD: Tensor, weight_D: Tensor, inverse_rms: Tensor) -> tuple[Tensor, Tensor]:
    """Launch: gradients of x and weight."""
    rows, grad_rows, weight_D = rows_of(x_TD), rows_of(grad_y), weight_D.contiguous()
    num_rows, D = rows.shape
    tile = _tile(D)
    num_programs = min(_BACKWARD_PROGRAMS, triton.cdiv(num_rows, tile["ROWS"]))
    grad_x = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    partial_PD = torch.empty(num_programs, D, dtype=torch.float32, device=x_TD.device)
    if num_programs:
        _backward_kernel[(num_programs,)](
            grad_rows, rows, weight_D, inverse_rms, grad_x, partial_PD,
            num_rows, D, grad_rows.stride(0), rows.stride(0), **tile,
        )  # fmt: skip
    return grad_x, partial_PD.sum(0).to(weight_D.dtype)


_op = torch.library.custom_op("r1lab_gpu::rms_norm", forward, mutates_args=())
_backward_op = torch.library.custom_op("r1lab_gpu::rms_norm_backward", backward, mutates_args=())


@_op.register_fake
def _(x_TD, weight_D, eps):
    num_rows = x_TD.numel() // x_TD.shape[-1]
    return x_TD.new_empty(x_TD.shape), x_TD.new_empty(num_rows, dtype=torch.float32)


@_backward_op.register_fake
def _(grad_y, x_TD, weight_D, inverse_rms):
    return x_TD.new_empty(x_TD.shape), weight_D.new_empty(weight_D.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, _grad_inverse_rms):
    if grad_y is None:
        return None, None, None
    return *_backward_op(grad_y, *ctx.saved_tensors), None


_op.register_autograd(_backward, setup_context=_setup_context)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `ops.rms_norm`, for x [..., D] and weight [D] of one dtype in `launch.DTYPES`, D >= 1."""
    return _op(x_TD, weight_D, eps)[0]
