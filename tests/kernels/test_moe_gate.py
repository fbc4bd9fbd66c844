import pytest
import torch
from kernel_cases import assert_bitwise_equal, assert_close, assert_same_function, leaf, poisoned

from r1lab.kernels import ops, reference
from r1lab.kernels.cpu.library import c_function

pytestmark = pytest.mark.usefixtures("cpu_kernels")

#        T, E, n_group, topk_group, top_k, norm_topk_prob, scaling
CASES = [
    (7, 8, 1, 1, 2, True, 1.0),
    (1, 5, 1, 1, 3, True, 2.5),
    (0, 8, 1, 1, 2, True, 1.0),
    (33, 256, 8, 4, 8, True, 2.5),
    (33, 12, 4, 2, 3, False, 1.5),
    (9, 6, 6, 2, 2, True, 1.0),  # groups of one expert
    (9, 4, 2, 2, 4, True, 1.0),  # every expert chosen
    (500, 8, 2, 1, 2, False, 1.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    num_tokens, num_experts, *settings = case
    logits, bias = leaf(num_tokens, num_experts), leaf(num_experts, scale=0.3, seed=2).detach()
    assert torch.equal(ops.moe_gate(logits, bias, *settings)[0], reference.moe_gate(logits, bias, *settings)[0])
    assert_same_function(
        lambda: ops.moe_gate(logits, bias, *settings)[1],
        lambda: reference.moe_gate(logits, bias, *settings)[1],
        (logits,),
    )


@pytest.mark.parametrize("gate", [ops.moe_gate, reference.moe_gate])
def test_worked_example(gate):
    """Two groups; the bias moves the choice to the second group and leaves the weights alone."""
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.2]])
    idx, weights = gate(torch.logit(scores), torch.tensor([0.0, 0.0, 2.0, 1.0]), 2, 1, 2, True, 3.0)
    assert idx.tolist() == [[2, 3]]
    assert_close(weights, torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize("gate", [ops.moe_gate, reference.moe_gate])
def test_ties_go_to_the_lower_index(gate):
    idx, _ = gate(torch.zeros(3, 8), torch.zeros(8), 4, 2, 3, True, 1.0)
    assert idx.tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize("gate", [ops.moe_gate, reference.moe_gate])
def test_nan_logits_give_valid_indices_and_nan_weights(gate):
    logits = torch.zeros(2, 8)
    logits[0] = float("nan")
    logits[1, 5] = float("nan")
    idx, weights = gate(logits, torch.zeros(8), 2, 1, 2, True, 1.0)
    assert ((idx >= 0) & (idx < 8)).all() and 5 in idx[1]
    assert weights.isnan().all()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[-500.0, -90.0, -89.0, -200.0], [500.0, 90.0, 60.0, -3.0]], requires_grad=True)
    _, weights = ops.moe_gate(logits, torch.zeros(4), 1, 1, 2, True, 1.0)
    weights[:, 0].sum().backward()
    assert torch.isfinite(weights).all() and torch.isfinite(logits.grad).all()


def test_non_contiguous_logits():
    logits, bias = leaf(8, 7), torch.zeros(8)
    settings = (2, 1, 2, True, 1.0)
    assert_same_function(
        lambda: ops.moe_gate(logits.t(), bias, *settings)[1],
        lambda: reference.moe_gate(logits.t(), bias, *settings)[1],
        (logits,),
    )


def test_kernel_writes_every_element():
    logits, bias = leaf(50, 12).detach(), torch.zeros(12)
    idx, weights, grad = torch.full((50, 3), -7), poisoned(50, 3), poisoned(50, 12)
    c_function("r1lab_moe_gate", "pppp" + "iiiiii" + "di")(
        logits.data_ptr(), bias.data_ptr(), idx.data_ptr(), weights.data_ptr(), 50, 12, 4, 2, 3, 1, 1.0, 2
    )
    c_function("r1lab_moe_gate_backward", "pppp" + "iiii" + "di")(
        weights.data_ptr(), logits.data_ptr(), idx.data_ptr(), grad.data_ptr(), 50, 12, 3, 1, 1.0, 2
    )
    assert (idx >= 0).all() and torch.isfinite(weights).all() and torch.isfinite(grad).all()


