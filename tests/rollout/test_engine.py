import math

import pytest
import torch
from rollout_cases import VOCAB, ragged_prompts, tiny_policy, tokens, training_logps
from transformers import DeepseekV3Config

from r1lab.kernels.build import load_extension
from r1lab.model import PolicyForCausalLM
from r1lab.rollout import RolloutEngine, SamplingParams

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(not load_extension(), reason="no compiler"))]


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_logps_are_the_training_forwards(policy, backend, temperature):
    prompts = ragged_prompts()
    engine = RolloutEngine(policy, eos_token_id=3, backend=backend, max_batch=5)
    groups = engine.generate(prompts, SamplingParams(n=2, max_tokens=12, temperature=temperature, seed=1))
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            expected = training_logps(policy, prompt, completion.token_ids, temperature)
            torch.testing.assert_close(torch.tensor(completion.logps), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_is_transformers_generate(policy, backend):
    engine = RolloutEngine(policy, eos_token_id=[], backend=backend)
    prompts = ragged_prompts((1, 6, 13))
    groups = engine.generate(prompts, SamplingParams(max_tokens=16, temperature=0.0))
    for prompt, (completion,) in zip(prompts, groups, strict=True):
        ids = torch.tensor([prompt])
        expected = policy.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=0
        )
        assert completion.token_ids == expected[0, len(prompt) :].tolist()
        torch.testing.assert_close(
            torch.tensor(completion.logps), training_logps(policy, prompt, completion.token_ids, 1.0), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.0}, {"top_k": 5, "temperature": 1.3}, {"top_p": 0.7}, {"top_p": 0.9, "top_k": 8},
            {"banned_token_ids": (5, 6, 7)}]
)  # fmt: skip
def test_backends_sample_the_same_tokens(policy, cpu_kernels, how):
    groups = [
        RolloutEngine(policy, eos_token_id=3, backend=backend, max_batch=6).generate(
            ragged_prompts(), SamplingParams(n=2, max_tokens=10, seed=4, **how))
        for backend in ("cpu", "reference")
    ]  # fmt: skip
    assert tokens(groups[0]) == tokens(groups[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_our_policy_and_transformers_give_the_same_rollouts(policy, backend):
    ours = PolicyForCausalLM(DeepseekV3Config.from_dict(policy.config.to_dict())).eval()
    ours.load_state_dict(policy.state_dict())
    params = SamplingParams(n=2, max_tokens=8, seed=2)
    engines = [RolloutEngine(model, eos_token_id=3, backend=backend) for model in (ours, policy)]
    results = [engine.generate([[1, 2], [5]], params) for engine in engines]
    assert results[0] == results[1]


def test_results_do_not_depend_on_batch_or_threads_bitwise(policy, cpu_kernels):
    prompts = ragged_prompts((1, 9, 4, 17, 2, 30))
    params = SamplingParams(n=3, max_tokens=24, seed=7)
    results = [
        RolloutEngine(
            policy, eos_token_id=[3, 4], backend="cpu", max_batch=max_batch, num_threads=num_threads
        ).generate(prompts, params)
        for max_batch, num_threads in ((512, 1), (1, 1), (3, 2), (7, 1), (512, 2), (512, 3))
    ]  # fmt: skip
    assert all(result == results[0] for result in results[1:])


def test_reference_tokens_do_not_depend_on_max_batch(policy):
    params = SamplingParams(n=2, max_tokens=6, seed=7)
    results = [
        RolloutEngine(policy, eos_token_id=3, backend="reference", max_batch=b).generate(ragged_prompts(), params)
        for b in (512, 3)
    ]
    assert tokens(results[0]) == tokens(results[1])


def test_explicit_seeds_make_completions_independent_of_the_split(policy):
    prompts, params = ragged_prompts(), SamplingParams(n=2, max_tokens=8, seed=0)
    seeds = [[11, 12], [13, 14], [15, 16], [17, 18]]
    engine = RolloutEngine(policy, eos_token_id=3)
    whole = engine.generate(prompts, params, seeds=seeds)
    parts = [engine.generate([prompt], params, seeds=[row])[0] for prompt, row in zip(prompts, seeds, strict=True)]
    assert tokens(whole) == tokens(parts)


def test_seeds_matter_and_completions_of_a_group_differ(policy):
    engine = RolloutEngine(policy, eos_token_id=[])
    first, second = (engine.generate([[1, 2]], SamplingParams(n=4, max_tokens=12, seed=seed)) for seed in (0, 1))
    assert tokens(first) != tokens(second)
    assert len({tuple(completion.token_ids) for completion in first[0]}) == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_read_at_every_call(backend):
    policy = tiny_policy(seed=3)
    engine = RolloutEngine(policy, eos_token_id=[], backend=backend)
    params = SamplingParams(max_tokens=4, temperature=0.0)
    engine.generate([[1, 2, 3]], params)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(-0.7)
    (completion,) = engine.generate([[1, 2, 3]], params)[0]
    expected = training_logps(policy, [1, 2, 3], completion.token_ids, 1.0)
    torch.testing.assert_close(torch.tensor(completion.logps), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stops_at_eos_and_at_max_tokens(policy, backend):
    prompt = ragged_prompts((6,))[0]
    engine = RolloutEngine(policy, eos_token_id=[], backend=backend)
    (free,) = engine.generate([prompt], SamplingParams(max_tokens=8, temperature=0.0))[0]
    assert (len(free.token_ids), free.finish_reason) == (8, "length")

    at_once = RolloutEngine(policy, eos_token_id=free.token_ids[0], backend=backend)
    (stopped,) = at_once.generate([prompt], SamplingParams(max_tokens=8, temperature=0.0))[0]
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids[:1], "stop")

    (one,) = engine.generate([prompt], SamplingParams(max_tokens=1, temperature=0.0))[0]
    assert (one.token_ids, one.finish_reason, len(one.logps)) == (free.token_ids[:1], "length", 1)


def test_completion_ends_where_positions_end(policy):
    prompt = ragged_prompts((60,))[0]
    (completion,) = RolloutEngine(policy, eos_token_id=[]).generate([prompt], SamplingParams(max_tokens=50))[0]
    assert (len(completion.token_ids), completion.finish_reason) == (4, "length")


@pytest.mark.parametrize("backend", BACKENDS)
def test_banned_tokens_never_appear(policy, backend):
    banned = tuple(range(0, VOCAB, 2))
    engine = RolloutEngine(policy, eos_token_id=[], backend=backend)
    for how in ({}, {"temperature": 0.0}, {"top_k": 3}):
        params = SamplingParams(n=4, max_tokens=10, banned_token_ids=banned, **how)
        (group,) = engine.generate([[1, 2, 3]], params)
        assert all(token % 2 == 1 for completion in group for token in completion.token_ids)
        expected = training_logps(policy, [1, 2, 3], group[0].token_ids, 1.0)
        torch.testing.assert_close(torch.tensor(group[0].logps), expected, atol=1e-4, rtol=0)


def first_tokens(policy, n: int, **how) -> torch.Tensor:
    (group,) = RolloutEngine(policy, eos_token_id=[]).generate([[4, 8]], SamplingParams(n=n, max_tokens=1, **how))
    return torch.bincount(torch.tensor([completion.token_ids[0] for completion in group]), minlength=VOCAB)


@torch.no_grad()
def next_probs(policy, temperature: float = 1.0) -> torch.Tensor:
    return (policy(torch.tensor([[4, 8]])).logits[0, -1].double() / temperature).softmax(-1)


def chi_square_z(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """Wilson-Hilferty normal score of Pearson's statistic; cells expected below 5 are merged."""
    expected = probs * counts.sum()
    small = expected < 5
    observed = torch.cat([counts[~small], counts[small].sum()[None]]).double()
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    keep = expected > 0
    statistic, freedom = ((observed - expected)[keep] ** 2 / expected[keep]).sum().item(), int(keep.sum()) - 1
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def test_samples_follow_the_softmax(policy, cpu_kernels):
    counts = first_tokens(policy, 20_000, temperature=1.5, seed=5)
    assert abs(chi_square_z(counts, next_probs(policy, 1.5))) < 4
    assert chi_square_z(counts, next_probs(policy, 1.0)) > 4  # the test can tell


def test_truncated_samples_have_exactly_the_right_support(policy, cpu_kernels):
    probs = next_probs(policy, 2.0)
    order = probs.argsort(descending=True)
    nucleus = int((probs[order].cumsum(-1) < 0.8).sum()) + 1
    for how, size in (({"top_k": 6}, 6), ({"top_p": 0.8}, nucleus), ({"top_p": 0.8, "top_k": 3}, None)):
        size = size or int((probs[order[:3]].cumsum(-1) < 0.8 * probs[order[:3]].sum()).sum()) + 1
        counts = first_tokens(policy, 20_000, temperature=2.0, seed=6, **how)
        assert set(counts.nonzero()[:, 0].tolist()) == set(order[:size].tolist())
        kept = torch.zeros_like(probs)
        kept[order[:size]] = probs[order[:size]] / probs[order[:size]].sum()
        if size > 1:
            assert abs(chi_square_z(counts, kept)) < 4


def test_no_prompts_give_no_groups(policy):
    assert RolloutEngine(policy, eos_token_id=3).generate([], SamplingParams()) == []


def test_bad_requests_are_named(policy):
    engine = RolloutEngine(policy, eos_token_id=3)
    for prompts, message in (
        ([[1], []], "prompt 1 is empty"),
        ([[1] * 64], "64 tokens"),
        ([[1, VOCAB]], f"token id {VOCAB}"),
        ([[-1, 3]], "token id -1"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.generate(prompts, SamplingParams())
    with pytest.raises(ValueError, match="seeds"):
        engine.generate([[1]], SamplingParams(n=2), seeds=[[1]])
    with pytest.raises(ValueError, match="banned_token_ids"):
        engine.generate([[1]], SamplingParams(banned_token_ids=(VOCAB,)))
    with pytest.raises(ValueError, match="leave at least one"):
        engine.generate([[1]], SamplingParams(banned_token_ids=tuple(range(VOCAB))))


@pytest.mark.parametrize(
    "field", [{"n": 0}, {"max_tokens": 0}, {"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0},
              {"top_p": 1.1}, {"top_k": -1}]
)  # fmt: skip
def test_bad_sampling_params_are_named(field):
    name, value = next(iter(field.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        SamplingParams(**field)


def test_bad_engine_arguments_are_named(policy):
    for arguments, message in (
        ({"backend": "gpu"}, "backend='gpu'"),
        ({"max_batch": 0}, "max_batch=0"),
        ({"eos_token_id": VOCAB}, f"eos_token_id={VOCAB}"),
    ):
        with pytest.raises(ValueError, match=message):
            RolloutEngine(policy, **arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_weights_raise_instead_of_sampling(backend):
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.norm.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        RolloutEngine(policy, eos_token_id=3, backend=backend).generate([[1, 2]], SamplingParams())


def test_other_dtypes_use_the_reference():
    engine = RolloutEngine(tiny_policy().double(), eos_token_id=3)
    assert engine.backend == "reference"
    (group,) = engine.generate([[1, 2]], SamplingParams(n=2, max_tokens=3))
    assert all(len(completion.token_ids) for completion in group)
