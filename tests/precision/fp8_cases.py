"""A small policy and a batch for it."""

import torch
from transformers import DeepseekV3Config

IDS = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(1))


def make_config(**changes) -> DeepseekV3Config:
    fields = dict(
        vocab_size=64, hidden_size=128, intermediate_size=160, moe_intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, kv_lora_rank=24, q_lora_rank=32, qk_rope_head_dim=8,
        qk_nope_head_dim=16, v_head_dim=16, routed_scaling_factor=1.0, initializer_range=0.1,
        max_position_embeddings=64, pad_token_id=None,
    )  # fmt: skip
    return DeepseekV3Config(**(fields | changes))
