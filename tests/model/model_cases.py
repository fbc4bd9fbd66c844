"""Tiny configs and random models that the model tests share."""

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from r1lab.model import PolicyForCausalLM

VOCAB = 61

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
    "beta_fast": 32,
    "beta_slow": 1,
}

VARIANTS = {
    "default": {},
    "no_q_lora": {"q_lora_rank": None},
    "groups": {"n_group": 4, "topk_group": 2, "n_routed_experts": 16, "num_experts_per_tok": 3},
    "no_dense_layer": {"first_k_dense_replace": 0},
    "all_dense": {"first_k_dense_replace": 2},
    "yarn": {"rope_parameters": YARN, "max_position_embeddings": 64},
    "linear_rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}},
    "two_shared_experts": {"n_shared_experts": 2},
    "not_interleaved": {"rope_interleave": False},
    "odd_sizes": {
        "hidden_size": 72,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "qk_nope_head_dim": 20,
        "qk_rope_head_dim": 6,
        "v_head_dim": 28,
        "kv_lora_rank": 18,
        "moe_intermediate_size": 22,
    },
    "attention_bias": {"attention_bias": True},
    "raw_weights": {"norm_topk_prob": False, "routed_scaling_factor": 1.7},
    "tied_embeddings": {"tie_word_embeddings": True},
}


def make_config(**changes) -> DeepseekV3Config:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 80,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "routed_scaling_factor": 2.5,
        "initializer_range": 0.1,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    return DeepseekV3Config(**{**fields, **changes})


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Move everything that starts at a constant, so that a test sees it: norms, biases, the routing bias."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name or name.endswith("bias"):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def make_policy(seed: int = 0, **changes) -> PolicyForCausalLM:
    torch.manual_seed(seed)
    return randomize(PolicyForCausalLM(make_config(**changes)), seed).eval()


def make_pair(seed: int = 0, **changes) -> tuple[PolicyForCausalLM, DeepseekV3ForCausalLM]:
    """Our policy and transformers' model with the same random weights, in eval mode."""
    ours = make_policy(seed, **changes)
    theirs = DeepseekV3ForCausalLM(make_config(**changes)).eval()
    theirs.set_experts_implementation("eager")  # its default, grouped matrix products, refuses odd sizes
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def make_ids(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCAB, (rows, columns), generator=torch.Generator().manual_seed(seed))


def right_mask(lengths: list[int], columns: int) -> torch.Tensor:
    return (torch.arange(columns)[None] < torch.tensor(lengths)[:, None]).long()
