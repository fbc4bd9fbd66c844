import pytest
import torch
from e4m3_cases import normal
from gpu_cases import DEVICE, poisoned_memory

from r1lab.kernels import reference
from r1lab.kernels.gpu import scaled_gemm


def operands(M, N, K, b_rows):
    a, b = normal(M, K, spread=6).to(DEVICE), normal(N, K, seed=1, spread=6).to(DEVICE)
    return *reference.quantize_tiles(a, 1, True), *reference.quantize_tiles(b, b_rows)


def assert_matches(*args):
    with poisoned_memory():
        out = scaled_gemm(*args)
    expected = reference.scaled_gemm(*args)
    size = reference.scaled_gemm(args[0].float().abs().to(torch.float8_e4m3fn), args[1],
                                 args[2].float().abs().to(torch.float8_e4m3fn), args[3])  # fmt: skip
    assert out.dtype == torch.float32 and out.shape == expected.shape
    assert ((out - expected).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize(
    "shape", [(5, 7, 128, 1), (130, 129, 300, 128), (1, 1, 1, 128), (3, 40, 32, 128), (17, 200, 256, 1), (0, 4, 8, 1)],
    ids=str,
)  # fmt: skip
def test_matches_reference(shape):
    assert_matches(*operands(*shape))


def test_nothing_to_sum():
    assert torch.equal(scaled_gemm(*operands(3, 4, 0, 1)), torch.zeros(3, 4, device=DEVICE))


def test_operands_that_are_slices():
    a, a_scale, b, b_scale = operands(6, 9, 256, 1)
    assert_matches(a[::2], a_scale[::2], b.t().contiguous().t(), b_scale)


def test_a_scale_that_is_not_finite_reaches_its_row():
    a, a_scale, b, b_scale = operands(4, 5, 256, 128)
    a_scale[1, 1] = float("nan")
    out = scaled_gemm(a, a_scale, b, b_scale)
    assert out[1].isnan().all() and out[[0, 2, 3]].isfinite().all()


def test_opcheck():
    # Its test of the schema compares the operands with themselves, by arithmetic that E4M3 tensors do not have.
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.r1lab_gpu.scaled_gemm.default, operands(6, 5, 140, 128), test_utils=utils)
