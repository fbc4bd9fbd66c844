"""A small policy and the numbers that the training forward gives for a rollout."""

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

VOCAB = 61


def tiny_policy(seed: int = 0, **changes) -> DeepseekV3ForCausalLM:
    """Random weights, large enough that the distribution is far from uniform."""
    fields = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=40, moe_intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_shared_experts=1, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=12, kv_lora_rank=12, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, max_position_embeddings=64, initializer_range=0.3, bos_token_id=0,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    policy = DeepseekV3ForCausalLM(DeepseekV3Config(**(fields | changes))).eval()
    for layer in policy.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.e_score_correction_bias.normal_(std=0.1)
    return policy


def ragged_prompts(lengths=(1, 9, 4, 17), seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def training_logps(policy, prompt: list[int], token_ids: list[int], temperature: float) -> torch.Tensor:
    logits = policy(torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(token_ids)[:, None])[:, 0]


def tokens(groups) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in group] for group in groups]
