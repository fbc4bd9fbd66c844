import pytest
import torch
from gpu_cases import DEVICE, gpu_module, poisoned_memory

from r1lab.kernels.gpu import random_uniform, sampling
from r1lab.kernels.reference import decode_step
from r1lab.kernels.reference.sampling import random_uniform as reference_uniform
from r1lab.kernels.reference.sampling import sampling as reference_sampling

SETTINGS = [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (0.0, 0, 1.0),
    (1.0, 5, 1.0),
    (1.0, 1, 1.0),
    (1.3, 0, 0.8),
    (1.0, 0, 1e-6),
    (0.9, 12, 0.6),
    (1.0, 10**6, 0.9),
]


def build_case(num_rows, vocab_size, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * scale
    return logits.to(DEVICE), torch.rand(num_rows, generator=generator, dtype=torch.float64).to(DEVICE)


def assert_matches(logits, uniform, temperature, top_k=0, top_p=1.0, banned=None):
    with poisoned_memory():
        tokens, logps = sampling(logits, uniform, temperature, top_k, top_p, banned)
    expected_tokens, expected_logps = reference_sampling(logits, uniform, temperature, top_k, top_p, banned)
    assert tokens.dtype == torch.int64 and logps.dtype == torch.float32
    assert tokens.tolist() == expected_tokens.tolist()
    torch.testing.assert_close(logps, expected_logps, atol=1e-5, rtol=1e-5)
    return tokens


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(gpu_module("sampling"), "_TILE", 32)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_matches_reference(settings):
    assert_matches(*build_case(5, 77), *settings)


@pytest.mark.parametrize("settings", SETTINGS[3:8:2], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_several_tiles(settings):
    assert_matches(*build_case(3, 101), *settings)


@pytest.mark.parametrize("shape", [(0, 5), (2, 1), (3, 2)], ids=str)
def test_odd_shapes(shape):
    for settings in ((1.0, 1, 0.5), (1.0, 0, 1.0), (0.0, 0, 1.0)):
        assert_matches(*build_case(*shape), *settings)


@pytest.mark.parametrize("settings", [(1.0, 0, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.7), (0.0, 0, 1.0)], ids=str)
def test_banned_tokens_are_never_chosen(settings):
    logits, uniform = build_case(6, 40)
    banned = torch.zeros(40, dtype=torch.bool, device=DEVICE)
    banned[logits.argmax(-1)] = True
    tokens = assert_matches(logits, uniform, *settings, banned)
    assert not banned[tokens].any()


@pytest.mark.parametrize("settings", [(1.0, 3, 1.0), (1.0, 0, 0.5), (1.0, 6, 0.45), (0.0, 0, 1.0)], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_ties_go_to_the_lower_token(settings):
    """Four values only, so every cut falls among equals."""
    logits, uniform = build_case(8, 50)
    assert_matches(logits.round().clamp(-2, 1), uniform, *settings)


def test_ends_of_the_distribution():
    """uniform 0 takes the first possible token, uniform just below 1 the last one."""
    logits, _ = build_case(2, 33)
    logits[:, 0] = logits[:, -1] = float("-inf")
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64, device=DEVICE)
    assert assert_matches(logits, uniform, 1.0).tolist() == [1, 31]


def test_half_precision_and_strided_logits():
    logits, uniform = build_case(4, 60)
    assert_matches(logits.half(), uniform, 1.0, 7)
    assert_matches(logits[:, 10:50], uniform, 1.0, 0, 0.9)


def test_frequencies_follow_the_distribution():
    """Evenly spaced uniform numbers meet every token in proportion to its probability, to within one draw."""
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5, -3.0]], device=DEVICE)
    uniform = (torch.arange(60, dtype=torch.float64, device=DEVICE) + 0.5) / 60
    tokens, _ = sampling(logits.expand(60, 6), uniform, 1.0)
    assert ((torch.bincount(tokens, minlength=6) - 60 * logits[0].softmax(-1)).abs() <= 1).all()


def test_a_row_does_not_depend_on_its_company():
    logits, uniform = build_case(5, 50)
    tokens, logps = sampling(logits, uniform, 1.0, 9, 0.9)
    alone = sampling(logits[3:4], uniform[3:4], 1.0, 9, 0.9)
    assert torch.equal(tokens[3:4], alone[0]) and torch.equal(logps[3:4], alone[1])


def test_nan_gives_a_valid_token_and_a_nan_logp():
    logits, uniform = build_case(2, 20)
    logits[1, 4] = float("nan")
    for settings in ((1.0, 0, 1.0), (1.0, 3, 0.9), (0.0, 0, 1.0)):
        tokens, logps = sampling(logits, uniform, *settings)
        assert 0 <= tokens[1] < 20 and logps.isnan().tolist() == [False, True]


def test_random_numbers_are_the_engines():
    """The same bits as the decode step draws for a request's stream."""
    stream = torch.from_numpy(decode_step.random_stream(7, 3).repeat(300).view("int64"))
    stream[::3] = -1
    index = torch.arange(300) * 11 - 50
    with poisoned_memory():
        ours = random_uniform(stream.to(DEVICE), index.to(DEVICE))
    expected = reference_uniform(stream, index)
    assert torch.equal(ours.cpu(), expected) and (0 <= expected).all() and (expected < 1).all()


def test_opcheck():
    logits, uniform = build_case(2, 8)
    torch.library.opcheck(torch.ops.r1lab_gpu.sampling.default, (logits, uniform, 1.0, 3, 0.9, None))
