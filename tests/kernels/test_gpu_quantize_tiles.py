import pytest
import torch
from e4m3_cases import normal
from gpu_cases import DEVICE, poisoned_memory

from r1lab.kernels import reference
from r1lab.kernels.gpu import quantize_tiles


def assert_same_bytes(x, tile_rows, power_of_two):
    with poisoned_memory():
        q, scale = quantize_tiles(x, tile_rows, power_of_two)
    expected_q, expected_scale = reference.quantize_tiles(x, tile_rows, power_of_two)
    assert q.dtype == torch.float8_e4m3fn and torch.equal(scale.nan_to_num(-1), expected_scale.nan_to_num(-1))
    is_number = expected_q.float().isfinite()
    assert torch.equal(q.view(torch.uint8)[is_number], expected_q.view(torch.uint8)[is_number])
    assert q.float()[~is_number].isnan().all()


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("tile_rows", [1, 128])
@pytest.mark.parametrize("shape", [(3, 128), (130, 7), (37, 300), (1, 1), (0, 5)], ids=str)
def test_the_reference_s_bytes(shape, tile_rows, power_of_two):
    assert_same_bytes(normal(*shape, spread=14).to(DEVICE), tile_rows, power_of_two)


def test_ties_subnormal_numbers_and_every_code():
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    halfway = (codes[1:] + codes[:-1]) / 2
    row = torch.cat([torch.tensor([448.0]), halfway[:-1]])
    x = torch.stack([row, -row, codes[-126:], -codes[-126:], row.nextafter(torch.tensor(0.0))])
    x[4, 0] = 448.0
    assert_same_bytes(x.to(DEVICE), 1, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_transposed(dtype):
    assert_same_bytes(normal(40, 33).to(DEVICE, dtype).t(), 1, True)


@pytest.mark.parametrize("tile_rows", [1, 128])
def test_zeros_tiny_numbers_and_what_is_not_finite(tile_rows):
    x = normal(130, 256)
    x[:128, :128], x[129, :128] = 0, 1e-42
    x[2, 200], x[128, 255], x[129, 130] = float("nan"), float("inf"), -float("inf")
    assert_same_bytes(x.to(DEVICE), tile_rows, False)
    assert_same_bytes(x.to(DEVICE), tile_rows, True)


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab_gpu.quantize_tiles.default, (normal(6, 140).to(DEVICE), 1, True))
