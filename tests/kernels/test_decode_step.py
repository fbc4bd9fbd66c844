import numpy as np
import pytest
import torch
from gates import gate_choices
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from r1lab.kernels.cpu.decode_step import CpuDecoder
from r1lab.kernels.reference.decode_step import ReferenceDecoder, random_stream, random_uniform
from r1lab.model import PolicyForCausalLM
from r1lab.precision import enable_fp8
from r1lab.rollout.policy_weights import read_weights

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        "mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 32.0, "beta_slow": 1.0}  # fmt: skip
VARIANTS = {
    "default": {},
    "no_q_lora": {"q_lora_rank": None},
    "all_dense": {"first_k_dense_replace": 9},
    "no_dense": {"first_k_dense_replace": 0},
    "groups": {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    "unnormalised_weights": {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "attention_bias": {"attention_bias": True},
    "half_rope": {"rope_interleave": False},
    "yarn": {"rope_parameters": YARN},
    "odd_sizes": {"hidden_size": 37, "kv_lora_rank": 11, "v_head_dim": 7, "qk_nope_head_dim": 5,
                  "num_attention_heads": 5, "num_key_value_heads": 5, "moe_intermediate_size": 19,
                  "intermediate_size": 29, "vocab_size": 67},
    "two_shared": {"n_shared_experts": 2},
}  # fmt: skip


def make_policy(**changes) -> DeepseekV3ForCausalLM:
    fields = dict(
        vocab_size=61, hidden_size=32, intermediate_size=40, moe_intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_shared_experts=1, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=12, kv_lora_rank=12, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    config = DeepseekV3Config(**(fields | changes))
    config._experts_implementation = "eager"  # the default one rejects odd sizes
    policy = DeepseekV3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, tensor in [*policy.named_parameters(), *policy.named_buffers()]:
            if name.endswith(("bias", "norm.weight")):
                tensor.add_(torch.randn_like(tensor) * 0.2)
    return policy


@pytest.fixture(params=[ReferenceDecoder, CpuDecoder])
def decoder_class(request):
    if request.param is CpuDecoder:
        request.getfixturevalue("cpu_kernels")
    return request.param


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_step_by_step_logits_equal_the_full_forward(decoder_class, variant):
    policy = make_policy(**VARIANTS[variant])
    ids = torch.randint(0, 61, (3, 19))
    prefill = [2, 9, 14]  # ragged: each sequence has another length when single steps begin
    decoder = decoder_class(read_weights(policy, 24), 3, 24)
    slots, positions = [2, 0, 1], [np.arange(length) for length in prefill]
    decoder.prefill(
        np.repeat(slots, prefill),
        np.concatenate([ids[i, :n] for i, n in enumerate(prefill)]),
        np.concatenate(positions),
    )
    expected = policy(ids).logits
    for step in range(5):
        position = np.array([length + step for length in prefill])
        logits = decoder.logits(np.array(slots), ids[torch.arange(3), position].numpy(), position)
        torch.testing.assert_close(logits, expected[torch.arange(3), position], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["default", "no_q_lora", "groups", "odd_sizes", "wider_than_a_tile"])
@torch.no_grad()
def test_a_policy_in_fp8_is_sampled_in_fp8(decoder_class, variant):
    """Where rounding differs in a tie all that follows does: hence quantiles."""
    wide = {"hidden_size": 136, "kv_lora_rank": 130, "q_lora_rank": 140, "intermediate_size": 150}
    policy = ours_of(make_policy(**(wide if variant == "wider_than_a_tile" else VARIANTS[variant])))
    ids = torch.randint(0, 61, (16, 4))
    high = policy(ids).logits
    assert not any(layer.fp8 for layer in read_weights(policy, 8).layers)
    enable_fp8(policy)
    weights, expected = read_weights(policy, 8), policy(ids).logits
    assert all(layer.fp8 for layer in weights.layers)
    slot, position = np.repeat(np.arange(16), 4), np.tile(np.arange(4), 16)
    errors = []
    for rounds in (True, False):
        for layer in weights.layers:
            layer.fp8 = rounds
        logits = decoder_class(weights, 16, 8).logits(slot, ids.flatten().numpy(), position)
        errors.append((logits.view_as(expected) - expected).abs().amax(-1).flatten())
    assert errors[0].quantile(0.8) < 1e-4 < errors[1].quantile(0.2)
    assert (high - expected).abs().amax() > 1e-3


@torch.no_grad()
def test_whole_prompts_and_single_tokens_agree_bitwise(cpu_kernels):
    weights, tokens = read_weights(make_policy(), 96), np.arange(90) % 61
    whole, single = CpuDecoder(weights, 1, 96, num_threads=1), CpuDecoder(weights, 1, 96, num_threads=2)
    expected = whole.logits(np.zeros(90), tokens, np.arange(90))
    for t in range(90):
        assert torch.equal(single.logits(np.zeros(1), tokens[t : t + 1], np.array([t]))[0], expected[t])


@torch.no_grad()
def test_whole_prompts_and_single_tokens_agree_bitwise_across_chunks(cpu_kernels):
    policy = make_policy(num_attention_heads=7, num_key_value_heads=7, max_position_embeddings=512)
    weights, tokens = read_weights(policy, 300), np.arange(290) % 61
    whole, single = CpuDecoder(weights, 1, 300, num_threads=1), CpuDecoder(weights, 2, 300, num_threads=2)
    expected = whole.logits(np.zeros(290), tokens, np.arange(290))
    single.prefill(np.ones(254), tokens[:254], np.arange(254))
    for t in range(254, 290):
        assert torch.equal(single.logits(np.ones(1), tokens[t : t + 1], np.array([t]))[0], expected[t])


@pytest.mark.parametrize("num_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("length", [256, 257, 700])
@torch.no_grad()
def test_contexts_longer_than_a_chunk(decoder_class, num_heads, length):
    """The compiled decoder reads 256 positions at a time, and rescales when a later chunk has a larger score."""
    policy = make_policy(num_attention_heads=num_heads, num_key_value_heads=num_heads, max_position_embeddings=1024)
    with torch.no_grad():
        policy.model.layers[0].self_attn.q_b_proj.weight.mul_(20)  # scores some tens apart: a softmax of few tokens
    ids = torch.randint(0, 61, (2, length))
    decoder = decoder_class(read_weights(policy, length), 2, length)
    logits = decoder.logits(np.repeat([1, 0], length), ids.flatten().numpy(), np.tile(np.arange(length), 2))
    torch.testing.assert_close(logits.view(2, length, -1), policy(ids).logits, atol=5e-4, rtol=1e-4)


@torch.no_grad()
def test_fork_copies_a_prompt(decoder_class):
    policy = make_policy()
    decoder = decoder_class(read_weights(policy, 24), 4, 24)
    decoder.prefill(np.full(11, 1), np.arange(11), np.arange(11))
    decoder.fork(1, [3, 0], 11)
    logits = decoder.logits(np.array([3, 1, 0]), np.array([7, 7, 9]), np.full(3, 11))
    expected = [policy(torch.tensor([[*range(11), token]])).logits[0, -1] for token in (7, 7, 9)]
    torch.testing.assert_close(logits, torch.stack(expected), atol=2e-4, rtol=1e-4)


def ours_of(policy: DeepseekV3ForCausalLM) -> PolicyForCausalLM:
    ours = PolicyForCausalLM(policy.config).eval()
    ours.load_state_dict(policy.state_dict())
    return ours


@pytest.mark.parametrize("variant", ["default", "no_dense", "groups"])
@torch.no_grad()
def test_recorded_routing_is_what_the_gates_choose(decoder_class, variant):
    policy = make_policy(**{"num_hidden_layers": 3} | VARIANTS[variant])
    ids = torch.randint(0, 61, (2, 13))
    decoder = decoder_class(read_weights(policy, 16), 4, 16, record_routing=True)
    decoder.prefill(np.repeat([2, 0], 9), ids[:, :9].flatten().numpy(), np.tile(np.arange(9), 2))
    for t in range(9, 13):
        decoder.logits(np.array([0, 2]), ids.flip(0)[:, t].numpy(), np.full(2, t))
    expected = gate_choices(ours_of(policy), ids)
    assert decoder.routing.dtype == torch.int16 and decoder.routing.shape[2:] == expected.shape[2:]
    assert torch.equal(decoder.routing[[2, 0], :13].long(), expected)
    assert (decoder.routing[[1, 3]] == -1).all() and (decoder.routing[:, 13:] == -1).all()
    assert len(expected.flatten(0, 1).unique(dim=0)) > 5, "a choice that does not vary shows little"


def test_routing_is_not_recorded_unasked(decoder_class):
    assert decoder_class(read_weights(make_policy(), 8), 1, 8).routing is None
    with pytest.raises(ValueError, match="record_routing=True: the policy has no MoE layers"):
        decoder_class(read_weights(make_policy(**VARIANTS["all_dense"]), 8), 1, 8, record_routing=True)


def test_cpu_decoder_refuses_other_dtypes(cpu_kernels):
    with pytest.raises(ValueError, match="float64"):
        CpuDecoder(read_weights(make_policy().double(), 8), 1, 8)


def test_random_numbers_are_fixed_and_uniform():
    stream = random_stream(1, 2, 3)
    assert stream == random_stream(1, 2, 3) != random_stream(1, 3, 2)
    assert (random_stream(1, np.arange(3)[:, None], np.arange(4)) == stream).nonzero() == (np.array([2]), np.array([3]))
    # splitmix64's published first output for seed 0 pins the hash.
    assert random_stream(0) == 0xE220A8397B1DCDAF
    numbers = random_uniform(np.repeat(stream, 20_000), np.arange(20_000))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.bincount((numbers * 20).astype(int), minlength=20)
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # 19 degrees of freedom: p = 1e-4
