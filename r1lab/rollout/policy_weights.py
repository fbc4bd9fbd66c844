"""Reads a DeepSeek-V3 module tree (ours or transformers') into the plain tensors that the decoders take.

No copies, but of weights that a policy in FP8 rounds before it multiplies: those come as rounded, and the decoders
round what they multiply them with as the policy does (an fp32 one: in bf16 its own rounding comes on top).
"""

import torch

from r1lab.kernels.reference.decode_step import DecodeConfig, DecodeLayer, DecodeMTP, DecodeWeights
from r1lab.precision import computed_weight, computes_in_fp8


def read_weights(model: torch.nn.Module, num_positions: int, with_mtp: bool = False) -> DecodeWeights:
    """The policy's weights as they stand, with rotary tables for `num_positions` positions; with_mtp: those of its
    multi-token-prediction module too.

    Raises ValueError when the model has something that the decoders do not compute.
    """
    config, base = model.config, model.model
    if getattr(model, "has_spread_experts", False):
        raise ValueError(
            "the policy's experts are spread over processes; load full_state_dict(policy) of "
            "r1lab.parallel.expert_parallel into a whole policy, and sample from that"
        )
    if config.hidden_act != "silu":
        raise ValueError(f"hidden_act={config.hidden_act!r}: the engine computes 'silu' only; use HFRolloutEngine")
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type in ("dynamic", "longrope"):
        raise ValueError(
            f"rope_type={rope_type!r} changes its angles with the length, which cached keys cannot follow; use "
            "'default' or 'yarn', or HFRolloutEngine"
        )
    layers = list(base.layers)[: config.num_hidden_layers]
    cos, sin = _rotary_tables(base.rotary_emb, config.qk_rope_head_dim, num_positions, base.embed_tokens.weight.device)
    return DecodeWeights(
        config=_decode_config(config, base.norm, layers[0].self_attn),
        embed=base.embed_tokens.weight.detach(),
        layers=[_read_layer(layer) for layer in layers],
        norm=base.norm.weight.detach(),
        head=model.lm_head.weight.detach(),
        cos=cos,
        sin=sin,
        mtp=_read_mtp(model.mtp) if with_mtp else None,
    )


def _read_mtp(mtp: torch.nn.Module) -> DecodeMTP:
    return DecodeMTP(
        enorm=_tensor(mtp.enorm),
        hnorm=_tensor(mtp.hnorm),
        eh_proj=_tensor(mtp.eh_proj),
        layer=_read_layer(mtp),
        norm=_tensor(mtp.shared_head.norm),
    )


def _decode_config(config, norm: torch.nn.Module, attention: torch.nn.Module) -> DecodeConfig:
    scaling = getattr(attention, "scale", None)
    return DecodeConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        q_lora_rank=config.q_lora_rank or 0,
        kv_lora_rank=config.kv_lora_rank,
        qk_rope_head_dim=config.qk_rope_head_dim,
        qk_nope_head_dim=config.qk_nope_head_dim,
        v_head_dim=config.v_head_dim,
        num_experts=config.n_routed_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        n_group=config.n_group,
        topk_group=config.topk_group,
        norm_topk_prob=config.norm_topk_prob,
        rope_interleave=bool(config.rope_interleave),
        rms_norm_eps=_eps(norm),
        q_norm_eps=_eps(attention.q_a_layernorm) if config.q_lora_rank else 0.0,
        kv_norm_eps=_eps(attention.kv_a_layernorm),
        attention_scaling=attention.scaling if scaling is None else scaling,
        routed_scaling_factor=config.routed_scaling_factor,
    )


def _eps(norm: torch.nn.Module) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def _read_layer(layer: torch.nn.Module) -> DecodeLayer:
    attention, mlp = layer.self_attn, layer.mlp
    has_q_lora = getattr(attention, "q_a_proj", None) is not None
    is_moe = hasattr(mlp, "experts")
    shared = getattr(mlp, "shared_experts", None) if is_moe else mlp
    has_shared = shared is not None and shared.gate_proj.weight.numel() > 0
    return DecodeLayer(
        input_norm=_tensor(layer.input_layernorm),
        q_a=_tensor(attention.q_a_proj) if has_q_lora else None,
        q_a_bias=_tensor(attention.q_a_proj, "bias") if has_q_lora else None,
        q_a_norm=_tensor(attention.q_a_layernorm) if has_q_lora else None,
        q_b=_tensor(attention.q_b_proj if has_q_lora else attention.q_proj),
        kv_a=_tensor(attention.kv_a_proj_with_mqa),
        kv_a_bias=_tensor(attention.kv_a_proj_with_mqa, "bias"),
        kv_a_norm=_tensor(attention.kv_a_layernorm),
        kv_b=_tensor(attention.kv_b_proj),
        o=_tensor(attention.o_proj),
        o_bias=_tensor(attention.o_proj, "bias"),
        mlp_norm=_tensor(layer.post_attention_layernorm),
        mlp_gate=_tensor(shared.gate_proj) if has_shared else None,
        mlp_up=_tensor(shared.up_proj) if has_shared else None,
        mlp_down=_tensor(shared.down_proj) if has_shared else None,
        router=_tensor(mlp.gate) if is_moe else None,
        router_bias=_tensor(mlp.gate, "e_score_correction_bias") if is_moe else None,
        experts_gate_up=_tensor(mlp.experts, "gate_up_proj") if is_moe else None,
        experts_down=_tensor(mlp.experts, "down_proj") if is_moe else None,
        fp8=computes_in_fp8(attention.o_proj),
    )


def _tensor(module: torch.nn.Module, name: str = "weight") -> torch.Tensor | None:
    return None if getattr(module, name) is None else computed_weight(module, name)


def _rotary_tables(rotary_emb, rope_dim: int, num_positions: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [num_positions, rope_dim / 2] fp32. transformers repeats each angle, for the two halves."""
    positions = torch.arange(num_positions, device=device)[None]
    cos, sin = rotary_emb(torch.zeros(1, dtype=torch.float32, device=device), positions)
    return cos.reshape(num_positions, -1)[:, : rope_dim // 2], sin.reshape(num_positions, -1)[:, : rope_dim // 2]
