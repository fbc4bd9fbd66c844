import pytest
import torch
from gpu_cases import DEVICE, HALF_DTYPES, assert_close, assert_same_function, gpu_module, leaf, outputs_and_grads

from r1lab.kernels import reference
from r1lab.kernels.gpu import token_logps

#        T, D, V, temperature
CASES = [
    (7, 40, 77, 0.7),
    (1, 48, 130, 1.0),
    (0, 16, 20, 1.0),
    (70, 24, 33, 1.3),  # several blocks of tokens
    (5, 3, 1, 1.0),
]


def build_case(num_tokens, hidden_size, vocab_size, dtype=torch.float32):
    targets = torch.randint(vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    head = leaf(vocab_size, hidden_size, scale=hidden_size**-0.5, seed=1, dtype=dtype)
    return leaf(num_tokens, hidden_size, dtype=dtype), head, targets


def assert_matches(hidden, head, targets, temperature=1.0, leaves=None, tolerance=2e-5):
    return assert_same_function(
        lambda: token_logps(hidden, head, targets, temperature),
        lambda: reference.token_logps(hidden, head, targets, temperature),
        leaves or (hidden, head),
        tolerance,
    )


@pytest.fixture
def small_slices(monkeypatch):
    """Slices of 64 and chunks of 64 columns, so that a small vocabulary has several."""
    monkeypatch.setattr(gpu_module("token_logps"), "_SLICE", 64)
    monkeypatch.setattr(gpu_module("token_logps"), "_CHUNK_ELEMENTS", 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    assert_matches(*build_case(*case[:3]), case[3])


@pytest.mark.usefixtures("small_slices")
def test_several_slices_and_chunks():
    assert_matches(*build_case(9, 24, 200), 0.9)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_precision(dtype):
    assert_matches(*build_case(9, 32, 50, dtype), tolerance=1e-2)


@pytest.mark.parametrize("scale", [0.0, 30.0, 1000.0])
@pytest.mark.usefixtures("small_slices")
def test_flat_and_peaked_distributions(scale):
    """Uniform: log V. Peaked: entropy 0 and log-probabilities far below what exp can hold."""
    hidden, head, targets = build_case(8, 24, 150)
    with torch.no_grad():
        logps, entropy = token_logps(hidden * scale, head, targets, 1.0)
        expected_logps, expected_entropy = reference.token_logps(hidden * scale, head, targets, 1.0)
    assert_close(logps, expected_logps, 2e-5)
    torch.testing.assert_close(entropy, expected_entropy, atol=2e-5, rtol=1e-4)
    assert (entropy >= -1e-6).all()


@pytest.mark.usefixtures("small_slices")
def test_rising_logits_move_the_running_maximum():
    """Each later tile and slice of the vocabulary beats the one before."""
    hidden, head = torch.ones(3, 1, device=DEVICE), torch.linspace(-60, 60, 300, device=DEVICE).unsqueeze(1)
    targets = torch.tensor([0, 150, 299], device=DEVICE)
    for order in (head, head.flip(0)):
        ours, theirs = token_logps(hidden, order, targets, 1.0), reference.token_logps(hidden, order, targets, 1.0)
        assert_close(ours[0], theirs[0], 2e-5)
        assert_close(ours[1], theirs[1], 2e-5)


def test_entropy_carries_no_gradient():
    logps, entropy = token_logps(*build_case(3, 16, 30), 1.0)
    assert logps.requires_grad and not entropy.requires_grad


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_that_are_not_wanted(frozen):
    hidden, head, targets = build_case(6, 24, 77)
    (hidden, head)[frozen].requires_grad_(False)
    assert_matches(hidden, head, targets)


def test_non_contiguous_inputs():
    wide, turned = leaf(6, 48), leaf(24, 77, seed=1)
    targets = torch.arange(12, device=DEVICE)[::2]
    assert_matches(wide[:, ::2], turned.t(), targets, leaves=(wide, turned))


def test_nan_reaches_only_its_token():
    hidden, head, targets = (tensor.detach() for tensor in build_case(8, 24, 77))
    hidden[3, 5] = float("nan")
    for output in token_logps(hidden, head, targets, 1.0):
        assert output.isnan().nonzero().flatten().tolist() == [3]


def test_a_token_does_not_depend_on_its_neighbours():
    """The same bits on a GPU; the interpreter multiplies with NumPy, which looks at a row's place in the tile."""
    hidden, head, targets = (tensor.detach() for tensor in build_case(70, 24, 77))
    logps, entropy = token_logps(hidden, head, targets, 1.0)
    for rows in (slice(0, 1), slice(60, 70)):
        alone = token_logps(hidden[rows], head, targets[rows], 1.0)
        for ours, theirs in zip(alone, (logps[rows], entropy[rows]), strict=True):
            assert torch.equal(ours, theirs) if DEVICE == "cuda" else torch.allclose(ours, theirs, rtol=1e-6)


def test_the_same_bits_again():
    hidden, head, targets = build_case(20, 24, 77)
    run = lambda: token_logps(hidden, head, targets, 0.9)  # noqa: E731
    first, again = (outputs_and_grads(run, (hidden, head)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab_gpu.token_logps.default, (*build_case(6, 24, 30), 0.7))
