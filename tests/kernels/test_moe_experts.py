import pytest
import torch
import torch.nn.functional as F
from kernel_cases import assert_bitwise_equal, assert_close, assert_same_function, leaf, poisoned

from r1lab.kernels import ops, reference
from r1lab.kernels.cpu.library import c_function

pytestmark = pytest.mark.usefixtures("cpu_kernels")

#        T, D, E, F, K
SIZES = [
    (7, 72, 5, 40, 3),
    (1, 128, 8, 128, 2),
    (0, 16, 4, 8, 2),
    (333, 77, 5, 41, 2),
    (2100, 16, 3, 24, 2),  # several blocks of tokens and slices of gradients
    (40, 1, 2, 1, 1),
    (300, 24, 1, 16, 1),  # more rows of one expert than fit in the scratch
]


def build_case(num_tokens, hidden_size, num_experts, intermediate_size, top_k):
    generator = torch.Generator().manual_seed(num_tokens)
    topk_idx = torch.rand(num_tokens, num_experts, generator=generator).argsort(-1)[:, :top_k]
    x, weights = leaf(num_tokens, hidden_size), leaf(num_tokens, top_k, seed=1)
    gate_up = leaf(num_experts, 2 * intermediate_size, hidden_size, scale=hidden_size**-0.5)
    down = leaf(num_experts, hidden_size, intermediate_size, scale=intermediate_size**-0.5)
    return x, topk_idx, weights, gate_up, down


def assert_matches_reference(x, topk_idx, weights, gate_up, down, leaves=None):
    args = (x, topk_idx, weights, gate_up, down)
    assert_same_function(
        lambda: ops.moe_experts(*args), lambda: reference.moe_experts(*args), leaves or (x, weights, gate_up, down)
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_reference(size):
    assert_matches_reference(*build_case(*size))


def test_reference_is_the_formula():
    x, topk_idx, weights, gate_up, down = build_case(7, 12, 5, 9, 3)
    expected = torch.zeros(7, 12)
    for t in range(7):
        for k in range(3):
            gate, up = (gate_up[topk_idx[t, k]] @ x[t]).split(9)
            expected[t] += weights[t, k] * (down[topk_idx[t, k]] @ (F.silu(gate) * up))
    assert_close(reference.moe_experts(x, topk_idx, weights, gate_up, down), expected)


def test_empty_expert_gets_zero_gradient():
    x, topk_idx, weights, gate_up, down = build_case(50, 24, 5, 16, 2)
    topk_idx = topk_idx.clamp(max=3)  # nobody chooses expert 4, some choose 3 twice
    assert_matches_reference(x, topk_idx, weights, gate_up, down)
    assert torch.equal(gate_up.grad[4], torch.zeros(32, 24)) and torch.equal(down.grad[4], torch.zeros(24, 16))


def test_all_tokens_on_one_expert():
    x, _, weights, gate_up, down = build_case(150, 24, 5, 16, 2)
    assert_matches_reference(x, torch.full((150, 2), 3), weights, gate_up, down)


def test_non_contiguous_inputs():
    x, topk_idx, weights, gate_up, down = build_case(20, 24, 4, 16, 2)
    wide, turned = leaf(20, 48), leaf(4, 16, 24, seed=3)
    args = (wide[:, ::2], topk_idx.t().contiguous().t(), weights.t().contiguous().t(), gate_up, turned.transpose(1, 2))
    assert not any(args[i].is_contiguous() for i in (0, 1, 2, 4))
    assert_matches_reference(*args, leaves=(wide, weights, gate_up, turned))


@pytest.mark.parametrize("frozen", [(0,), (2,), (3,), (2, 3), (0, 1), (0, 2, 3)])
def test_gradients_that_are_not_wanted(frozen):
    x, topk_idx, weights, gate_up, down = build_case(30, 24, 4, 16, 2)
    leaves = (x, weights, gate_up, down)
    for i in frozen:
        leaves[i].requires_grad_(False)
    wanted = tuple(tensor for tensor in leaves if tensor.requires_grad)
    assert_matches_reference(x, topk_idx, weights, gate_up, down, leaves=wanted)
    assert all(leaves[i].grad is None for i in frozen)


def test_nothing_is_kept_but_the_inputs():
    inputs = build_case(30, 24, 4, 16, 2)
    known, saved = {tensor.data_ptr() for tensor in inputs}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        with_grad = ops.moe_experts(*inputs)
    assert len(saved) == 5 and {tensor.data_ptr() for tensor in saved} == known
    with torch.no_grad():
        without = ops.moe_experts(*inputs)
    assert not without.requires_grad and torch.equal(with_grad, without)


def test_kernel_writes_every_element():
    num_tokens, hidden_size, num_experts, intermediate_size, top_k = sizes = (45, 37, 4, 19, 2)
    x, topk_idx, weights, gate_up, down = (tensor.detach().contiguous() for tensor in build_case(*sizes))
    y = poisoned(num_tokens, hidden_size)
    grads = [torch.full_like(tensor, float("nan")) for tensor in (x, weights, gate_up, down)]
    inputs = [tensor.data_ptr() for tensor in (x, topk_idx, weights, gate_up, down)]
    bad = c_function("r1lab_moe_experts", "pppppp" + "iiiiii", returns_int=True)(*inputs, y.data_ptr(), *sizes, 2)
    assert bad == -1
    c_function("r1lab_moe_experts_backward", "p" * 10 + "iiiiii")(
        y.data_ptr(), *inputs, *(grad.data_ptr() for grad in grads), *sizes, 2
    )
    for output in (y, *grads):
        assert torch.isfinite(output).all()


@pytest.mark.parametrize("num_tokens", [37, 2500])
def test_same_bits_for_any_number_of_threads(each_thread_count, num_tokens):
    x, topk_idx, weights, gate_up, down = build_case(num_tokens, 24, 5, 16, 2)

    def run():
        y = ops.moe_experts(x, topk_idx, weights, gate_up, down)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (x, weights, gate_up, down))

    assert_bitwise_equal(each_thread_count(run) + each_thread_count(run))


