import pytest
import torch
from kernel_cases import assert_bitwise_equal, assert_close, assert_same_function, leaf, poisoned

from r1lab.kernels import ops, reference
from r1lab.kernels.cpu.library import c_function

pytestmark = pytest.mark.usefixtures("cpu_kernels")


@pytest.mark.parametrize("shape", [(16, 128), (17, 1), (2, 3, 5, 33), (133, 48), (300, 7), (1024, 64)])
@pytest.mark.parametrize("num_outputs", [1, 15, 16, 33, 128])
def test_matches_reference(shape, num_outputs):
    x, weight = leaf(*shape), leaf(num_outputs, shape[-1], seed=1)
    assert_same_function(lambda: ops.linear(x, weight), lambda: reference.linear(x, weight), (x, weight))


@pytest.mark.parametrize("num_rows", [16, 29, 400])
@pytest.mark.parametrize(("num_heads", "num_inputs", "num_outputs"), [(4, 32, 32), (3, 7, 18), (1, 5, 1)])
def test_heads_with_weights_of_their_own(num_rows, num_heads, num_inputs, num_outputs):
    x, weight = leaf(num_rows, num_heads, num_inputs + 3), leaf(num_heads, num_inputs, num_outputs, seed=1)
    assert_same_function(
        lambda: ops.linear(x[..., 2:-1], weight.transpose(1, 2)),  # slices are read in place
        lambda: reference.linear(x[..., 2:-1], weight.transpose(1, 2)),
        (x, weight),
    )


def test_bias_and_strided_rows():
    x, weight, bias = leaf(40, 50), leaf(21, 30, seed=1), leaf(21, seed=2)
    for view in (lambda: x[:, 5:35], lambda: x[:30].t()):
        assert_same_function(
            lambda view=view: ops.linear(view(), weight, bias),
            lambda view=view: reference.linear(view(), weight, bias),
            (x, weight, bias),
        )


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1)])
def test_frozen_inputs_get_no_gradient(frozen):
    leaves = [leaf(40, 30), leaf(21, 30, seed=1), leaf(21, seed=2)]
    for i in frozen:
        leaves[i].requires_grad_(False)
    ops.linear(*leaves).square().sum().backward()
    assert [tensor.grad is None for tensor in leaves] == [i in frozen for i in range(3)]


def test_a_row_has_the_same_bits_whatever_stands_beside_it():
    x, weight = leaf(301, 65).detach(), leaf(50, 65, seed=1).detach()
    together = ops.linear(x, weight)
    for rows in (slice(0, 16), slice(5, 22), slice(100, 301)):
        assert torch.equal(ops.linear(x[rows], weight), together[rows])


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(40, 70), (128, 256)])
def test_same_bits_for_any_number_of_threads(each_thread_count, num_inputs, num_outputs):
    x, weight = leaf(1000, num_inputs), leaf(num_outputs, num_inputs, seed=1)

    def run():
        y = ops.linear(x, weight)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight))

    assert_bitwise_equal(each_thread_count(run))


def test_kernel_writes_every_element():
    T, H, N, K = 37, 2, 19, 23
    x, weight, grad_y = leaf(T, H, K).detach(), leaf(H, N, K).detach(), leaf(T, H, N, seed=1).detach()
    y, grad_x, grad_weight = poisoned(T, H, N), poisoned(T, H, K), poisoned(H, N, K)
    c_function("r1lab_linear", "piippp" + "iiiii")(
        x.data_ptr(), H * K, K, weight.data_ptr(), None, y.data_ptr(), T, H, N, K, 2
    )
    c_function("r1lab_linear_backward", "ppiippp" + "iiiii")(
        grad_y.data_ptr(), x.data_ptr(), H * K, K, weight.data_ptr(), grad_x.data_ptr(), grad_weight.data_ptr(),
        T, H, N, K, 2,
    )  # fmt: skip
    for output in (y, grad_x, grad_weight):
        assert torch.isfinite(output).all()


def test_nan_stays_in_its_row():
    x, weight = leaf(20, 12).detach(), leaf(5, 12, seed=1).detach()
    x[7, 3] = float("nan")
    is_nan = ops.linear(x, weight).isnan()
    assert is_nan[7].all() and is_nan.sum() == 5


def test_few_rows_and_other_dtypes_are_torch_s():
    x, weight = leaf(3, 12).detach(), leaf(5, 12, seed=1).detach()
    assert torch.equal(ops.linear(x, weight), torch.nn.functional.linear(x, weight))
    many = leaf(40, 12).detach()
    assert_close(ops.linear(many.double(), weight.double()).float(), ops.linear(many, weight), 1e-6)


@pytest.mark.parametrize(
    "shapes", [((4, 3), (5, 4), None), ((4, 3), (5, 3), (4,)), ((4, 3), (2, 5, 3), None), ((4, 2, 3), (2, 5, 3), (5,))]
)
def test_wrong_shapes_are_named(shapes):
    x, weight, bias = (None if shape is None else torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="expected"):
        ops.linear(x, weight, bias)


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab.linear.default, (leaf(20, 6), leaf(5, 6, seed=1), leaf(5, seed=2)))
    torch.library.opcheck(torch.ops.r1lab.linear.default, (leaf(20, 2, 6), leaf(2, 5, 6, seed=1), None))
