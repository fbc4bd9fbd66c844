"""The short way around torch.library gives what the op gives, and is left wherever somebody watches."""

import pytest
import torch
from kernel_cases import leaf
from torch.utils._python_dispatch import TorchDispatchMode

from r1lab.kernels import cpu, ops

pytestmark = pytest.mark.usefixtures("cpu_kernels")
INPUTS = (leaf(20, 16), leaf(16, seed=1))


def outputs_and_gradients(function):
    y = function(*INPUTS, 1e-6)[0]
    return y.detach(), *torch.autograd.grad(y.square().sum(), INPUTS)


def test_both_ways_have_the_same_bits():
    for direct, op in zip(outputs_and_gradients(cpu.rms_norm), outputs_and_gradients(torch.ops.r1lab.rms_norm)):
        assert torch.equal(direct, op)


def test_without_gradients_nothing_is_recorded():
    with torch.no_grad():
        assert cpu.rms_norm(*INPUTS, 1e-6)[0].grad_fn is None


def test_second_derivatives_are_refused():
    y = ops.rms_norm(*INPUTS, 1e-6)
    grad = torch.autograd.grad(y.square().sum(), INPUTS[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_profilers_and_dispatch_modes_see_the_op():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        ops.rms_norm(*INPUTS, 1e-6).sum().backward()
    assert {"r1lab::rms_norm", "r1lab::rms_norm_backward"} <= {event.key for event in profiler.key_averages()}
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        ops.rms_norm(*INPUTS, 1e-6)
    assert any("rms_norm" in name for name in seen)


def test_subclasses_and_compilers_get_the_op():
    class Tagged(torch.Tensor):
        pass

    x = INPUTS[0].detach()
    expected = ops.rms_norm(x, INPUTS[1], 1e-6)
    assert torch.equal(ops.rms_norm(x.as_subclass(Tagged), INPUTS[1], 1e-6).as_subclass(torch.Tensor), expected)
    compiled = torch.compile(lambda x, weight: ops.rms_norm(x, weight, 1e-6), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, INPUTS[1]), expected)
