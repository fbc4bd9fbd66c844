"""The FP8 wire format (DeepSeek-V3 report, section 3.3.3)."""

import pytest
import torch

from r1lab.parallel.payload import Payload, pack_fp8, unpack_fp8


def rows(num_rows: int, hidden_size: int) -> torch.Tensor:
    return torch.randn(num_rows, hidden_size, generator=torch.Generator().manual_seed(0))


def by_hand(x: torch.Tensor) -> torch.Tensor:
    """Rounds each tile of 128 numbers on its own."""
    out = torch.empty_like(x)
    for row in range(len(x)):
        for start in range(0, x.shape[1], 128):
            tile = x[row, start : start + 128]
            scale = 1.0
            while tile.abs().max() > 448 * scale:
                scale *= 2
            while tile.abs().max() <= 448 * scale / 2:
                scale /= 2
            out[row, start : start + 128] = (tile / scale).to(torch.float8_e4m3fn).float() * scale
    return out


@pytest.mark.parametrize("hidden_size", [128, 256, 7, 130, 300])
def test_each_tile_is_rounded_to_e4m3_under_its_own_power_of_two(hidden_size):
    x = rows(5, hidden_size) * 10.0 ** torch.arange(-3, 2)[:, None]
    packed = pack_fp8(x)
    assert packed.dtype == torch.uint8 and packed.shape == (5, Payload("fp8").row_bytes(hidden_size, x.dtype))
    assert torch.equal(unpack_fp8(packed, hidden_size, torch.float32), by_hand(x))


def test_a_loud_tile_does_not_silence_its_neighbour():
    x = rows(2, 256)
    x[:, :128] *= 1e6
    error = (unpack_fp8(pack_fp8(x), 256, torch.float32) - x).abs() / x.abs()
    assert error[x.abs() > 0.1].max() <= 1 / 16


def test_packing_twice_is_packing_once():
    x = rows(8, 200) * torch.logspace(-6, 6, 8)[:, None]
    once = unpack_fp8(pack_fp8(x), 200, torch.float32)
    assert torch.equal(unpack_fp8(pack_fp8(once), 200, torch.float32), once)


def test_zeros_stay_zeros_and_bounds_stay_finite():
    x = torch.tensor([[0.0] * 4, [448.0, -448.0, 1.0, 0.0], [449.0, 1e30, -1e-30, 2.0], [3e38, -3e38, 1e-45, 0.0]])
    back = unpack_fp8(pack_fp8(x), 4, torch.float32)
    assert torch.equal(back[:2], x[:2]) and back.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_does_not_pass_for_a_number(bad):
    x = rows(2, 256)
    x[0, 3] = bad
    back = unpack_fp8(pack_fp8(x), 256, torch.float32)
    assert not back[0, 3].isfinite() and back[0, 128:].isfinite().all() and back[1].isfinite().all()


@pytest.mark.parametrize("format", ["native", "bf16", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_rows_and_all_dtypes_pass(format, dtype):
    payload = Payload(format)
    for num_rows in (0, 3):
        x = rows(num_rows, 96).to(dtype)
        packed = payload.pack(x)
        assert packed.shape == (num_rows, payload.row_bytes(96, dtype))
        back = payload.unpack(packed, 96, dtype)
        assert back.dtype == dtype and back.shape == x.shape
        exact = format == "native" or (format == "bf16" and dtype == torch.bfloat16)
        assert torch.allclose(back, x, rtol=0 if exact else 0.07, atol=0 if exact else 0.01)
