"""Tile-wise quantisation to E4M3 (V3 technical report, arXiv:2412.19437, section 3.3.2).

    scale = max |x| / 448 over a tile of 1 x 128 or 128 x 128,    q = round(x / scale)

The kernel rounds to nearest even by arithmetic on bits and stores bytes: the same ones on every GPU, in the interpreter
and in the reference. A program reads one column of tiles, many rows of 1 x 128 tiles or one 128 x 128 block.

M rows, K columns, G = ceil(K / 128).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32
"""Rows of 1 x 128 tiles that a program takes."""


@triton.jit
def _e4m3_code(x):
    """The byte of the E4M3 number nearest to x, |x| <= 448 or NaN."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # 20 bits of fp32's mantissa go; the exponent's bias falls from 127 to 7.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # Below 2^-6 the numbers are multiples of 2^-9, which is the spacing of fp32 at 2^14.
    shifted = tl.abs(x) + 16384.0
    subnormal = shifted.to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, subnormal, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _quantize_kernel(
    x_ptr, q_ptr, scale_ptr, M, K, G, x_m, x_k,
    ROWS: tl.constexpr, TILE: tl.constexpr, BY_ROW: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)
    mask = (rows < M)[:, None] & (columns < K)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_m + columns[None, :] * x_k, mask=mask, other=0.0).to(tl.float32)
    magnitude = tl.abs(x)
    # Compared as "not below infinity", since a maximum may drop a NaN.
    is_bad = tl.where(magnitude < float("inf"), 0, 1)
    largest, num_bad = tl.max(magnitude, axis=1), tl.max(is_bad, axis=1)
    if not BY_ROW:
        largest = tl.zeros([ROWS], tl.float32) + tl.max(largest, axis=0)
        num_bad = tl.zeros([ROWS], tl.int32) + tl.max(num_bad, axis=0)
    scale = tl.maximum(tl.div_rn(largest, tl.full([ROWS], 448.0, tl.float32)), 2.0**-126)
    if POWER_OF_TWO:
        scale = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    scale = tl.where(largest == 0.0, 1.0, scale)
    scale = tl.where(num_bad > 0, float("nan"), scale)
    quotient = tl.div_rn(x, tl.broadcast_to(scale[:, None], [ROWS, TILE]))
    quotient = tl.where(quotient > 448.0, 448.0, tl.where(quotient < -448.0, -448.0, quotient))
    tl.store(q_ptr + rows[:, None] * K + columns[None, :], _e4m3_code(quotient), mask=mask)
    if BY_ROW:
        tl.store(scale_ptr + rows * G + tl.program_id(1), scale, mask=rows < M)
    else:
        first = tl.arange(0, ROWS) == 0
        tl.store(scale_ptr + tl.program_id(0) * G + tl.program_id(1) + tl.zeros([ROWS], tl.int32), scale, mask=first)


def forward(x_MK: Tensor, tile_rows: int, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """Launch: q E4M3 [M, K] and scale fp32 [ceil(M / tile_rows), G]; x may have any strides."""
    M, K = x_MK.shape
    G = triton.cdiv(K, 128)
    q = torch.empty(M, K, dtype=torch.float8_e4m3fn, device=x_MK.device)
    scale = torch.empty(triton.cdiv(M, tile_rows), G, dtype=torch.float32, device=x_MK.device)
    if M and K:
        rows = _ROWS if tile_rows == 1 else tile_rows
        _quantize_kernel[(triton.cdiv(M, rows), G)](
            x_MK, q.view(torch.uint8), scale, M, K, G, *x_MK.stride(),
            ROWS=rows, TILE=128, BY_ROW=tile_rows == 1, POWER_OF_TWO=power_of_two, num_warps=4 if rows < 128 else 8,
        )  # fmt: skip
    return q, scale


_op = torch.library.custom_op("r1lab_gpu::quantize_tiles", forward, mutates_args=())


@_op.register_fake
def _(x_MK, tile_rows, power_of_two):
    M, K = x_MK.shape
    scale_shape = -(-M // tile_rows), -(-K // 128)
    return x_MK.new_empty((M, K), dtype=torch.float8_e4m3fn), x_MK.new_empty(scale_shape, dtype=torch.float32)


def quantize_tiles(x_MK: Tensor, tile_rows: int, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """As `ops.quantize_tiles`, for x of a dtype in `launch.DTYPES`; no gradient."""
    return _op(x_MK.detach(), tile_rows, power_of_two)
