"""torch.library ops of cpu/quantize_tiles.cpp; no gradient, as for all that makes or takes E4M3 numbers."""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp, c_function
from r1lab.kernels.reference import TILE


@KernelOp
def quantize_tiles(x_MK: Tensor, tile_rows: int, power_of_two: bool) -> tuple[Tensor, Tensor]:
    q, scale = _outputs(x_MK, tile_rows)
    is_transposed = tile_rows == 1 and x_MK.stride(0) == 1 and x_MK.shape[0] > 1
    if not is_transposed and x_MK.stride(1) != 1:
        x_MK = x_MK.contiguous()
    c_function("r1lab_quantize_tiles", "p" + "iiii" + "pp" + "iii")(
        x_MK.data_ptr(), x_MK.stride(1 if is_transposed else 0), is_transposed, tile_rows, power_of_two, q.data_ptr(),
        scale.data_ptr(), *x_MK.shape, torch.get_num_threads(),
    )  # fmt: skip
    return q, scale


def _outputs(x_MK: Tensor, tile_rows: int) -> tuple[Tensor, Tensor]:
    M, K = x_MK.shape
    return x_MK.new_empty(M, K, dtype=torch.float8_e4m3fn), x_MK.new_empty(-(-M // tile_rows), -(-K // TILE))


@quantize_tiles.register_fake
def _(x_MK, tile_rows, power_of_two):
    return _outputs(x_MK, tile_rows)


@KernelOp
def dequantize_tiles(q_MK: Tensor, scale: Tensor, tile_rows: int) -> Tensor:
    q_MK, scale = q_MK.contiguous(), scale.contiguous()
    x = torch.empty(q_MK.shape, dtype=torch.float32)
    c_function("r1lab_dequantize_tiles", "ppi" + "p" + "iii")(
        q_MK.data_ptr(), scale.data_ptr(), tile_rows, x.data_ptr(), *q_MK.shape, torch.get_num_threads()
    )
    return x


@dequantize_tiles.register_fake
def _(q_MK, scale, tile_rows):
    return scale.new_empty(q_MK.shape)
