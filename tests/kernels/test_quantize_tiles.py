import pytest
import torch
from e4m3_cases import normal, slow_quantize
from kernel_cases import assert_bitwise_equal, poisoned

from r1lab.kernels import ops, reference
from r1lab.kernels.cpu.library import c_function

SHAPES = [(3, 128), (130, 7), (5, 300), (1, 1), (129, 129), (2, 256)]


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("tile_rows", [1, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
def test_matches_a_loop_over_tiles(implementation, shape, tile_rows, power_of_two):
    x = normal(*shape, spread=12)
    q, scale = implementation.quantize_tiles(x, tile_rows, power_of_two)
    slow_q, slow_scale = slow_quantize(x, tile_rows, power_of_two)
    assert q.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    assert torch.equal(scale, slow_scale)
    assert torch.equal(q.float(), slow_q)


def test_ties_go_to_the_even_code_and_the_largest_number_stays():
    x = torch.tensor([[448.0, 17.0, 19.0, -17.0, 2.0**-10, 3 * 2.0**-10, 1.0625]])
    q, scale = ops.quantize_tiles(x, 1)
    assert scale.item() == 1.0
    assert q.float().tolist() == [[448.0, 16.0, 20.0, -16.0, 0.0, 2.0**-8, 1.0]]


@pytest.mark.parametrize("implementation", [ops, reference], ids=["ops", "reference"])
def test_every_code_comes_back(implementation):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x = codes[codes.isfinite()].view(2, 127)
    for power_of_two in (False, True):
        assert torch.equal(implementation.dequantize_tiles(*implementation.quantize_tiles(x, 1, power_of_two), 1), x)


def test_powers_of_two_make_a_second_rounding_exact():
    """What the backward relies on: tiled anew along the other dimension, numbers of one octave do not change."""
    x = normal(256, 128).sign() * (1 + normal(256, 128, seed=1).abs() % 1)
    once = ops.dequantize_tiles(*ops.quantize_tiles(x, 1, True), 1)
    assert torch.equal(ops.dequantize_tiles(*ops.quantize_tiles(once.t(), 1, True), 1).t(), once)


@pytest.mark.parametrize("tile_rows", [1, 128])
def test_an_outlier_hurts_its_own_tile_only(tile_rows):
    x = normal(256, 384)
    clean = ops.dequantize_tiles(*ops.quantize_tiles(x, tile_rows), tile_rows)
    x[40, 200] = 1e9
    dirty = ops.dequantize_tiles(*ops.quantize_tiles(x, tile_rows), tile_rows)
    rows = slice(40, 41) if tile_rows == 1 else slice(0, 128)
    changed = (clean != dirty).nonzero()
    assert changed[:, 0].min() >= rows.start and changed[:, 0].max() < rows.stop
    assert changed[:, 1].min() >= 128 and changed[:, 1].max() < 256
    assert dirty[40, 200] == pytest.approx(1e9, rel=1e-6)
    # One scale for the whole tensor, in contrast, would have lost all the rest.
    assert (x[rows, 128:256] / (1e9 / 448)).to(torch.float8_e4m3fn).float().count_nonzero() == 1


@pytest.mark.parametrize("power_of_two", [False, True])
def test_tiles_of_zeros_and_of_tiny_numbers(power_of_two):
    x = torch.zeros(3, 128)
    x[1], x[2, 5] = 1e-44, 3e-38
    q, scale = ops.quantize_tiles(x, 1, power_of_two)
    assert scale[0] == 1 and scale.isfinite().all() and q.float().isfinite().all()
    back = ops.dequantize_tiles(q, scale, 1)
    assert torch.equal(back[0], torch.zeros(128)) and (back[1] - x[1]).abs().max() <= 2.0**-126 / 512
    assert back[2, 5] == pytest.approx(3e-38, rel=0.07)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_what_is_not_finite_is_not_hidden(bad, power_of_two):
    x = normal(3, 256)
    x[1, 130] = bad
    back = ops.dequantize_tiles(*ops.quantize_tiles(x, 1, power_of_two), 1)
    assert back[1, 128:].isnan().all()
    assert back[:, :128].isfinite().all() and back[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("tile_rows", [1, 128])
def test_nothing_to_quantize(shape, tile_rows):
    q, scale = ops.quantize_tiles(torch.zeros(shape), tile_rows)
    assert q.shape == shape and scale.shape == (-(-shape[0] // tile_rows), -(-shape[1] // 128))
    assert ops.dequantize_tiles(q, scale, tile_rows).shape == shape


def test_half_precision_and_views():
    x = normal(40, 130)
    q, scale = ops.quantize_tiles(x.t(), 1)
    assert torch.equal(q.float(), ops.quantize_tiles(x.t().contiguous(), 1)[0].float()) and q.is_contiguous()
    half = ops.quantize_tiles(x.bfloat16(), 128)
    assert torch.equal(half[0].float(), ops.quantize_tiles(x.bfloat16().float(), 128)[0].float())


def test_relative_error_of_normal_numbers():
    """Rounding to 3 bits of mantissa: at most 2 ** -4, and 2.6 % root mean square."""
    x = normal(64, 128)
    back = ops.dequantize_tiles(*ops.quantize_tiles(x, 1), 1)
    above = x.abs() > 2.0**-6 * x.abs().amax(1, keepdim=True) / 448
    assert ((back - x).abs() <= 2.0**-4 * x.abs() * 1.0001)[above].all()
    assert 0.02 < ((back - x).norm() / x.norm()).item() < 0.03


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.quantize_tiles(torch.zeros(2, 3, 4), 1), ValueError, r"\(2, 3, 4\): expected \[M, K\]"),
        (lambda: ops.quantize_tiles(torch.zeros(2, 3), 64), ValueError, "tile_rows=64: expected 1 or 128"),
        (lambda: ops.quantize_tiles(torch.zeros(2, 3, dtype=torch.int64), 1), TypeError, "int64: expected float32"),
        (lambda: ops.dequantize_tiles(torch.zeros(2, 3), torch.ones(2, 1), 1), TypeError, "q_MK is torch.float32"),
        (
            lambda: ops.dequantize_tiles(torch.zeros(2, 130).to(torch.float8_e4m3fn), torch.ones(2, 1), 1),
            ValueError,
            r"scale has shape \(2, 1\): expected \(2, 2\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -- the CPU kernel ----------------------------------------------------------------------------------------------------


def assert_the_reference_s_bytes(x, tile_rows, power_of_two):
    q, scale = ops.quantize_tiles(x, tile_rows, power_of_two)
    expected_q, expected_scale = reference.quantize_tiles(x, tile_rows, power_of_two)
    assert torch.equal(scale.nan_to_num(-1), expected_scale.nan_to_num(-1))
    is_number = expected_q.float().isfinite()
    assert torch.equal(q.view(torch.uint8)[is_number], expected_q.view(torch.uint8)[is_number])
    assert q.float()[~is_number].isnan().all()
    values, expected = (ops.dequantize_tiles(q, scale, tile_rows), reference.dequantize_tiles(q, scale, tile_rows))
    assert torch.equal(values.nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("tile_rows", [1, 128])
@pytest.mark.parametrize("shape", [*SHAPES, (300, 300), (17, 1000), (1, 200), (200, 1)], ids=str)
def test_kernel_gives_the_reference_s_bytes(shape, tile_rows, power_of_two):
    x = normal(*shape, spread=14)
    assert_the_reference_s_bytes(x, tile_rows, power_of_two)
    assert_the_reference_s_bytes(normal(*shape[::-1], spread=14).t(), tile_rows, power_of_two)
    wide = normal(shape[0], 2 * shape[1] + 3, spread=14)
    assert_the_reference_s_bytes(wide[:, 1 : shape[1] + 1], tile_rows, power_of_two)
    assert_the_reference_s_bytes(wide[:, : 2 * shape[1] : 2], tile_rows, power_of_two)
    assert_the_reference_s_bytes(wide.t()[1 : shape[1] + 1], tile_rows, power_of_two)
    assert_the_reference_s_bytes(x[:1].expand(5, -1), tile_rows, power_of_two)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("transposed", [False, True])
def test_kernel_at_ties_subnormal_numbers_and_what_is_not_finite(transposed):
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    halfway = torch.cat([torch.tensor([448.0]), (codes[1:] + codes[:-1])[:-1] / 2])
    x = torch.stack([halfway, -halfway, codes[-126:], -codes[-126:], halfway.nextafter(torch.tensor(0.0))])
    x[4, 0] = 448.0
    odd = torch.zeros(6, 126)
    odd[1], odd[2, 5], odd[3, 7], odd[4, 125], odd[5, 0] = 1e-42, 3e-38, float("nan"), float("inf"), -float("inf")
    x = torch.cat([x, odd])
    for tile_rows in (1, 128):
        assert_the_reference_s_bytes(x.t().contiguous().t() if transposed else x, tile_rows, False)
        assert_the_reference_s_bytes(x.t() if transposed else x, tile_rows, True)


@pytest.mark.usefixtures("cpu_kernels")
def test_kernel_writes_every_element():
    x = normal(130, 300)
    for is_transposed, tile_rows in ((0, 1), (0, 128), (1, 1)):
        M, K = x.shape[::-1] if is_transposed else x.shape
        q, scale = torch.full((M, K), 0x7F, dtype=torch.uint8), poisoned(-(-M // tile_rows), -(-K // 128))
        c_function("r1lab_quantize_tiles", "p" + "iiii" + "pp" + "iii")(
            x.data_ptr(), x.stride(0), is_transposed, tile_rows, 1, q.data_ptr(), scale.data_ptr(), M, K, 2
        )
        assert scale.isfinite().all() and q.view(torch.float8_e4m3fn).float().isfinite().all()
        values = poisoned(M, K)
        c_function("r1lab_dequantize_tiles", "ppi" + "p" + "iii")(
            q.data_ptr(), scale.data_ptr(), tile_rows, values.data_ptr(), M, K, 2
        )
        assert values.isfinite().all()


@pytest.mark.usefixtures("cpu_kernels")
def test_kernel_gives_the_same_bits_for_any_number_of_threads(each_thread_count):
    x = normal(400, 300)

    def run():
        q, scale = ops.quantize_tiles(x.t(), 1, True)
        return q.view(torch.uint8), scale, ops.dequantize_tiles(q, scale, 1)

    assert_bitwise_equal(each_thread_count(run))


@pytest.mark.usefixtures("cpu_kernels")
def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab.quantize_tiles.default, (normal(6, 140), 1, True))
    q, scale = ops.quantize_tiles(normal(6, 140), 1)
    # Its test of the schema compares the operands with themselves, by arithmetic that E4M3 tensors do not have.
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.r1lab.dequantize_tiles.default, (q, scale, 1), test_utils=utils)
