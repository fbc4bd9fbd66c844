import pytest
import torch
from e4m3_cases import normal
from kernel_cases import assert_bitwise_equal, poisoned

from r1lab.kernels import ops, reference
from r1lab.kernels.cpu.library import c_function

#        M, N, K, rows of b's tiles
SHAPES = [
    (5, 7, 128, 1),
    (130, 129, 300, 128),
    (1, 1, 1, 128),
    (3, 64, 32, 128),
    (17, 257, 256, 1),
    (64, 128, 384, 128),
    (300, 40, 1000, 1),
]


def operands(M, N, K, b_rows, spread=6):
    a, b = normal(M, K, spread=spread), normal(N, K, seed=1, spread=spread)
    return a, b, ops.quantize_tiles(a, 1, True), ops.quantize_tiles(b, b_rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
def test_matches_the_product_of_dequantised_matrices(implementation, shape):
    *_, a, b = operands(*shape)
    out = implementation.scaled_gemm(*a, *b)
    a64, b64 = ops.dequantize_tiles(*a, 1).double(), ops.dequantize_tiles(*b, shape[3]).double()
    assert out.dtype == torch.float32 and out.shape == shape[:2]
    assert ((out - a64 @ b64.T).abs() <= 1e-6 * (a64.abs() @ b64.abs().T) + 1e-30).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_bound_against_the_exact_product(shape):
    """Each operand is off by at most 1/16 of itself, or by half the smallest step where that is more."""
    a, b, a_quantized, b_quantized = operands(*shape, spread=12)

    def off(x, scale, rows):
        per_number = scale.repeat_interleave(rows, 0)[: x.shape[0]].repeat_interleave(128, 1)[:, : x.shape[1]]
        return torch.maximum(x.abs() * 2.0**-4, per_number * 2.0**-10).double()

    off_a, off_b = off(a, a_quantized[1], 1), off(b, b_quantized[1], shape[3])
    a, b = a.double(), b.double()
    bound = a.abs() @ off_b.T + off_a @ b.abs().T + off_a @ off_b.T
    error = (ops.scaled_gemm(*a_quantized, *b_quantized) - a @ b.T).abs()
    assert (error <= bound * 1.0001).all()


def test_sums_of_many_products_stay_fp32():
    """4,096 products of 448 and 448 and one of 1 and 1: what an accumulator of 14 bits would swallow is there."""
    a = torch.full((1, 4096), 448.0)
    a[0, 3072], b = 1.0, torch.full((1, 4096), 448.0)
    ones = torch.ones(1, 32)
    out = ops.scaled_gemm(a.to(torch.float8_e4m3fn), ones, b.to(torch.float8_e4m3fn), ones)
    assert out.item() == pytest.approx(4095 * 448.0**2 + 448.0, rel=1e-7)


def test_scales_belong_to_their_own_tile():
    a, b = torch.ones(2, 256).to(torch.float8_e4m3fn), torch.ones(130, 256).to(torch.float8_e4m3fn)
    a_scale = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    out = ops.scaled_gemm(a, a_scale, b, torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    assert out[:, 0].tolist() == [128 * (1 + 20), 128 * (100 + 2000)] and (out[:, :128] == out[:, :1]).all()
    assert out[:, 129].tolist() == [128 * (3 + 50), 128 * (300 + 5000)]


def test_nan_reaches_only_its_row():
    x = normal(3, 256)
    x[1, 200] = float("inf")
    out = ops.scaled_gemm(*ops.quantize_tiles(x, 1), *ops.quantize_tiles(normal(4, 256), 128))
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4, 8), (4, 0, 8), (4, 4, 0)])
def test_nothing_to_multiply(shape):
    M, N, K = shape
    out = ops.scaled_gemm(*ops.quantize_tiles(torch.ones(M, K), 1), *ops.quantize_tiles(torch.ones(N, K), 128))
    assert torch.equal(out, torch.zeros(M, N))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"a": torch.zeros(4, 200)},
            TypeError,
            "a_MK is torch.float32, a_scale_MG torch.float32: expected float8_e4m3fn",
        ),
        ({"a_scale": torch.ones(4, 1)}, ValueError, r"a_scale_MG has shape \(4, 1\): expected \(4, 2\)"),
        ({"b_scale": torch.ones(2, 2)}, ValueError, r"b_scale has shape \(2, 2\): expected \(6, 2\) or \(1, 2\)"),
        ({"b": torch.zeros(6, 140).to(torch.float8_e4m3fn)}, ValueError, "expected the same K"),
        ({"a": torch.zeros(1, 4, 200).to(torch.float8_e4m3fn)}, ValueError, "expected two dimensions"),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {
        "a": torch.zeros(4, 200).to(torch.float8_e4m3fn), "a_scale": torch.ones(4, 2),
        "b": torch.zeros(6, 200).to(torch.float8_e4m3fn), "b_scale": torch.ones(1, 2),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.scaled_gemm(*(arguments | changes).values())


# -- the CPU kernel ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cpu_kernels")
def test_kernel_takes_slices_and_transposed_operands():
    *_, (a, a_scale), (b, b_scale) = operands(6, 9, 256, 1)
    expected = reference.scaled_gemm(a[::2], a_scale[::2], b, b_scale)
    out = ops.scaled_gemm(a[::2], a_scale[::2], b.t().contiguous().t(), b_scale)
    assert (out - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("shape", [(130, 129, 300, 128), (5, 7, 130, 1)], ids=str)
def test_kernel_writes_every_element(shape):
    M, N, K, b_rows = shape
    *_, a, b = operands(*shape)
    out = poisoned(M, N)
    c_function("r1lab_scaled_gemm", "pppp" + "i" + "p" + "iiii")(
        a[0].data_ptr(), a[1].data_ptr(), b[0].data_ptr(), b[1].data_ptr(), b_rows, out.data_ptr(), M, N, K, 2
    )
    assert out.isfinite().all()


@pytest.mark.usefixtures("cpu_kernels")
def test_kernel_gives_the_same_bits_for_any_number_of_threads(each_thread_count):
    *_, a, b = operands(300, 70, 500, 1)
    assert_bitwise_equal(each_thread_count(lambda: (ops.scaled_gemm(*a, *b),)))


@pytest.mark.usefixtures("cpu_kernels")
def test_opcheck():
    *_, a, b = operands(6, 5, 140, 128)
    # Its test of the schema compares the operands with themselves, by arithmetic that E4M3 tensors do not have.
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.r1lab.scaled_gemm.default, (*a, *b), test_utils=utils)
