import pytest
import torch
from gpu_cases import DEVICE, assert_close, assert_same_function, leaf

from r1lab.kernels import reference
from r1lab.kernels.gpu import moe_gate

#        T, E, n_group, topk_group, top_k, norm_topk_prob, scaling
CASES = [
    (7, 8, 1, 1, 2, True, 1.0),
    (1, 5, 1, 1, 3, True, 2.5),
    (0, 8, 1, 1, 2, True, 1.0),
    (9, 256, 8, 4, 8, True, 2.5),
    (33, 12, 4, 2, 3, False, 1.5),
    (9, 6, 6, 2, 2, True, 1.0),  # groups of one expert
    (9, 4, 2, 2, 4, True, 1.0),  # every expert chosen
    (200, 15, 5, 2, 5, False, 1.0),
]


def assert_matches(logits, bias, *settings, leaves=(), tolerance=2e-5):
    results = []

    def run(gate):
        idx, weights = gate(logits(), bias, *settings)
        results.append(idx)
        return weights

    assert_same_function(lambda: run(moe_gate), lambda: run(reference.moe_gate), leaves, tolerance)
    assert results[0].dtype == torch.int64 and torch.equal(*results)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    num_tokens, num_experts, *settings = case
    logits, bias = leaf(num_tokens, num_experts), leaf(num_experts, scale=0.3, seed=2).detach()
    assert_matches(lambda: logits, bias, *settings, leaves=(logits,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    logits, bias = leaf(9, 8, dtype=dtype), torch.zeros(8, device=DEVICE)
    assert_matches(lambda: logits, bias, 2, 1, 2, True, 1.0, leaves=(logits,), tolerance=1e-2)


def test_worked_example():
    """Two groups; the bias moves the choice to the second group and leaves the weights alone."""
    scores, bias = torch.tensor([[0.9, 0.8, 0.1, 0.2]]), torch.tensor([0.0, 0.0, 2.0, 1.0])
    idx, weights = moe_gate(torch.logit(scores).to(DEVICE), bias.to(DEVICE), 2, 1, 2, True, 3.0)
    assert idx.tolist() == [[2, 3]]
    assert_close(weights.cpu(), torch.tensor([[1.0, 2.0]]), 1e-6)


def test_ties_go_to_the_lower_index():
    for groups, kept in ((4, 2), (1, 1)):
        idx, _ = moe_gate(torch.zeros(3, 8, device=DEVICE), torch.zeros(8, device=DEVICE), groups, kept, 3, True, 1.0)
        assert idx.tolist() == [[0, 1, 2]] * 3


def test_nan_logits_give_valid_indices_and_nan_weights():
    logits = torch.zeros(3, 8, device=DEVICE)
    logits[0], logits[1, 5], logits[2, 2] = float("nan"), float("nan"), float("nan")
    for groups in (2, 1):
        idx, weights = moe_gate(logits, torch.zeros(8, device=DEVICE), groups, 1, 2, True, 1.0)
        assert ((idx >= 0) & (idx < 8)).all() and 5 in idx[1] and 2 in idx[2]
        assert weights.isnan().all()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[-500.0, -90.0, -89.0, -200.0], [500.0, 90.0, 60.0, -3.0]], device=DEVICE)
    logits.requires_grad_()
    _, weights = moe_gate(logits, torch.zeros(4, device=DEVICE), 1, 1, 2, True, 1.0)
    weights[:, 0].sum().backward()
    assert torch.isfinite(weights).all() and torch.isfinite(logits.grad).all()


def test_non_contiguous_logits():
    logits, bias = leaf(8, 7), torch.zeros(8, device=DEVICE)
    assert_matches(logits.t, bias, 2, 1, 2, True, 1.0, leaves=(logits,))


def test_opcheck():
    args = (leaf(6, 8), torch.zeros(8, device=DEVICE), 2, 1, 2, True, 2.5)
    torch.library.opcheck(torch.ops.r1lab_gpu.moe_gate.default, args)
