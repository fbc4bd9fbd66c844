"""The linear layer and the experts against their formulas, written out with dequantised operands."""

import pytest
import torch
import torch.nn.functional as F

from r1lab.kernels import ops, reference
from r1lab.precision import fp8_experts, fp8_linear, fp8_swiglu

SHAPES = [(3, 128, 128), (130, 72, 300), (1, 1, 1), (257, 128, 48)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def rounded(x, tile_rows=1):
    """x as a product in E4M3 sees it."""
    return ops.dequantize_tiles(*ops.quantize_tiles(x, tile_rows, tile_rows == 1), tile_rows)


def formulas(x, weight, grad):
    """(y, dx, dW) of report section 3.3."""
    x_rounded, weight_rounded = rounded(x), rounded(weight, 128)
    return x_rounded @ weight_rounded.T, rounded(grad) @ weight_rounded, rounded(grad.T) @ rounded(x_rounded.T).T


def close(ours, theirs):
    return (ours - theirs).abs().max() <= 2e-6 * max(theirs.abs().max().item(), 1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_three_products_take_quantised_operands(shape):
    T, K, N = shape
    x, weight, grad = normal(T, K), normal(N, K, seed=1), normal(T, N, seed=2)
    x.requires_grad_(), weight.requires_grad_()
    y = fp8_linear(x, weight)
    y.backward(grad)
    expected = formulas(x.detach(), weight.detach(), grad)
    for ours, theirs in zip((y, x.grad, weight.grad), expected, strict=True):
        assert close(ours.detach(), theirs)
    if T > 1:  # and none of the three is the product in full precision
        exact = (x @ weight.T, grad @ weight, grad.T @ x)
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(expected, exact, strict=True)]
        assert all(0.005 < error < 0.06 for error in errors), errors


def test_leading_dimensions_and_bias():
    x, weight, bias = normal(2, 5, 40).requires_grad_(), normal(24, 40, seed=1), normal(24, seed=2).requires_grad_()
    y = fp8_linear(x, weight, bias)
    assert y.shape == (2, 5, 24) and torch.equal(y, fp8_linear(x.flatten(0, 1), weight).view(2, 5, 24) + bias)
    y.sum().backward()
    assert torch.equal(bias.grad, torch.full((24,), 10.0)) and x.grad.shape == x.shape


def test_tokens_do_not_depend_on_each_other():
    x, weight = normal(64, 256), normal(128, 256, seed=1)
    alone = torch.cat([fp8_linear(row[None], weight) for row in x])
    assert close(fp8_linear(x, weight), alone)


def test_only_what_is_needed_gets_a_gradient():
    x, weight = normal(4, 8), normal(3, 8, seed=1).requires_grad_()
    fp8_linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (grad,) = torch.autograd.grad(fp8_linear(x, weight).square().sum(), x, create_graph=True)
        grad.sum().backward()


def test_dtypes_are_kept():
    x, weight = normal(4, 8).bfloat16().requires_grad_(), normal(3, 8, seed=1).requires_grad_()
    y = fp8_linear(x, weight)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_divergence_is_seen():
    x, weight = normal(3, 130), normal(5, 130, seed=1).requires_grad_()
    x[1, 3] = float("inf")
    y = fp8_linear(x, weight)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
    y.sum().backward()
    assert weight.grad.isnan().any()


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"x has shape \(4, 8\), weight_NK \(3, 9\)"):
        fp8_linear(torch.zeros(4, 8), torch.zeros(3, 9))


def expert_inputs(T=37, D=40, E=5, inner=24, K=2):
    generator = torch.Generator().manual_seed(0)
    idx = torch.rand(T, E, generator=generator)
    idx[:, 3] = -1  # an expert that nobody chooses
    x, weights = normal(T, D), torch.rand(T, K, generator=generator)
    return x, idx.topk(K).indices, weights, normal(E, 2 * inner, D, seed=1) / 6, normal(E, D, inner, seed=2) / 5


