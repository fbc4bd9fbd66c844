"""What the kernel tests share: leaves, poisoned outputs, comparison with a reference."""

import torch


def leaf(*shape, scale=1.0, seed=0):
    """Normal numbers that require a gradient; the same for the same shape and seed."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).requires_grad_()


def poisoned(*shape):
    return torch.full(shape, float("nan"))


def assert_close(ours, theirs, tolerance=2e-5):
    """Largest difference below `tolerance` times the largest entry: fp32 sums in another order."""
    assert ours.shape == theirs.shape
    if theirs.numel():
        error = (ours - theirs).abs().max().item()
        scale = theirs.abs().max().item() + 1e-6
        assert error <= tolerance * scale, f"differs by {error:.3g}, largest entry {scale:.3g}"


def assert_same_function(ours, theirs, leaves, tolerance=2e-5):
    """Same outputs, and same gradients of a random weighting of every differentiable output."""
    results = []
    for function in (ours, theirs):
        for tensor in leaves:
            tensor.grad = None
        outputs = function()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((out * leaf(*out.shape, seed=7).detach()).sum() for out in outputs if out.requires_grad)
        loss.backward()
        results.append([*(out.detach() for out in outputs), *(tensor.grad for tensor in leaves)])
    for mine, reference in zip(*results, strict=True):
        assert_close(mine, reference, tolerance)


def assert_bitwise_equal(results):
    for result in results[1:]:
        for first, other in zip(results[0], result, strict=True):
            assert torch.equal(first, other)
