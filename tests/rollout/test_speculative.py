"""Drafting changes the speed, never a completion."""

import numpy as np
import pytest
import torch
from rollout_cases import VOCAB, ragged_prompts, tiny_policy, tokens
from test_engine import BACKENDS, chi_square_z, next_probs
from transformers import DeepseekV3Config

from r1lab.kernels.cpu.decode_step import CpuDecoder
from r1lab.kernels.reference.decode_step import ReferenceDecoder
from r1lab.kernels.reference.speculative_step import acceptance, mtp_forward
from r1lab.model import PolicyForCausalLM, mtp_hidden_states
from r1lab.precision import enable_fp8
from r1lab.rollout import RolloutEngine, SamplingParams
from r1lab.rollout.policy_weights import read_weights
from r1lab.rollout.speculative import RETRY_CALLS, Drafting, _Pace


def mtp_policy(seed: int = 0, agreeing: bool = True, **changes) -> PolicyForCausalLM:
    """agreeing: the module passes the policy's state on, nearly, so that drafts are often right."""
    base = tiny_policy(seed, **changes)
    policy = PolicyForCausalLM(DeepseekV3Config.from_dict(base.config.to_dict()), with_mtp=True).eval()
    policy.load_state_dict(base.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in policy.mtp.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        if policy.mtp.is_moe:
            policy.mtp.mlp.gate.e_score_correction_bias.normal_(std=0.1)
        if agreeing:  # not the next state but the last one: right where the policy repeats itself
            policy.mtp.eh_proj.weight.mul_(0.1)[:, policy.config.hidden_size :] += torch.eye(policy.config.hidden_size)
            policy.mtp.self_attn.o_proj.weight.mul_(0.1)
            policy.mtp.mlp.experts.down_proj.mul_(0.1)
            policy.mtp.mlp.shared_experts.down_proj.weight.mul_(0.1)
    return policy


@pytest.fixture(scope="module")
def policy():
    return mtp_policy()


def sample(policy, backend, num_drafts, prompts, eos=3, max_batch=5, num_threads=1, **how):
    engine = RolloutEngine(policy, eos_token_id=eos, backend=backend, max_batch=max_batch, num_threads=num_threads,
                           num_speculative_tokens=num_drafts)  # fmt: skip
    engine.drafting.always = True
    return engine.generate(prompts, SamplingParams(**how)), engine.drafting


HOWS = [{}, {"temperature": 0.0}, {"temperature": 0.6, "top_p": 0.9}, {"top_k": 5}, {"banned_token_ids": (5, 6, 7)}]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("num_drafts", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_completions_are_those_of_the_plain_engine(policy, backend, num_drafts, how):
    how = {"n": 3, "max_tokens": 20, "seed": 3, **how}
    plain, _ = sample(policy, backend, 0, ragged_prompts(), **how)
    drafted, counts = sample(policy, backend, num_drafts, ragged_prompts(), **how)
    assert 0 < counts.accepted < counts.drafted
    assert tokens(drafted) == tokens(plain)
    for ours, theirs in zip(sum(drafted, []), sum(plain, []), strict=True):
        assert ours.finish_reason == theirs.finish_reason
        if backend == "cpu":
            assert ours.logps == theirs.logps, "not the same bits"
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits_ends_and_the_last_position_hold(policy, backend):
    prompts = [ragged_prompts((60,))[0], [4], ragged_prompts((30,))[0]]
    for max_tokens in (1, 2, 50):
        for eos in ([], 3, list(range(0, VOCAB, 5))):
            how = {"max_tokens": max_tokens, "n": 2, "eos": eos}
            assert tokens(sample(policy, backend, 2, prompts, **how)[0]) == tokens(
                sample(policy, backend, 0, prompts, **how)[0]
            )


def test_batch_and_threads_change_nothing_bitwise(policy, cpu_kernels):
    prompts, how = ragged_prompts((1, 9, 4, 17, 2, 30)), {"n": 3, "max_tokens": 24, "seed": 7}
    plain, _ = sample(policy, "cpu", 0, prompts, **how)
    for max_batch, num_threads, num_drafts in ((512, 1, 1), (1, 1, 2), (3, 2, 1), (512, 3, 4)):
        drafted, _ = sample(policy, "cpu", num_drafts, prompts, max_batch=max_batch, num_threads=num_threads, **how)
        assert drafted == plain


def test_backends_draft_and_accept_alike(policy, cpu_kernels):
    how = {"n": 2, "max_tokens": 20, "seed": 4}
    (_, ours), (_, theirs) = (sample(policy, backend, 2, ragged_prompts(), **how) for backend in ("cpu", "reference"))
    assert (ours.drafted, ours.accepted, ours.sampled) == (theirs.drafted, theirs.accepted, theirs.sampled)


def test_second_tokens_follow_the_softmax(cpu_kernels):
    """The token sampled in the place of a draft, given the first one: against the policy's own probabilities."""
    policy = mtp_policy()
    ((group,), counts) = sample(policy, "cpu", 1, [[4, 8]], eos=[], max_batch=512, n=40_000, max_tokens=3,
                                temperature=1.5, seed=5)  # fmt: skip
    assert 0.05 < counts.accepted / counts.drafted < 0.95
    firsts = torch.tensor([completion.token_ids[0] for completion in group])
    seconds = torch.tensor([completion.token_ids[1] for completion in group])
    for first in firsts.bincount().topk(3).indices.tolist():
        observed = seconds[firsts == first].bincount(minlength=VOCAB)
        with torch.no_grad():
            probs = (policy(torch.tensor([[4, 8, first]])).logits[0, -1].double() / 1.5).softmax(-1)
        assert abs(chi_square_z(observed, probs)) < 4
        assert chi_square_z(observed, next_probs(policy, 1.5)) > 4  # the test can tell


@pytest.mark.parametrize("decoder_class", [ReferenceDecoder, CpuDecoder])
@pytest.mark.parametrize(
    "changes",
    [{}, {"q_lora_rank": None}, {"n_shared_experts": 2, "n_routed_experts": 12, "n_group": 4, "topk_group": 2},
     {"hidden_size": 37, "kv_lora_rank": 11, "v_head_dim": 7, "qk_nope_head_dim": 5, "moe_intermediate_size": 19,
      "num_attention_heads": 3, "num_key_value_heads": 3}, {"attention_bias": True}, {"first_k_dense_replace": 9}],
)  # fmt: skip
@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_drafts_are_the_modules(decoder_class, changes, precision, request):
    """Greedy drafts of every length of prompt, against the training forward of the module."""
    if decoder_class is CpuDecoder:
        request.getfixturevalue("cpu_kernels")
    policy = mtp_policy(agreeing=False, **changes)
    if precision == "fp8":
        enable_fp8(policy)
    backend = "cpu" if decoder_class is CpuDecoder else "reference"
    prompts = ragged_prompts((1, 2, 9, 17))
    groups, counts = sample(policy, backend, 1, prompts, eos=[], max_tokens=12, temperature=0.0)
    expected = num_drafts = 0
    for prompt, (completion,) in zip(prompts, groups, strict=True):
        ids = torch.tensor([prompt + completion.token_ids])
        states, _ = mtp_hidden_states(policy, policy.hidden_states(ids), ids)
        guesses = policy.lm_head(states)[0].argmax(-1)  # column i speaks about token i + 2
        position = len(prompt)
        while position < ids.shape[1] - 1:  # a draft is made wherever at least two tokens are still to come
            is_right = position >= 2 and guesses[position - 2] == ids[0, position]
            num_drafts += position >= 2
            expected += int(is_right)
            position += 2 if is_right else 1
    assert (counts.drafted, counts.accepted) == (num_drafts, expected)


@torch.no_grad()
def test_the_reference_module_equals_training(policy):
    decoder = ReferenceDecoder(read_weights(policy, 24, with_mtp=True), 1, 24)
    ids = torch.tensor(ragged_prompts((12,)))
    hidden = decoder.prefill(np.zeros(12, np.int32), ids[0].numpy(), np.arange(12))
    states = mtp_forward(decoder, np.zeros(11, np.int32), np.arange(11), hidden[:-1], ids[0, 1:])
    expected, _ = mtp_hidden_states(policy, policy.hidden_states(ids), ids)
    torch.testing.assert_close(states, expected[0], atol=1e-4, rtol=1e-3)


def test_acceptance_is_how_often_one_number_gives_the_same_token():
    generator = torch.Generator().manual_seed(0)
    logits, drafts = (torch.randn(5, 20, generator=generator) * 2 for _ in range(2))
    uniform = torch.rand(200_000, generator=generator, dtype=torch.float64)
    for temperature in (1.0, 0.5):
        expected = acceptance(logits, drafts, temperature)
        for row in range(5):
            chosen = [
                torch.searchsorted((x[row].double() / temperature).softmax(-1).cumsum(-1), uniform)
                for x in (logits, drafts)
            ]
            assert (chosen[0] == chosen[1]).double().mean().item() == pytest.approx(expected[row].item(), abs=0.006)
        assert (acceptance(logits, drafts, temperature, by_rejection=True) >= expected).all()
    assert acceptance(logits, logits).allclose(torch.ones(5))
    assert acceptance(logits, drafts, 0).tolist() == (logits.argmax(-1) == drafts.argmax(-1)).float().tolist()


def test_drafting_goes_by_the_clock_and_looks_again():
    pace = _Pace()
    assert pace.choose() is True
    pace.record(True, 2.0)
    assert pace.choose() is False
    pace.record(False, 1.0)
    choices = [pace.choose() for _ in range(RETRY_CALLS)]
    assert choices == [False] * (RETRY_CALLS - 1) + [True]
    for _ in range(20):
        pace.record(True, 0.5)
    assert pace.choose() is True


def test_metrics_count_since_the_last_look(policy):
    assert Drafting(0).take_metrics() == {}
    _, counts = sample(policy, "auto", 1, ragged_prompts(), n=2, max_tokens=12)
    metrics = counts.take_metrics()
    assert set(metrics) == {"mtp/rollout_acceptance", "mtp/drafted_share"}
    assert 0 < metrics["mtp/rollout_acceptance"] < 1
    assert counts.take_metrics() == {}


def test_impossible_drafts_are_named(policy):
    with pytest.raises(ValueError, match="num_speculative_tokens=1 needs.*with_mtp=True"):
        RolloutEngine(tiny_policy(), eos_token_id=3, num_speculative_tokens=1)
    for number in (-1, 8):
        with pytest.raises(ValueError, match=f"num_speculative_tokens={number}"):
            RolloutEngine(policy, eos_token_id=3, num_speculative_tokens=number)