def test_same_bits_for_any_number_of_threads(each_thread_count):
    logits, bias = leaf(999, 8), torch.zeros(8)

    def run():
        idx, weights = ops.moe_gate(logits, bias, 2, 1, 2, True, 2.5)
        return idx, weights.detach(), *torch.autograd.grad(weights.square().sum(), logits)

    assert_bitwise_equal(each_thread_count(run))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((3, 1, 2), "n_group=3 does not divide the 8 experts"),
        ((0, 1, 2), "n_group=0"),
        ((2, 3, 2), "topk_group=3"),
        ((4, 1, 3), r"top_k=3: expected 1\.\.2"),
        ((1, 1, 0), "top_k=0"),
    ],
)
def test_wrong_counts_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ops.moe_gate(torch.zeros(2, 8), torch.zeros(8), *settings, True, 1.0)


def test_wrong_bias_is_named():
    with pytest.raises(ValueError, match=r"bias_E \(7,\)"):
        ops.moe_gate(torch.zeros(2, 8), torch.zeros(7), 1, 1, 2, True, 1.0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_of_the_gates_own_choice_are_the_gates(case):
    num_tokens, num_experts, *settings = case
    logits, bias = leaf(num_tokens, num_experts), leaf(num_experts, scale=0.3, seed=2).detach()
    idx, expected = ops.moe_gate(logits, bias, *settings)
    weights = ops.moe_gate_weights(logits, idx, *settings[-2:])
    assert_bitwise_equal([(weights.detach(),), (expected.detach(),)])
    for gate in (ops.moe_gate, reference.moe_gate):
        assert_same_function(
            lambda: ops.moe_gate_weights(logits, idx, *settings[-2:]),
            lambda gate=gate: gate(logits, bias, *settings)[1],
            (logits,),
        )


def test_weights_fill_every_element_and_pass_opcheck():
    logits, idx = leaf(30, 8), torch.randint(0, 8, (30, 2))
    weights = poisoned(30, 2)
    c_function("r1lab_moe_gate_weights", "ppp" + "iiii" + "di")(
        logits.data_ptr(), idx.data_ptr(), weights.data_ptr(), 30, 8, 2, True, 1.0, 2
    )
    assert torch.equal(weights, ops.moe_gate_weights(logits, idx, True, 1.0))
    torch.library.opcheck(torch.ops.r1lab.moe_gate_weights.default, (logits, idx, True, 2.5))


def test_weights_of_another_choice():
    logits = torch.logit(torch.tensor([[0.9, 0.8, 0.1, 0.2]])).requires_grad_()
    weights = ops.moe_gate_weights(logits, torch.tensor([[3, 1]]), True, 3.0)
    assert_close(weights, torch.tensor([[0.6, 2.4]]))
    assert_close(ops.moe_gate_weights(logits, torch.tensor([[3, 1]]), False, 3.0), torch.tensor([[0.6, 2.4]]))
    weights[0, 0].backward()
    # d(3 a / (a + b)) = 3 b / (a + b)^2 da and -3 a / (a + b)^2 db, with a = 0.2, b = 0.8 and s' = s (1 - s)
    assert_close(logits.grad, torch.tensor([[0.0, -0.6 * 0.16, 0.0, 2.4 * 0.16]]))


@pytest.mark.parametrize(
    ("idx", "message"),
    [
        (torch.tensor([[0, 8], [1, 2]]), r"holds 8; expected 0\.\.7"),
        (torch.tensor([[0, -1], [1, 2]]), "holds -1"),
        (torch.tensor([[0, 1]]), r"topk_idx_TK \(1, 2\)"),
        (torch.zeros(2, 2, dtype=torch.int16), "torch.int16"),
    ],
)
def test_wrong_choices_are_named(idx, message):
    with pytest.raises(ValueError, match=message):
        ops.moe_gate_weights(torch.zeros(2, 8), idx, True, 1.0)


def test_opcheck():
    args = (leaf(6, 8), torch.zeros(8), 2, 1, 2, True, 2.5)
    torch.library.opcheck(torch.ops.r1lab.moe_gate.default, args)
