import pytest
import torch
from gpu_cases import DEVICE, HALF_DTYPES, assert_same_function, leaf, outputs_and_grads

from r1lab.kernels import reference
from r1lab.kernels.gpu import moe_experts

#        T, D, E, F, K
SIZES = [
    (7, 40, 5, 24, 3),
    (1, 48, 8, 72, 2),
    (0, 16, 4, 8, 2),
    (45, 77, 3, 17, 2),
    (9, 1, 2, 1, 1),
    (70, 24, 1, 16, 1),  # several tiles of one expert
]


def build_case(num_tokens, hidden_size, num_experts, intermediate_size, top_k, dtype=torch.float32):
    generator = torch.Generator().manual_seed(num_tokens)
    topk_idx = torch.rand(num_tokens, num_experts, generator=generator).argsort(-1)[:, :top_k].to(DEVICE)
    x, weights = leaf(num_tokens, hidden_size, dtype=dtype), leaf(num_tokens, top_k, seed=1)
    gate_up = leaf(num_experts, 2 * intermediate_size, hidden_size, scale=hidden_size**-0.5, dtype=dtype)
    down = leaf(num_experts, hidden_size, intermediate_size, scale=intermediate_size**-0.5, dtype=dtype)
    return x, topk_idx, weights, gate_up, down


def assert_matches(x, topk_idx, weights, gate_up, down, leaves=None, tolerance=2e-5):
    args = (x, topk_idx, weights, gate_up, down)
    return assert_same_function(
        lambda: moe_experts(*args),
        lambda: reference.moe_experts(*args),
        leaves or (x, weights, gate_up, down),
        tolerance,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_reference(size):
    assert_matches(*build_case(*size))


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_precision(dtype):
    assert_matches(*build_case(9, 32, 3, 16, 2, dtype), tolerance=1e-2)


def test_empty_expert_gets_zero_gradient():
    x, topk_idx, weights, gate_up, down = build_case(12, 24, 5, 16, 2)
    results = assert_matches(x, topk_idx.clamp(max=3), weights, gate_up, down)  # nobody chooses expert 4, some 3 twice
    assert not results[3][4].any() and not results[4][4].any()


def test_all_tokens_on_one_expert():
    x, topk_idx, weights, gate_up, down = build_case(20, 24, 5, 16, 2)
    assert_matches(x, torch.full_like(topk_idx, 3), weights, gate_up, down)


def test_non_contiguous_inputs():
    x, topk_idx, weights, gate_up, _ = build_case(10, 24, 4, 16, 2)
    wide, turned = leaf(10, 48), leaf(4, 16, 24, seed=3)
    args = (wide[:, :24], topk_idx.t().contiguous().t(), weights.t().contiguous().t(), gate_up, turned.transpose(1, 2))
    assert not any(args[i].is_contiguous() for i in (0, 1, 2, 4))
    assert_matches(*args, leaves=(wide, weights, gate_up, turned))


@pytest.mark.parametrize("frozen", [(0,), (2,), (3,), (0, 1)])
def test_gradients_that_are_not_wanted(frozen):
    x, topk_idx, weights, gate_up, down = build_case(6, 24, 4, 16, 2)
    for i in frozen:
        (x, weights, gate_up, down)[i].requires_grad_(False)
    assert_matches(x, topk_idx, weights, gate_up, down)


def test_no_grad_keeps_nothing():
    x, topk_idx, weights, gate_up, down = build_case(6, 24, 4, 16, 2)
    with torch.no_grad():
        y, kept = torch.ops.r1lab_gpu.moe_experts(x, topk_idx, weights, gate_up, down, False)
    assert kept.numel() == 0
    assert torch.equal(y, moe_experts(x, topk_idx, weights, gate_up, down).detach())
    y, _ = torch.ops.r1lab_gpu.moe_experts(x, topk_idx, weights, gate_up, down, False)
    with pytest.raises(RuntimeError, match="keep=True"):
        y.sum().backward()


def test_nan_reaches_only_its_token():
    x, topk_idx, weights, gate_up, down = (tensor.detach() for tensor in build_case(10, 24, 4, 16, 2))
    x[3, 5] = float("nan")
    y = moe_experts(x, topk_idx, weights, gate_up, down)
    assert y.isnan().any(1).nonzero().flatten().tolist() == [3]


def test_large_activations_stay_finite():
    x, topk_idx, weights, gate_up, down = build_case(8, 24, 4, 16, 2)
    results = assert_matches((x.detach() * 300).requires_grad_(), topk_idx, weights, gate_up, down)
    assert all(torch.isfinite(result).all() for result in results)


def test_the_same_bits_again():
    x, topk_idx, weights, gate_up, down = build_case(10, 24, 4, 16, 2)
    leaves = (x, weights, gate_up, down)
    run = lambda: moe_experts(x, topk_idx, weights, gate_up, down)  # noqa: E731
    first, again = (outputs_and_grads(run, leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab_gpu.moe_experts.default, (*build_case(3, 16, 2, 8, 1), True))
