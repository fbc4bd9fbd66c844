"""What the tests of the Triton kernels share. They run on a GPU where there is one, else in Triton's interpreter."""

import contextlib
import importlib

import pytest
import torch

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF_DTYPES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]
"""The interpreter holds bfloat16 as integers: it loads and stores them, but multiplies them wrongly."""


def gpu_module(op):
    """The module of an op's kernels (`r1lab.kernels.gpu` exports the function under the same name)."""
    return importlib.import_module(f"r1lab.kernels.gpu.{op}")


def leaf(*shape, scale=1.0, seed=0, dtype=torch.float32):
    """Normal numbers that require a gradient, on `DEVICE`; the same for the same shape and seed."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype).requires_grad_()


@contextlib.contextmanager
def poisoned_memory():
    """Every torch.empty comes full of NaN (integers: the largest), so that what a kernel leaves out is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def outputs_and_grads(function, leaves):
    """Outputs, then the gradients of a fixed random weighting of all differentiable outputs."""
    outputs = function()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = tuple(tensor for tensor in leaves if tensor.requires_grad)
    if not wanted:
        return [out.detach() for out in outputs]
    loss = sum((out.float() * leaf(*out.shape, seed=7).detach()).sum() for out in outputs if out.requires_grad)
    return [*(out.detach() for out in outputs), *torch.autograd.grad(loss, wanted)]


def assert_same_function(ours, theirs, leaves=(), tolerance=2e-5):
    """Same outputs and same gradients, shapes and dtypes; ours with poisoned memory. -> our outputs and gradients."""
    with poisoned_memory():
        mine = outputs_and_grads(ours, leaves)
    for ours_now, reference_now in zip(mine, outputs_and_grads(theirs, leaves), strict=True):
        assert ours_now.dtype == reference_now.dtype
        assert_close(ours_now.float(), reference_now.float(), tolerance)
    return mine


def assert_close(ours, theirs, tolerance):
    """Largest difference at most `tolerance` times the largest entry, and 1e-6 more where entries cancel to zero."""
    assert ours.shape == theirs.shape
    if theirs.numel():
        error, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
        assert error <= tolerance * scale + 1e-6, f"differs by {error:.3g}, largest entry {scale:.3g}"
