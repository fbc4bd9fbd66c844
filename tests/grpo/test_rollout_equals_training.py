"""A rollout's log-probabilities are those of the training pass, bit for bit, whatever shares a batch on either side."""

from pathlib import Path

import pytest
import torch
from grpo_cases import make_policy

from r1lab.grpo.batch import build_batches
from r1lab.grpo.logps import LogpsModel, completion_logps
from r1lab.kernels.build import load_extension
from r1lab.loading import load_policy
from r1lab.model import PolicyForCausalLM
from r1lab.rollout import RolloutEngine, SamplingParams
from r1lab.types import Prompt, Rollout, RolloutGroup

pytestmark = pytest.mark.skipif(not load_extension(), reason="the reference multiplies in torch's order")
BASE = str(Path(__file__).parents[2] / "data" / "base")
ODD = {
    "hidden_size": 72, "intermediate_size": 90, "moe_intermediate_size": 27, "num_attention_heads": 3,
    "q_lora_rank": None, "kv_lora_rank": 20, "qk_rope_head_dim": 6, "qk_nope_head_dim": 14, "v_head_dim": 18,
    "n_shared_experts": 2, "rope_interleave": False,
}  # fmt: skip
"""No size is a multiple of a vector."""


def sample(policy, prompt_lengths, engine_options=None, **params) -> list[RolloutGroup]:
    engine = RolloutEngine(policy, eos_token_id=[1], **(engine_options or {}))
    generator = torch.Generator().manual_seed(0)
    vocab = policy.config.vocab_size
    prompts = [torch.randint(2, vocab, (length,), generator=generator).tolist() for length in prompt_lengths]
    settings = SamplingParams(**{"n": 5, "max_tokens": 40, "seed": 3, "record_routing": True} | params)
    return [
        RolloutGroup(Prompt("", ids), [Rollout(completion, "", advantage=1.0) for completion in completions])
        for ids, completions in zip(prompts, engine.generate(prompts, settings), strict=True)
    ]


def assert_equal_bits(policy, groups, max_tokens_per_batch, share_prompts, temperature, replay_routing=False):
    batches, totals = build_batches(
        groups, pad_token_id=0, max_tokens_per_batch=max_tokens_per_batch, share_prompts=share_prompts,
        replay_routing=replay_routing,
    )  # fmt: skip
    assert totals.num_tokens > 100
    model = LogpsModel(policy).train()
    for batch in batches:
        logps, _, *flips = completion_logps(model, batch, temperature)
        assert torch.equal(logps[batch.completion_mask], batch.rollout_logps[batch.completion_mask])
        assert not any(flip.any() for flip in flips)


@pytest.mark.parametrize("replay_routing", [False, True])
@pytest.mark.parametrize(("max_tokens_per_batch", "share_prompts"), [(100, True), (100_000, True), (300, False)])
def test_the_embedded_base(max_tokens_per_batch, share_prompts, replay_routing):
    policy, _ = load_policy(BASE)
    groups = sample(policy, [3, 17, 8, 30], temperature=0.8)
    assert_equal_bits(policy, groups, max_tokens_per_batch, share_prompts, 0.8, replay_routing)


@pytest.mark.parametrize(("max_batch", "num_threads"), [(1, 1), (3, 2), (64, 2)])
def test_any_number_of_slots_and_threads(max_batch, num_threads):
    policy, _ = load_policy(BASE)
    options = {"max_batch": max_batch, "num_threads": num_threads}
    assert_equal_bits(policy, sample(policy, [5, 9, 2], options), 400, True, 1.0)


@pytest.mark.parametrize("changes", [{}, ODD, {"n_routed_experts": 6, "num_experts_per_tok": 3, "n_group": 1}], ids=str)
def test_other_architectures(changes):
    policy = make_policy(**changes)
    assert_equal_bits(policy, sample(policy, [3, 20, 11], n=8), 500, True, 1.0)


def test_contexts_longer_than_a_chunk_of_the_cache():
    policy, _ = load_policy(BASE)
    assert_equal_bits(policy, sample(policy, [250, 240], n=8, max_tokens=60), 2000, True, 1.0)


def test_with_a_drafting_module():
    policy = PolicyForCausalLM.from_pretrained(BASE, dtype=torch.float32, with_mtp=True)
    groups = sample(policy, [3, 20, 11], {"num_speculative_tokens": 2})
    assert_equal_bits(policy, groups, 500, True, 1.0)