def test_a_token_does_not_depend_on_its_neighbours():
    """Rows of another batch, another position: the same bits. Rollout and training then agree on this op."""
    x, topk_idx, weights, gate_up, down = build_case(200, 72, 5, 40, 2)
    with torch.no_grad():
        y = ops.moe_experts(x, topk_idx, weights, gate_up, down)
        for rows in (slice(0, 1), slice(63, 140), slice(199, 200)):
            assert torch.equal(y[rows], ops.moe_experts(x[rows], topk_idx[rows], weights[rows], gate_up, down))


def test_nan_reaches_only_its_token():
    x, topk_idx, weights, gate_up, down = (tensor.detach() for tensor in build_case(20, 24, 4, 16, 2))
    x[3, 5] = float("nan")
    y = ops.moe_experts(x, topk_idx, weights, gate_up, down)
    assert y.isnan().any(1).nonzero().flatten().tolist() == [3]


def test_large_activations_stay_finite():
    x, topk_idx, weights, gate_up, down = build_case(20, 24, 4, 16, 2)
    y = ops.moe_experts(x * 300, topk_idx, weights, gate_up, down)
    y.sum().backward()
    assert_close(y, reference.moe_experts(x * 300, topk_idx, weights, gate_up, down))
    assert torch.isfinite(gate_up.grad).all()


def test_wrong_inputs_are_named():
    x, topk_idx, weights, gate_up, down = build_case(6, 24, 4, 16, 2)
    wrong = {
        r"x_TD has shape \(2, 3, 24\)": (x.view(2, 3, 24), topk_idx, weights, gate_up, down),
        r"topk_idx_TK has shape \(5, 2\)": (x, topk_idx[:5], weights[:5], gate_up, down),
        r"topk_weights_TK has shape \(6, 1\)": (x, topk_idx, weights[:, :1], gate_up, down),
        r"topk_idx_TK is torch.int32": (x, topk_idx.int(), weights, gate_up, down),
        r"down_EDF has shape \(4, 23, 16\)": (x, topk_idx, weights, gate_up, down[:, :23]),
        r"gate_up_E2FD has shape \(4, 31, 24\)": (x, topk_idx, weights, gate_up[:, :31], down),
        r"gate_up_E2FD torch.float64": (x, topk_idx, weights, gate_up.double(), down),
    }
    for message, args in wrong.items():
        with pytest.raises(ValueError, match=message):
            ops.moe_experts(*args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # float64: the reference
@pytest.mark.parametrize("value", [-1, 4])
def test_expert_out_of_range_is_named(value, dtype):
    x, topk_idx, weights, gate_up, down = (tensor.detach() for tensor in build_case(6, 24, 4, 16, 2))
    topk_idx[3, 1] = value
    with pytest.raises(ValueError, match=f"holds {value}"):
        ops.moe_experts(x.to(dtype), topk_idx, weights.to(dtype), gate_up.to(dtype), down.to(dtype))


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab.moe_experts.default, build_case(6, 24, 4, 16, 2))


def test_torch_compile():
    args = build_case(6, 24, 4, 16, 2)
    compiled = torch.compile(lambda *args: ops.moe_experts(*args) * 2, backend="aot_eager", fullgraph=True)
    assert_same_function(
        lambda: compiled(*args), lambda: reference.moe_experts(*args) * 2, (args[0], args[2], args[3], args[4])
    )