def swiglu_formulas(x, gate, up, down, grad):
    """(y, dx, dgate, dup, ddown): every operand rounded, the gradients' too, and what was kept read back from E4M3."""
    x1, gate1, up1, down1 = rounded(x), rounded(gate, 128), rounded(up, 128), rounded(down, 128)
    g, u = x1 @ gate1.T, x1 @ up1.T
    y = rounded(F.silu(g) * u) @ down1.T
    g, u = rounded(g).requires_grad_(), rounded(u).requires_grad_()
    hidden = F.silu(g) * u
    dg, du = torch.autograd.grad(hidden, (g, u), rounded(grad) @ down1)
    dx = rounded(dg) @ gate1 + rounded(du) @ up1
    by_token = rounded(x1.T).T
    return (y, dx, rounded(dg.T) @ by_token, rounded(du.T) @ by_token, rounded(grad.T) @ rounded(hidden.detach().T).T)


@pytest.mark.parametrize("shape", [(5, 128, 128), (130, 72, 300), (1, 1, 1)], ids=str)
def test_swiglu_is_its_formulas(shape):
    T, D, inner = shape
    leaves = [normal(T, D), normal(inner, D, seed=1) / 9, normal(inner, D, seed=2) / 9, normal(D, inner, seed=3) / 9]
    grad = normal(T, D, seed=4)
    expected = swiglu_formulas(*leaves, grad)
    y = fp8_swiglu(*[leaf.requires_grad_() for leaf in leaves])
    y.backward(grad)
    for ours, theirs in zip((y, *(leaf.grad for leaf in leaves)), expected, strict=True):
        # A gradient of gate or up that differs in its last bit may fall on the other side of a tie of E4M3.
        assert (ours - theirs).norm() <= 2e-3 * theirs.norm() + 1e-6
    exact = (F.silu(leaves[0] @ leaves[1].T) * (leaves[0] @ leaves[2].T)) @ leaves[3].T
    if T > 1:
        assert 0.01 < ((y - exact).norm() / exact.norm()).item() < 0.08


def test_swiglu_gives_only_the_gradients_asked_for_and_keeps_leading_dimensions():
    x, gate, up, down = normal(2, 3, 8), normal(5, 8), normal(5, 8, seed=1), normal(8, 5).requires_grad_()
    y = fp8_swiglu(x, gate, up, down)
    y.sum().backward()
    assert y.shape == x.shape and down.grad is not None and gate.grad is None
    with pytest.raises(ValueError, match=r"\[\(5, 8\), \(4, 8\), \(8, 5\)\]: expected \[F, D\] twice and \[D, F\]"):
        fp8_swiglu(x, gate, up[:4], down)


def test_experts_are_feed_forwards_of_their_own():
    x, idx, weights, gate_up, down = expert_inputs()
    leaves = [tensor.requires_grad_() for tensor in (x, weights, gate_up, down)]
    y = fp8_experts(x, idx, weights, gate_up, down)
    slow = torch.zeros_like(x)
    for expert in range(5):
        token, choice = (idx == expert).nonzero(as_tuple=True)
        out = fp8_swiglu(x[token], gate_up[expert][:24], gate_up[expert][24:], down[expert])
        slow = slow.index_add(0, token, out * weights[token, choice, None])
    assert close(y.detach(), slow.detach())
    direction = normal(*y.shape, seed=5)
    ours = torch.autograd.grad((y * direction).sum(), leaves)
    theirs = torch.autograd.grad((slow * direction).sum(), leaves)
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))
    assert ours[2][3].count_nonzero() == 0 and ours[3][3].count_nonzero() == 0


def test_experts_are_near_the_exact_ones_and_not_equal():
    inputs = expert_inputs()
    y, exact = fp8_experts(*inputs), reference.moe_experts(*inputs)
    assert 0.01 < ((y - exact).norm() / exact.norm()).item() < 0.08


def test_no_token_for_any_expert():
    x, idx, weights, gate_up, down = expert_inputs()
    gate_up.requires_grad_()
    y = fp8_experts(x[:0], idx[:0], weights[:0], gate_up, down)
    y.sum().backward()
    assert y.shape == (0, 40) and gate_up.grad.count_nonzero() == 0
