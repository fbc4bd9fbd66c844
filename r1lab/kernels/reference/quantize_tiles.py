"""Tile-wise quantisation to E4M3 in plain PyTorch (V3 technical report, arXiv:2412.19437, section 3.3.2).

M rows, K columns, R rows of a tile (1 or 128), G = ceil(K / 128) tiles along the columns.
"""

import torch

TILE = 128
"""Columns of a tile, and rows of a weight's block."""
E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
"""The largest E4M3 number; there is no infinity."""
LEAST_SCALE = 2.0**-126
"""The smallest normal fp32 number, so that a division by a scale never overflows."""


def quantize_tiles(x_MK: torch.Tensor, tile_rows: int, power_of_two: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """x -> (q, scale) with x ~ q * scale, the scale of each tile of tile_rows x 128 being its largest |x| / 448.

    x: [M, K]; q: E4M3 [M, K], rounded to nearest even; scale: fp32 [ceil(M / tile_rows), ceil(K / 128)]. Tiles at the
    edges are what is left of them. power_of_two: scales are rounded up to powers of two ("round scaled", section
    3.3.3). A tile of zeros has scale 1. A tile with a NaN or an infinity has scale NaN: saturated to 448 it would hide
    that the numbers have diverged.
    """
    tiles = split_tiles(x_MK.float(), tile_rows)
    largest = tiles.abs().amax(dim=(1, 3))
    scale = scale_of(largest, power_of_two)
    # torch's own cast saturates in some versions and overflows to NaN in others.
    quotient = (tiles / scale[:, None, :, None]).clamp_(-E4M3_MAX, E4M3_MAX)
    return _join_tiles(quotient, x_MK.shape).to(E4M3).contiguous(), scale


def dequantize_tiles(q_MK: torch.Tensor, scale: torch.Tensor, tile_rows: int) -> torch.Tensor:
    """q * scale, fp32 [M, K]: what `quantize_tiles` took, rounded."""
    return _join_tiles(split_tiles(q_MK.float(), tile_rows) * scale[:, None, :, None], q_MK.shape)


def scale_of(largest: torch.Tensor, power_of_two: bool) -> torch.Tensor:
    """The scales of tiles whose largest magnitudes these are."""
    scale = (largest / E4M3_MAX).clamp_min(LEAST_SCALE)
    if power_of_two:
        # A carry out of the mantissa's bits steps to the next exponent; exact powers stay.
        scale = ((scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    scale = torch.where(largest == 0, 1.0, scale)
    return torch.where(largest.isfinite(), scale, torch.nan)


def split_tiles(x_MK: torch.Tensor, tile_rows: int) -> torch.Tensor:
    """[M, K] -> [tiles down, rows of a tile, G, columns of a tile], padded with zeros at the edges."""
    M, K = x_MK.shape
    rows, columns = max(1, min(tile_rows, M)), max(1, min(TILE, K))
    if M % rows or K % columns:
        x_MK = torch.nn.functional.pad(x_MK, (0, -K % columns, 0, -M % rows))
    return x_MK.unflatten(1, (-(-K // columns), columns)).unflatten(0, (-(-M // rows), rows))


def _join_tiles(tiles: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return tiles.flatten(2, 3).flatten(0, 1)[: shape[0], : shape[1]]
