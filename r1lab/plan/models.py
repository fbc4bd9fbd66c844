"""The shape of a model, read from a transformers config without importing transformers.

`load_shape` takes a directory, a `config.json`, or a name from `BUILT_IN`. The families: DeepSeek-V3 (multi-head latent
attention, shared and routed experts, multi-token prediction), Llama, Qwen2, Qwen3 (grouped-query attention), Qwen3-MoE.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).resolve().parents[2] / "data" / "base" / "config.json"

_V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "num_hidden_layers": 61, "first_k_dense_replace": 3, "num_attention_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_group": 8, "topk_group": 4,
    "num_nextn_predict_layers": 1, "max_position_embeddings": 163840,
}  # fmt: skip


def _gqa(
    kind: str, vocab: int, hidden: int, inner: int, layers: int, heads: int, kv: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, **more,
    }  # fmt: skip


BUILT_IN: dict[str, dict[str, Any]] = {
    # The values are those of each model's published config.json.
    "deepseek-v3": _V3,
    "deepseek-r1": _V3,
    "qwen2.5-0.5b": _gqa("qwen2", 151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True),
    "qwen2.5-1.5b": _gqa("qwen2", 151936, 1536, 8960, 28, 12, 2, tie_word_embeddings=True),
    "qwen2.5-7b": _gqa("qwen2", 152064, 3584, 18944, 28, 28, 4),
    "qwen2.5-72b": _gqa("qwen2", 152064, 8192, 29568, 80, 64, 8),
    "qwen3-8b": _gqa("qwen3", 151936, 4096, 12288, 36, 32, 8, head_dim=128),
    "qwen3-30b-a3b": _gqa(
        "qwen3_moe",
        151936,
        2048,
        6144,
        48,
        32,
        4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),  # fmt: skip
    "llama-3.1-8b": _gqa("llama", 128256, 4096, 14336, 32, 32, 8),
    "llama-3.1-405b": _gqa("llama", 128256, 16384, 53248, 126, 128, 8),
}
FAMILIES = ("deepseek_v3", "llama", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the planner reads of a config; fields keep transformers' names where it has one."""

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    qk_head_dim: int
    """Width of a head's query and key."""
    v_head_dim: int
    tie_word_embeddings: bool = False
    max_position_embeddings: int | None = None
    # --- latent attention
    q_lora_rank: int | None = None
    kv_lora_rank: int = 0
    """Width of the latent that is cached; 0 = ordinary keys and values."""
    qk_rope_head_dim: int = 0
    # --- biases and norms, for exact counts
    qkv_bias: bool = False
    output_bias: bool = False
    has_qk_norm: bool = False
    mlp_bias: bool = False
    # --- experts
    num_dense_layers: int = 0
    """Layers before the first with experts; all of them in a dense model."""
    num_experts: int = 0
    num_experts_per_tok: int = 0
    num_shared_experts: int = 0
    moe_intermediate_size: int = 0
    n_group: int = 1
    topk_group: int = 1
    num_mtp_layers: int = 0

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank > 0

    @property
    def num_moe_layers(self) -> int:
        return self.num_hidden_layers - self.num_dense_layers

    @property
    def cache_width(self) -> int:
        """Numbers cached per token and layer: the latent and the rotary key, or keys and values of all KV heads."""
        if self.is_mla:
            return self.kv_lora_rank + self.qk_rope_head_dim
        return self.num_key_value_heads * (self.qk_head_dim + self.v_head_dim)


def load_shape(model: str) -> ModelShape:
    """The shape of a model.

    Args:
        model: a name from `BUILT_IN`, `embedded` (the base in data/base), a directory, or a config.json.

    Raises:
        ValueError: nothing is there, it is no config, or a field is missing or impossible.
    """
    if model.lower() in BUILT_IN:
        return shape_from_config(BUILT_IN[model.lower()], model.lower())
    path = EMBEDDED if model == "embedded" else Path(model)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"model={model!r}: no config.json there and not a built-in name; "
            f"use a directory, a config.json, or one of embedded, {', '.join(BUILT_IN)}"
        )
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"model={model!r}: {path} is not JSON ({error}); give a transformers config.json") from error
    if not isinstance(config, dict):
        raise ValueError(f"model={model!r}: {path} holds no config; give a transformers config.json")
    return shape_from_config(config, model)


