import pytest
import torch
from kernel_cases import assert_bitwise_equal, assert_close, assert_same_function, leaf, poisoned

from r1lab.kernels import ops, reference
from r1lab.kernels.cpu.library import c_function

pytestmark = pytest.mark.usefixtures("cpu_kernels")

#        T, D, V, temperature
CASES = [
    (7, 72, 77, 0.7),
    (1, 128, 512, 1.0),
    (0, 16, 20, 1.0),
    (100, 24, 1100, 1.3),  # several chunks of the vocabulary
    (1100, 16, 33, 1.0),  # several slices of gradients
    (5, 3, 1, 1.0),
    (49, 40, 513, 1.0),
]


def build_case(num_tokens, hidden_size, vocab_size):
    targets = torch.randint(vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0))
    return leaf(num_tokens, hidden_size), leaf(vocab_size, hidden_size, scale=hidden_size**-0.5, seed=1), targets


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    hidden, head, targets = build_case(*case[:3])
    temperature = case[3]
    assert_same_function(
        lambda: ops.token_logps(hidden, head, targets, temperature),
        lambda: reference.token_logps(hidden, head, targets, temperature),
        (hidden, head),
    )


def test_reference_is_the_distribution_of_torch():
    hidden, head, targets = build_case(7, 72, 77)
    distribution = torch.distributions.Categorical(logits=hidden.double() @ head.double().t() / 0.7)
    logps, entropy = reference.token_logps(hidden, head, targets, 0.7)
    assert_close(logps.double(), distribution.log_prob(targets))
    assert_close(entropy.double(), distribution.entropy())


def test_entropy_carries_no_gradient():
    hidden, head, targets = build_case(7, 24, 30)
    logps, entropy = ops.token_logps(hidden, head, targets, 1.0)
    assert logps.requires_grad and not entropy.requires_grad


@pytest.mark.parametrize("scale", [0.0, 30.0, 1000.0])
def test_flat_and_peaked_distributions(scale):
    """Uniform: log V. Peaked: entropy 0 and log-probabilities far below what exp can hold."""
    hidden, head, targets = build_case(20, 24, 600)
    with torch.no_grad():
        logps, entropy = ops.token_logps(hidden * scale, head, targets, 1.0)
        expected_logps, expected_entropy = reference.token_logps(hidden * scale, head, targets, 1.0)
    assert_close(logps, expected_logps)
    torch.testing.assert_close(entropy, expected_entropy, atol=2e-5, rtol=1e-4)
    assert (entropy >= -1e-6).all()


def test_rising_logits_move_the_running_maximum():
    """Each later chunk of the vocabulary beats the one before."""
    hidden = torch.ones(3, 1)
    head = torch.linspace(-60, 60, 1500).unsqueeze(1)
    targets = torch.tensor([0, 750, 1499])
    for order in (head, head.flip(0)):
        ours, theirs = ops.token_logps(hidden, order, targets, 1.0), reference.token_logps(hidden, order, targets, 1.0)
        assert_close(ours[0], theirs[0])
        assert_close(ours[1], theirs[1])


def test_rows_without_gradient_are_skipped_exactly():
    hidden, head, targets = build_case(60, 24, 77)
    mask = torch.zeros(60)
    mask[[3, 17, 58]] = 1.5

    def loss(op):
        return (op(hidden, head, targets, 1.0)[0] * mask).sum()

    ours = torch.autograd.grad(loss(ops.token_logps), (hidden, head))
    theirs = torch.autograd.grad(loss(reference.token_logps), (hidden, head))
    for mine, reference_grad in zip(ours, theirs, strict=True):
        assert_close(mine, reference_grad)
    assert torch.equal(ours[0][mask == 0], torch.zeros(57, 24))
    none = torch.autograd.grad((ops.token_logps(hidden, head, targets, 1.0)[0] * 0).sum(), (hidden, head))
    assert not any(grad.any() for grad in none)


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_that_are_not_wanted(frozen):
    hidden, head, targets = build_case(30, 24, 77)
    leaves = (hidden, head)
    leaves[frozen].requires_grad_(False)
    assert_same_function(
        lambda: ops.token_logps(hidden, head, targets, 1.0),
        lambda: reference.token_logps(hidden, head, targets, 1.0),
        (leaves[1 - frozen],),
    )


def test_non_contiguous_inputs():
    wide, turned = leaf(20, 48), leaf(24, 77, seed=1)
    targets = torch.arange(40)[::2]
    assert_same_function(
        lambda: ops.token_logps(wide[:, ::2], turned.t(), targets, 1.0),
        lambda: reference.token_logps(wide[:, ::2], turned.t(), targets, 1.0),
        (wide, turned),
    )


def test_kernel_writes_every_element():
    hidden, head, targets = (tensor.detach() for tensor in build_case(101, 37, 77))
    logps, entropy, lse = poisoned(101), poisoned(101), poisoned(101)
    grad_hidden, grad_head = poisoned(101, 37), poisoned(77, 37)
    inputs = (hidden.data_ptr(), head.data_ptr(), targets.data_ptr())
    bad = c_function("r1lab_token_logps", "pppppp" + "iii" + "di", returns_int=True)(
        *inputs, logps.data_ptr(), entropy.data_ptr(), lse.data_ptr(), 101, 37, 77, 1.0, 2
    )
    assert bad == -1
    grad_logps = torch.ones(101)
    grad_logps[::4] = 0
    c_function("r1lab_token_logps_backward", "ppppppp" + "iii" + "di")(
        grad_logps.data_ptr(), *inputs, lse.data_ptr(), grad_hidden.data_ptr(), grad_head.data_ptr(),
        101, 37, 77, 1.0, 2,
    )  # fmt: skip
    for output in (logps, entropy, lse, grad_hidden, grad_head):
        assert torch.isfinite(output).all()


def test_same_bits_for_any_number_of_threads(each_thread_count):
    hidden, head, targets = build_case(1300, 24, 77)

    def run():
        logps, entropy = ops.token_logps(hidden, head, targets, 0.9)
        return logps.detach(), entropy, *torch.autograd.grad(logps.square().sum(), (hidden, head))

    assert_bitwise_equal(each_thread_count(run))


def test_nan_reaches_only_its_token():
    hidden, head, targets = (tensor.detach() for tensor in build_case(20, 24, 77))
    hidden[3, 5] = float("nan")
    for output in ops.token_logps(hidden, head, targets, 1.0):
        assert output.isnan().nonzero().flatten().tolist() == [3]


def test_wrong_inputs_are_named():
    hidden, head, targets = build_case(6, 24, 77)
    wrong = {
        r"hidden_TD has shape \(6, 24\), head_VD \(77, 23\)": (hidden, head[:, :23], targets, 1.0),
        r"targets_T has shape \(5,\)": (hidden, head, targets[:5], 1.0),
        r"targets_T is torch.int32": (hidden, head, targets.int(), 1.0),
        r"head_VD torch.float64": (hidden, head.double(), targets, 1.0),
        r"temperature=0": (hidden, head, targets, 0.0),
    }
    for message, args in wrong.items():
        with pytest.raises(ValueError, match=message):
            ops.token_logps(*args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # float64: the reference
@pytest.mark.parametrize("value", [-100, 77])
def test_target_out_of_range_is_named(value, dtype):
    hidden, head, targets = build_case(6, 24, 77)
    targets[4] = value
    with pytest.raises(ValueError, match=f"holds {value}"):
        ops.token_logps(hidden.to(dtype), head.to(dtype), targets, 1.0)


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab.token_logps.default, (*build_case(6, 24, 30), 0.7))
