"""How a row of numbers travels between the processes of an expert group.

DeepSeek-V3 report, section 3.3.3: activations are dispatched in FP8, tiles of 1 x 128 with scales that are powers of
two, gradients before the experts' down-projection likewise, and both combines stay in BF16. N = rows, D = hidden.

This is the wire format alone. What the experts compute in is not its business: rows are unpacked on arrival.
"""

from typing import NamedTuple

import torch

from r1lab.kernels import ops
from r1lab.kernels.reference import TILE


class Payload(NamedTuple):
    """A wire format for rows of D numbers of one dtype."""

    format: str
    """native (the dtype's own bytes), bf16 or fp8."""

    def pack(self, x_ND: torch.Tensor) -> torch.Tensor:
        """x [N, D] -> its bytes, uint8 [N, `row_bytes`]."""
        if self.format == "fp8":
            return pack_fp8(x_ND)
        if self.format == "bf16":
            x_ND = x_ND.bfloat16()
        return x_ND.contiguous().view(torch.uint8)

    def unpack(self, bytes_NB: torch.Tensor, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
        """What `pack` made of rows of `hidden_size` numbers -> [N, D] in `dtype`."""
        if self.format == "fp8":
            return unpack_fp8(bytes_NB, hidden_size, dtype)
        return bytes_NB.view(torch.bfloat16 if self.format == "bf16" else dtype).to(dtype)

    def row_bytes(self, hidden_size: int, dtype: torch.dtype) -> int:
        """Bytes of one packed row."""
        if self.format == "fp8":
            return hidden_size + -(-hidden_size // TILE)
        return hidden_size * (torch.bfloat16 if self.format == "bf16" else dtype).itemsize


FORMATS = ("native", "bf16", "fp8")


def pack_fp8(x_ND: torch.Tensor) -> torch.Tensor:
    """x [N, D] -> uint8 [N, D + ceil(D / 128)]: E4M3 numbers, then each tile's scale.

    A scale is the smallest power of two that brings the tile's largest magnitude to E4M3's 448 or less, sent as one
    byte, its exponent (E8M0); packing what was unpacked changes nothing. A tile that is not finite arrives as NaN.
    """
    values_ND, scales_NS = ops.quantize_tiles(x_ND, 1, power_of_two=True)
    parts = (values_ND, scales_NS.to(torch.float8_e8m0fnu))
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def unpack_fp8(bytes_NB: torch.Tensor, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `pack_fp8`, up to E4M3's rounding (at most 1/16 of a number that is not near its tile's 0)."""
    values_ND = bytes_NB[:, :hidden_size].contiguous().view(torch.float8_e4m3fn)
    scales_NS = bytes_NB[:, hidden_size:].contiguous().view(torch.float8_e8m0fnu).float()
    return ops.dequantize_tiles(values_ND, scales_NS, 1).to(dtype)
