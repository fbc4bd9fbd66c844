"""The rollout engine's latent cache in E4M3."""

import pytest
import torch
from fp8_cases import make_config

from r1lab.kernels.reference.decode_step import ReferenceDecoder
from r1lab.model import PolicyForCausalLM
from r1lab.rollout import RolloutEngine, SamplingParams
from r1lab.rollout.policy_weights import read_weights


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return PolicyForCausalLM(make_config(kv_lora_rank=200)).eval()


def decoder(policy, cache_dtype):
    return ReferenceDecoder(read_weights(policy, 32), 3, 32, cache_dtype=cache_dtype)


def test_bytes_a_token(policy):
    """200 latents and a rotary key of 8: 4 bytes each against 1 byte, two scales and the key."""
    sizes = {dtype: decoder(policy, dtype).cache_bytes / (2 * 3 * 32) for dtype in ("auto", "fp8")}
    assert sizes == {"auto": 4 * (200 + 8), "fp8": 200 + 4 * 2 + 4 * 8}


@torch.no_grad()
def test_logits_are_near_and_forks_carry_the_scales(policy):
    tokens, positions = torch.arange(3, 15).numpy(), torch.arange(12).numpy()
    logits = {}
    for dtype in ("auto", "fp8"):
        one = decoder(policy, dtype)
        logits[dtype] = one.logits(0 * positions, tokens, positions)
        one.fork(0, [1, 2], 12)
        step = [one.logits(*(torch.tensor([x]).numpy() for x in (slot, 5, 12))) for slot in (0, 2)]
        assert torch.equal(*step)
    difference = (logits["fp8"] - logits["auto"]).norm() / logits["auto"].norm()
    assert 1e-3 < difference < 0.08


def test_rollouts_through_the_engine(policy):
    params = SamplingParams(n=2, max_tokens=10, seed=1)
    engine = RolloutEngine(policy, eos_token_id=3, cache_dtype="fp8", max_batch=3)
    groups = engine.generate([[5, 6, 7], [8]], params)
    plain = RolloutEngine(policy, eos_token_id=3, backend="reference").generate([[5, 6, 7], [8]], params)
    assert engine.generate([[5, 6, 7], [8]], params) == groups
    first = [completion.logps[0] for group in groups for completion in group]
    expected = [completion.logps[0] for group in plain for completion in group]
    assert first != expected and first == pytest.approx(expected, abs=0.1)


def test_bad_settings(policy):
    with pytest.raises(ValueError, match="cache_dtype='int8': use 'auto' or 'fp8'"):
        RolloutEngine(policy, cache_dtype="int8")
    with pytest.raises(ValueError, match="not in the compiled decoder; use backend='auto'"):
        RolloutEngine(policy, backend="cpu", cache_dtype="fp8")
