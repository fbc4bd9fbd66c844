import pytest
import torch
from kernel_cases import assert_bitwise_equal, assert_close, assert_same_function, leaf, poisoned

from r1lab.kernels import ops, reference
from r1lab.kernels.cpu.library import c_function

EPS = 1e-6
pytestmark = pytest.mark.usefixtures("cpu_kernels")


@pytest.mark.parametrize("shape", [(1, 128), (7, 72), (0, 16), (3, 5, 48), (600, 33), (5,), (2, 2), (9, 7)])
def test_matches_reference(shape):
    x, weight = leaf(*shape), leaf(shape[-1], seed=1)
    assert_same_function(lambda: ops.rms_norm(x, weight, EPS), lambda: reference.rms_norm(x, weight, EPS), (x, weight))


def test_reference_is_the_formula_in_double():
    x, weight = leaf(7, 72), leaf(72, seed=1)
    x64 = x.double()
    expected = weight.double() * x64 / (x64.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    assert_close(reference.rms_norm(x, weight, EPS), expected.float(), 1e-6)


def test_slices_are_read_in_place():
    wide, weight = leaf(2, 6, 48), leaf(32, seed=1)
    for view in (lambda: wide[..., :32], lambda: wide[..., 16:], lambda: wide.transpose(0, 1)[..., 3:35]):
        assert_same_function(
            lambda view=view: ops.rms_norm(view(), weight, EPS),
            lambda view=view: reference.rms_norm(view(), weight, EPS),
            (wide, weight),
        )


def test_transposed_and_expanded_inputs():
    x, weight = leaf(24, 7), leaf(24, seed=1)
    assert_same_function(
        lambda: ops.rms_norm(x.t(), weight, EPS), lambda: reference.rms_norm(x.t(), weight, EPS), (x, weight)
    )
    row = leaf(1, 24)
    ops.rms_norm(row.expand(5, 24), weight, EPS).sum().backward()  # an expanded gradient comes back, too
    assert torch.isfinite(row.grad).all()


def test_zero_row_stays_finite():
    x = torch.zeros(2, 16, requires_grad=True)
    y = ops.rms_norm(x, torch.ones(16), EPS)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 16))
    assert_close(x.grad, torch.full((2, 16), EPS**-0.5))


def test_kernel_writes_every_element():
    rows, columns = 300, 37
    x, weight, grad_y = leaf(rows, columns).detach(), leaf(columns).detach(), leaf(rows, columns, seed=1).detach()
    y, grad_x = poisoned(rows, columns), poisoned(rows, columns)
    inverse_rms, grad_weight = poisoned(rows), poisoned(columns)
    c_function("r1lab_rms_norm", "pipdppiii")(
        x.data_ptr(), columns, weight.data_ptr(), EPS, y.data_ptr(), inverse_rms.data_ptr(), rows, columns, 2
    )
    c_function("r1lab_rms_norm_backward", "ppipppp" + "iii")(
        grad_y.data_ptr(), x.data_ptr(), columns, weight.data_ptr(), inverse_rms.data_ptr(), grad_x.data_ptr(),
        grad_weight.data_ptr(), rows, columns, 2,
    )  # fmt: skip
    for output in (y, inverse_rms, grad_x, grad_weight):
        assert torch.isfinite(output).all()


def test_same_bits_for_any_number_of_threads(each_thread_count):
    x, weight = leaf(1000, 128), leaf(128, seed=1)

    def run():
        y = ops.rms_norm(x, weight, EPS)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight))

    assert_bitwise_equal(each_thread_count(run))


def test_nan_is_not_hidden():
    x = torch.ones(3, 16)
    x[1, 4] = float("nan")
    assert ops.rms_norm(x, torch.ones(16), EPS).isnan().any(1).tolist() == [False, True, False]


def test_other_dtypes_use_the_reference():
    x, weight = leaf(5, 16).detach(), torch.ones(16)
    y = ops.rms_norm(x.bfloat16(), weight.bfloat16(), EPS)
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), ops.rms_norm(x, weight, EPS), 2e-2)
    double = ops.rms_norm(x.double(), weight.double(), EPS)
    assert double.dtype == torch.float64
    assert_close(double.float(), ops.rms_norm(x, weight, EPS), 1e-6)


def test_wrong_weight_is_named():
    with pytest.raises(ValueError, match=r"weight_D has shape \(15,\)"):
        ops.rms_norm(torch.ones(3, 16), torch.ones(15), EPS)


@pytest.mark.parametrize("shape", [(6, 24), (2, 3, 16)])
def test_opcheck(shape):
    torch.library.opcheck(torch.ops.r1lab.rms_norm.default, (leaf(*shape), leaf(shape[-1], seed=1), EPS))
