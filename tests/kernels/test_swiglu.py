import pytest
import torch
from kernel_cases import assert_bitwise_equal, assert_same_function, leaf

from r1lab.kernels import ops, reference

pytestmark = pytest.mark.usefixtures("cpu_kernels")


def build_case(*shape, inner=24):
    D = shape[-1]
    return leaf(*shape), leaf(inner, D, seed=1), leaf(inner, D, seed=2), leaf(D, inner, seed=3)


@pytest.mark.parametrize("shape", [(16, 32), (2, 9, 33), (700, 16), (3, 8)])
@pytest.mark.parametrize("inner", [1, 24, 37, 128])
def test_matches_reference(shape, inner):
    inputs = build_case(*shape, inner=inner)
    assert_same_function(lambda: ops.swiglu(*inputs), lambda: reference.swiglu(*inputs), inputs)


@pytest.mark.parametrize("frozen", [(0,), (1,), (3,), (1, 2, 3)])
def test_frozen_inputs_get_no_gradient(frozen):
    inputs = build_case(20, 16)
    for i in frozen:
        inputs[i].requires_grad_(False)
    ops.swiglu(*inputs).square().sum().backward()
    assert [tensor.grad is None for tensor in inputs] == [i in frozen for i in range(4)]


def test_nothing_is_kept_but_the_inputs():
    inputs, saved = build_case(20, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        ops.swiglu(*inputs)
    assert {tensor.data_ptr() for tensor in saved} == {tensor.data_ptr() for tensor in inputs}


def test_same_bits_for_any_number_of_threads(each_thread_count):
    inputs = build_case(900, 40)

    def run():
        y = ops.swiglu(*inputs)
        return y.detach(), *torch.autograd.grad(y.square().sum(), inputs)

    assert_bitwise_equal(each_thread_count(run))


def test_wrong_shapes_are_named():
    x, gate, up, down = build_case(20, 16)
    for wrong in ((x, gate, up[1:], down), (x, gate, up, down.t()), (x[:, 1:], gate, up, down)):
        with pytest.raises(ValueError, match="expected"):
            ops.swiglu(*wrong)


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab.swiglu.default, build_case(20, 6, inner=5))