def shape_from_config(config: dict[str, Any], name: str) -> ModelShape:
    """The shape that a config's dictionary describes (`load_shape`)."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type={family!r} of {name}: the planner knows {', '.join(FAMILIES)}")
    shape = _deepseek(config, name) if family == "deepseek_v3" else _grouped_query(config, name)
    if shape.num_experts and not 0 < shape.num_experts_per_tok <= shape.num_experts:
        raise ValueError(
            f"num_experts_per_tok={shape.num_experts_per_tok} of {name}: must be 1 to {shape.num_experts} (its experts)"
        )
    return shape


def _need(config: dict[str, Any], key: str, name: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}={value!r} in the config of {name}: must be a whole number of at least 1")
    return value


def _common(config: dict[str, Any], name: str) -> dict[str, Any]:
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {key: _need(config, key, name) for key in keys} | {
        "name": name,
        "model_type": config["model_type"],
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "max_position_embeddings": config.get("max_position_embeddings"),
    }


def _deepseek(config: dict[str, Any], name: str) -> ModelShape:
    common = _common(config, name)
    heads, layers = common["num_attention_heads"], common["num_hidden_layers"]
    need = {key: _need(config, key, name) for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
            "v_head_dim", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")}  # fmt: skip
    return ModelShape(
        **common,
        num_key_value_heads=heads,
        qk_head_dim=need["qk_nope_head_dim"] + need["qk_rope_head_dim"],
        v_head_dim=need["v_head_dim"],
        q_lora_rank=config.get("q_lora_rank"),
        kv_lora_rank=need["kv_lora_rank"],
        qk_rope_head_dim=need["qk_rope_head_dim"],
        qkv_bias=bool(config.get("attention_bias", False)),
        output_bias=bool(config.get("attention_bias", False)),
        num_dense_layers=min(config.get("first_k_dense_replace", 0), layers),
        num_experts=need["n_routed_experts"],
        num_experts_per_tok=need["num_experts_per_tok"],
        num_shared_experts=config.get("n_shared_experts") or 0,
        moe_intermediate_size=need["moe_intermediate_size"],
        n_group=config.get("n_group") or 1,
        topk_group=config.get("topk_group") or 1,
        num_mtp_layers=config.get("num_nextn_predict_layers") or 0,
    )


def _grouped_query(config: dict[str, Any], name: str) -> ModelShape:
    common, family = _common(config, name), config["model_type"]
    heads = common["num_attention_heads"]
    default_dim = 128 if family == "qwen3" else common["hidden_size"] // heads
    head_dim = config.get("head_dim") or default_dim
    bias = bool(config.get("attention_bias", False))
    moe: dict[str, int] = {}
    if family == "qwen3_moe":
        if config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers"):
            raise ValueError(
                f"decoder_sparse_step={config.get('decoder_sparse_step')}, mlp_only_layers="
                f"{config.get('mlp_only_layers')} of {name}: the planner knows Qwen3-MoE with experts in every layer"
            )
        # transformers 5 saves what the published configs call num_experts under the first name.
        experts = "num_local_experts" if "num_local_experts" in config else "num_experts"
        moe = {key: _need(config, key, name) for key in ("num_experts_per_tok", "moe_intermediate_size")}
        moe["num_experts"] = _need(config, experts, name)
    return ModelShape(
        **common,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        qk_head_dim=head_dim,
        v_head_dim=head_dim,
        # Qwen2's query, key and value have biases, whatever its config says.
        qkv_bias=family == "qwen2" or bias,
        output_bias=bias and family != "qwen2",
        has_qk_norm=family.startswith("qwen3"),
        mlp_bias=bool(config.get("mlp_bias", False)) and family == "llama",
        num_dense_layers=0 if moe else common["num_hidden_layers"],
        **moe,
    )
