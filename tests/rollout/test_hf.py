import pytest
import torch
from rollout_cases import VOCAB, ragged_prompts, tiny_policy, tokens, training_logps
from transformers import GenerationConfig

from r1lab.rollout import HFRolloutEngine, RolloutEngine, SamplingParams


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def test_logps_are_the_training_forwards_over_padded_batches(policy):
    prompts = ragged_prompts((3, 8))
    engine = HFRolloutEngine(policy, eos_token_id=3, max_batch=3)
    groups = engine.generate(prompts, SamplingParams(n=2, max_tokens=6, temperature=0.7, top_k=20, seed=2))
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


def test_explicit_seeds_decide_and_earlier_calls_do_not(policy):
    engine, prompts = HFRolloutEngine(policy), ragged_prompts((3, 5))
    seeds = [[7, 8], [9, (5 << 48) + 10]]
    first = tokens(engine.generate(prompts, SamplingParams(n=2, max_tokens=8, seed=1), seeds=seeds))
    engine.generate(prompts, SamplingParams(max_tokens=3))
    assert first == tokens(engine.generate(prompts, SamplingParams(n=2, max_tokens=8, seed=2), seeds=seeds))
    assert first != tokens(engine.generate(prompts, SamplingParams(n=2, max_tokens=8), seeds=[[7, 8], [9, 11]]))


def test_batches_draw_from_generators_of_their_own(policy):
    engine = HFRolloutEngine(policy, max_batch=1)
    params = SamplingParams(n=2, max_tokens=8)
    assert len(set(map(tuple, tokens(engine.generate([[1, 2]], params))[0]))) == 2
    # With one request a batch, its own seed is all that a completion depends on.
    swapped = tokens(engine.generate([[1, 2]], params, seeds=[[4, 3]]))[0][::-1]
    assert tokens(engine.generate([[1, 2]], params, seeds=[[3, 4]]))[0] == swapped


def test_banned_tokens_are_never_sampled_and_logps_ignore_the_ban(policy):
    allowed = (4, 5)
    banned = tuple(token for token in range(VOCAB) if token not in allowed)
    params = SamplingParams(n=3, max_tokens=5, banned_token_ids=banned)
    (group,) = HFRolloutEngine(policy).generate([[1, 2]], params)
    for completion in group:
        assert set(completion.token_ids) <= set(allowed)
        expected = training_logps(policy, [1, 2], completion.token_ids, 1.0)
        torch.testing.assert_close(torch.tensor(completion.logps), expected, atol=1e-4, rtol=0)


def test_the_models_generation_defaults_play_no_part(policy):
    engine, prompts = HFRolloutEngine(policy, eos_token_id=3), ragged_prompts((3, 8))
    params = SamplingParams(n=2, max_tokens=8)
    expected, saved = tokens(engine.generate(prompts, params)), policy.generation_config
    policy.generation_config = GenerationConfig(
        repetition_penalty=50.0, top_k=1, min_p=0.9, do_sample=True, eos_token_id=[5, 6], bad_words_ids=[[7]]
    )
    try:
        assert tokens(engine.generate(prompts, params)) == expected
        assert policy.generation_config.repetition_penalty == 50.0
    finally:
        policy.generation_config = saved


@pytest.mark.parametrize("pad", [None, -1, VOCAB])
def test_a_model_without_a_usable_pad_token(policy, pad):
    for eos, expected in ((3, 3), (None, 0)):
        engine = HFRolloutEngine(policy, eos_token_id=eos, pad_token_id=pad)
        assert engine.pad_token_id == expected
        assert [len(group) for group in engine.generate(ragged_prompts((2, 5)), SamplingParams(max_tokens=2))] == [1, 1]


def test_training_mode_is_given_back(policy):
    engine = HFRolloutEngine(policy)
    policy.train()
    try:
        engine.generate([[1]], SamplingParams(max_tokens=2))
        assert policy.training
    finally:
        policy.eval()


def test_completions_end_where_the_context_does(policy):
    prompt = [1] * (policy.config.max_position_embeddings - 3)
    ((completion,),) = HFRolloutEngine(policy).generate([prompt], SamplingParams(max_tokens=10))
    assert (len(completion.token_ids), completion.finish_reason) == (3, "length")


@pytest.mark.parametrize(
    ("prompt", "options", "seeds", "message"),
    [
        ([], {}, None, "prompt 0 is empty"),
        ([VOCAB], {}, None, f"prompt 0 has token id {VOCAB}, outside the vocabulary"),
        ([1] * 64, {}, None, "prompt 0 has 64 tokens, a context of 64 leaves no room"),
        ([1], {}, [[1, 2]], r"seeds\[0\] has 2 seeds for n=1"),
        ([1], {}, [], "seeds has 0 rows for 1 prompts"),
        ([1], {"banned_token_ids": tuple(range(VOCAB))}, None, f"bans all {VOCAB} tokens"),
    ],
)
def test_bad_requests_are_named(policy, prompt, options, seeds, message):
    with pytest.raises(ValueError, match=message):
        HFRolloutEngine(policy, eos_token_id=3).generate([prompt], SamplingParams(**options), seeds=seeds)
