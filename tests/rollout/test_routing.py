"""Experts recorded while sampling are those that the policy's gates choose."""

import pytest
import torch
from gates import gate_choices
from rollout_cases import ragged_prompts, tiny_policy, tokens
from test_engine import BACKENDS
from test_speculative import mtp_policy
from transformers import DeepseekV3Config

from r1lab.model import PolicyForCausalLM
from r1lab.rollout import HFRolloutEngine, RolloutEngine, SamplingParams, VLLMRolloutEngine

PROMPTS = ragged_prompts((1, 9, 4, 17, 2))


def our_policy(**changes) -> PolicyForCausalLM:
    base = tiny_policy(num_hidden_layers=3, **changes)
    policy = PolicyForCausalLM(DeepseekV3Config.from_dict(base.config.to_dict())).eval()
    policy.load_state_dict(base.state_dict())
    return policy


@pytest.fixture(scope="module")
def policy():
    return our_policy()


def assert_recorded(policy, groups, prompts) -> None:
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            expected = gate_choices(policy, torch.tensor([(prompt + completion.token_ids)[:-1]]))[0]
            assert completion.routing.dtype == completion.prompt_routing.dtype == torch.int16
            assert len(completion.routing) == len(completion.token_ids)
            assert torch.equal(torch.cat([completion.prompt_routing, completion.routing]).long(), expected)
        assert all(completion.prompt_routing is group[0].prompt_routing for completion in group), "kept more than once"


@pytest.mark.parametrize("max_batch", [512, 4, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_groups_record_what_the_gates_choose(policy, backend, max_batch):
    # Fewer slots than requests: slots are used again, and a prompt's group is split over several admissions.
    engine = RolloutEngine(policy, eos_token_id=[3, 4, 5, 6], backend=backend, max_batch=max_batch)
    groups = engine.generate(PROMPTS, SamplingParams(n=3, max_tokens=12, seed=1, record_routing=True))
    assert len({len(completion.token_ids) for group in groups for completion in group}) > 4
    assert_recorded(policy, groups, PROMPTS)


@pytest.mark.parametrize(
    "changes",
    [{"first_k_dense_replace": 0}, {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_policies(backend, changes):
    policy = our_policy(**changes)
    engine = RolloutEngine(policy, eos_token_id=3, backend=backend)
    groups = engine.generate(PROMPTS, SamplingParams(n=2, max_tokens=6, seed=1, record_routing=True))
    assert_recorded(policy, groups, PROMPTS)


@pytest.mark.parametrize("num_drafts", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rejected_drafts_leave_no_trace(backend, num_drafts):
    policy = mtp_policy(num_hidden_layers=3, first_k_dense_replace=2)
    engine = RolloutEngine(policy, eos_token_id=3, backend=backend, max_batch=4, num_speculative_tokens=num_drafts)
    engine.drafting.always = True
    groups = engine.generate(PROMPTS, SamplingParams(n=3, max_tokens=16, seed=3, record_routing=True))
    assert 0 < engine.drafting.accepted < engine.drafting.drafted
    assert_recorded(policy, groups, PROMPTS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_recording_changes_no_completion(policy, backend):
    engine = RolloutEngine(policy, eos_token_id=3, backend=backend)
    how = {"n": 2, "max_tokens": 10, "seed": 2}
    plain, recorded = (engine.generate(PROMPTS, SamplingParams(**how, record_routing=on)) for on in (False, True))
    assert plain == recorded and tokens(plain) == tokens(recorded)
    assert all(each.routing is None and each.prompt_routing is None for group in plain for each in group)


def test_a_policy_without_experts_has_nothing_to_record():
    engine = RolloutEngine(our_policy(first_k_dense_replace=3), eos_token_id=3)
    with pytest.raises(ValueError, match="record_routing=True: the policy has no MoE layers"):
        engine.generate([[1, 2]], SamplingParams(record_routing=True))


def test_engines_that_do_not_see_the_experts_refuse():
    policy, params = tiny_policy(), SamplingParams(record_routing=True)
    engines = [HFRolloutEngine(policy, eos_token_id=3), VLLMRolloutEngine(object(), policy, 3, accelerator=None)]
    for engine in engines:
        with pytest.raises(ValueError, match=f"{type(engine).__name__} does not record.*leave router_replay off"):
            engine.generate([[1, 2]], params)
