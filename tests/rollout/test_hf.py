import pytest
import torch
from rollout_cases import ragged_prompts, tiny_policy, tokens, training_logps

from r1lab.rollout import HFRolloutEngine, RolloutEngine, SamplingParams


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def test_logps_are_the_training_forwards_over_padded_batches(policy):
    prompts = ragged_prompts((3, 8))
    engine = HFRolloutEngine(policy, eos_token_id=3, max_batch=3)
    groups = engine.generate(prompts, SamplingParams(n=2, max_tokens=6, temperature=0.7, seed=2))
    for prompt, group in zip(prompts, groups, strict=True):
        assert len(group) == 2
        for completion in group:
            expected = training_logps(policy, prompt, completion.token_ids, 0.7)
            torch.testing.assert_close(torch.tensor(completion.logps), expected, atol=1e-4, rtol=0)
            assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == 3)
            assert 3 not in completion.token_ids[:-1]


def test_greedy_agrees_with_the_native_engine(policy):
    prompts, params = ragged_prompts((3, 8)), SamplingParams(max_tokens=6, temperature=0.0, banned_token_ids=(1, 2))
    native, hf = (cls(policy, eos_token_id=3).generate(prompts, params) for cls in (RolloutEngine, HFRolloutEngine))
    assert tokens(native) == tokens(hf)


def test_same_seed_same_batch_and_the_global_generator_is_untouched(policy):
    engine, params = HFRolloutEngine(policy, eos_token_id=3), SamplingParams(n=2, max_tokens=4, seed=9)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = engine.generate([[1, 2]], params)
    assert torch.equal(torch.rand(3), expected)
    assert tokens(first) == tokens(engine.generate([[1, 2]], params))


def test_bad_requests_are_named(policy):
    engine = HFRolloutEngine(policy, eos_token_id=3)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        engine.generate([[]], SamplingParams())
    with pytest.raises(ValueError, match="seeds per batch"):
        engine.generate([[1]], SamplingParams(), seeds=[[1]])
