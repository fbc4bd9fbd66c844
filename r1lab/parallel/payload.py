"""How a row of numbers travels between the processes of an expert group.

DeepSeek-V3 report, section 3.3.3: activations are dispatched in FP8, tiles of 1 x 128 with scales that are powers of
two, gradients before the experts' down-projection likewise, and both combines stay in BF16. N = rows, D = hidden.

This is the wire format alone. What the experts compute in is not its business: rows are unpacked on arrival.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

TILE = 128
"""Neighbouring numbers of one row that share a scale."""

_LARGEST_E4M3 = torch.finfo(torch.float8_e4m3fn).max  # 448
_EXPONENT_BIAS = 127


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

    A scale is the smallest power of two that brings the tile's largest magnitude to E4M3's 448 or less, sent as its
    biased exponent in one byte; packing what was unpacked changes nothing. An infinity arrives as NaN.
    """
    tiles_NSL = _tiles(x_ND.float())
    largest_NS = tiles_NSL.abs().amax(-1)
    mantissa_NS, exponent_NS = torch.frexp(largest_NS / _LARGEST_E4M3)  # the mantissa lies in [0.5, 1)
    exponent_NS = (exponent_NS - (mantissa_NS == 0.5).int()).clamp(-_EXPONENT_BIAS, _EXPONENT_BIAS)
    exponent_NS = torch.where(largest_NS.isfinite(), exponent_NS, 0)
    scaled_NSL = torch.ldexp(tiles_NSL, -exponent_NS.unsqueeze(-1))
    # The cast would make an infinity 448, a number like any other.
    scaled_NSL = scaled_NSL.masked_fill(~tiles_NSL.isfinite(), torch.nan)
    values_ND = scaled_NSL.flatten(1)[:, : x_ND.shape[1]].to(torch.float8_e4m3fn)
    scales_NS = (exponent_NS + _EXPONENT_BIAS).to(torch.uint8)
    return torch.cat([values_ND.contiguous().view(torch.uint8), scales_NS], dim=1)


def unpack_fp8(bytes_NB: torch.Tensor, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `pack_fp8`, up to E4M3's rounding (at most 1/16 of a number that is not near its tile's 0)."""
    values_ND = bytes_NB[:, :hidden_size].contiguous().view(torch.float8_e4m3fn).float()
    exponent_NS1 = bytes_NB[:, hidden_size:].int().unsqueeze(-1) - _EXPONENT_BIAS
    return torch.ldexp(_tiles(values_ND), exponent_NS1).flatten(1)[:, :hidden_size].to(dtype)


def _tiles(x_ND: torch.Tensor) -> torch.Tensor:
    """[N, D] -> [N, ceil(D / 128), 128], the last tile filled up with zeros."""
    return F.pad(x_ND, (0, -x_ND.shape[1] % TILE)).unflatten(1, (-1, TILE))
