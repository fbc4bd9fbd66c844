"""The policies that the benchmarks run, ours and transformers' with the same weights."""

from pathlib import Path

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from r1lab.model import PolicyForCausalLM

BASE = Path(__file__).resolve().parents[2] / "data" / "base"
EXPERTS = ("eager", "grouped_mm", "batched_mm")
"""transformers' ways to compute experts."""

MEDIUM = {
    "vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "moe_intermediate_size": 192,
    "num_hidden_layers": 8, "first_k_dense_replace": 1, "num_attention_heads": 6, "num_key_value_heads": 6,
    "q_lora_rank": 192, "kv_lora_rank": 96, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "v_head_dim": 64,
    "n_routed_experts": 16, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 1.0, "max_position_embeddings": 8192, "initializer_range": 0.05,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""About 38 M parameters."""


def load_policy_of_size(size: str = "tiny") -> PolicyForCausalLM:
    """Ours in fp32: "tiny" is the embedded base, "medium" has random weights."""
    torch.manual_seed(0)
    if size == "tiny":
        return PolicyForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    return PolicyForCausalLM(DeepseekV3Config(**MEDIUM)).eval()


def load_pair(size: str = "tiny") -> tuple[PolicyForCausalLM, DeepseekV3ForCausalLM]:
    """(ours, transformers') with the same weights, as `load_policy_of_size`."""
    ours = load_policy_of_size(size)
    theirs = DeepseekV3ForCausalLM(ours.config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


def random_prompts(count: int, length: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (count, length), generator=generator).tolist()


def decode_flops(config: DeepseekV3Config, length: float) -> float:
    """Operations (2 a multiply-add) of one token's forward with absorbed attention over `length` cached tokens, the
    head included."""
    cached = length * config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return 2.0 * _decode_numbers(config, cached, config.num_experts_per_tok)


def decode_bytes(config: DeepseekV3Config, batch: int, length: float) -> float:
    """fp32 bytes that one step of `batch` sequences with `length` cached tokens reads at least once: the weights that
    some row uses (experts drawn evenly) and every sequence's latents."""
    unused = (1 - config.num_experts_per_tok / config.n_routed_experts) ** batch
    cached = batch * length * (config.kv_lora_rank + config.qk_rope_head_dim)
    return 4.0 * _decode_numbers(config, cached, config.n_routed_experts * (1 - unused))


def _decode_numbers(config: DeepseekV3Config, cached: float, routed_experts: float) -> float:
    """Weights of a step's matrices, each a multiply-add a token: absorbed attention, so many routed experts, the head;
    and `cached` a layer for what attention does with its cache."""
    D, H, C = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    N, R, W = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    q = D * config.q_lora_rank + config.q_lora_rank * H * (N + R) if config.q_lora_rank else D * H * (N + R)
    attention = q + D * (C + R) + H * C * (N + W) + H * W * D + cached
    dense = 3 * D * config.intermediate_size
    experts = routed_experts + config.n_shared_experts
    moe = 3 * D * config.moe_intermediate_size * experts + D * config.n_routed_experts
    num_dense = config.first_k_dense_replace
    layers = config.num_hidden_layers * attention + num_dense * dense + (config.num_hidden_layers - num_dense) * moe
    return layers + D * config.vocab_size
