"""Matrices for the E4M3 ops, and the quantiser as a loop over tiles and numbers."""

import math

import torch

CODES = [float(x) for x in torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()]
"""The 127 numbers of E4M3 that are not negative, in order of their codes."""


def normal(*shape, seed=0, spread=0.0):
    """Normal numbers; spread: their magnitudes differ by factors up to 2 ** +-spread."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    exponents = (torch.rand(shape, generator=generator) * 2 - 1) * spread
    return torch.randn(shape, generator=generator) * torch.exp2(exponents)


def round_to_e4m3(value: float) -> float:
    """The nearest of the 127 numbers by trying them all; of two equally near ones that with the even code."""
    distance = {code: abs(abs(value) - number) for code, number in enumerate(CODES)}
    least = min(distance.values())
    code = min((code for code in distance if distance[code] == least), key=lambda code: code % 2)
    return math.copysign(CODES[code], value)


def slow_quantize(x: torch.Tensor, tile_rows: int, power_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(q as fp32, scale), one tile and one number at a time."""
    M, K = x.shape
    q, scale = torch.zeros(M, K), torch.zeros(-(-M // tile_rows), -(-K // 128))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            rows, columns = slice(i * tile_rows, (i + 1) * tile_rows), slice(j * 128, (j + 1) * 128)
            tile = x[rows, columns].float()
            largest = max(abs(value) for value in tile.flatten().tolist())
            ratio = float(torch.tensor(largest) / 448) if largest else 1.0
            scale[i, j] = 2.0 ** math.ceil(math.log2(ratio)) if power_of_two else ratio
            numbers = (tile / scale[i, j]).flatten().tolist()
            q[rows, columns] = torch.tensor([round_to_e4m3(number) for number in numbers]).view_as(tile)
    return q, scale
