"""Parameters, cache and FLOPs of a model, per part.

Linear layers cost 2 FLOPs per weight and token forward, and twice that backward. Attention itself, on top: a query
meets (L + 1) / 2 keys on average in a causal sequence of length L, 2 FLOPs for each number of a key and of a value:

    heads x (qk_head_dim + v_head_dim) x (L + 1)      FLOPs per token, layer and forward

Decoding with the latent cache (absorbed MLA; DeepSeek-V2 report, section 2.1) meets every cached token with every head
at the latent's width instead: 2 x heads x (2 x kv_lora_rank + qk_rope_head_dim) x context.
"""

from dataclasses import dataclass

from r1lab.plan.figures import Figure, Section, compute
from r1lab.plan.models import ModelShape


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters of a model's parts. `attention`, `norms`, `dense_mlp`, `router`, `shared`, `expert` are a layer's
    (`expert` one expert's); biases and norms are in."""

    embedding: int
    head: int
    """0 if tied to the embedding."""
    final_norm: int
    attention: int
    norms: int
    dense_mlp: int
    router: int
    shared: int
    expert: int
    mtp_extra: int
    """What an MTP module has beside a layer: two norms, the projection that joins them, the norm before the head."""

    def layer(self, shape: ModelShape, index: int) -> tuple[int, int]:
        """(parameters every device of an expert group keeps, parameters spread over the group) of layer `index`; an
        MTP module's index is one of those after the last layer."""
        common = self.attention + self.norms
        if index < shape.num_dense_layers:
            return common + self.dense_mlp, 0
        return common + self.router + self.shared, shape.num_experts * self.expert


def count_parameters(shape: ModelShape) -> Counts:
    """Parameters per part. Buffers (the routing bias) are not parameters and not counted."""
    hidden, experts = shape.hidden_size, shape.num_experts

    def mlp(inner: int) -> int:
        return 3 * hidden * inner + (2 * inner + hidden if shape.mlp_bias else 0)

    return Counts(
        embedding=shape.vocab_size * hidden,
        head=0 if shape.tie_word_embeddings else shape.vocab_size * hidden,
        final_norm=hidden,
        attention=_latent_attention(shape) if shape.is_mla else _grouped_attention(shape),
        norms=2 * hidden,
        dense_mlp=mlp(shape.intermediate_size),
        router=experts * hidden,
        shared=mlp(shape.moe_intermediate_size * shape.num_shared_experts) if shape.num_shared_experts else 0,
        expert=mlp(shape.moe_intermediate_size) if experts else 0,
        mtp_extra=2 * hidden * hidden + 3 * hidden,
    )


def _latent_attention(shape: ModelShape) -> int:
    hidden, heads, bias = shape.hidden_size, shape.num_attention_heads, int(shape.qkv_bias)
    nope = shape.qk_head_dim - shape.qk_rope_head_dim
    if shape.q_lora_rank:
        query = (hidden + bias) * shape.q_lora_rank + shape.q_lora_rank * (1 + heads * shape.qk_head_dim)
    else:
        query = hidden * heads * shape.qk_head_dim
    down = (hidden + bias) * (shape.kv_lora_rank + shape.qk_rope_head_dim) + shape.kv_lora_rank
    up = shape.kv_lora_rank * heads * (nope + shape.v_head_dim)
    return query + down + up + (heads * shape.v_head_dim + int(shape.output_bias)) * hidden


def _grouped_attention(shape: ModelShape) -> int:
    hidden, heads, kv, dim = shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads, shape.qk_head_dim
    qkv = (hidden + int(shape.qkv_bias)) * (heads + 2 * kv) * dim
    norms = 2 * dim if shape.has_qk_norm else 0
    return qkv + norms + (heads * dim + int(shape.output_bias)) * hidden


def _layer_inputs(shape: ModelShape, counts: Counts) -> dict[str, float]:
    return {
        "layers": shape.num_hidden_layers,
        "dense_layers": shape.num_dense_layers,
        "moe_layers": shape.num_moe_layers,
        "attention": counts.attention,
        "norms": counts.norms,
        "dense_mlp": counts.dense_mlp,
        "shared": counts.shared,
        "router": counts.router,
        "expert": counts.expert,
        "experts": shape.num_experts,
        "top_k": shape.num_experts_per_tok,
    }


def parameter_section(shape: ModelShape) -> Section:
    """Total and active parameters, with and without the MTP modules.

    Active parameters are those that touch a token, embedding and head in, as DeepSeek counts them.
    """
    counts = count_parameters(shape)
    layers = _layer_inputs(shape, counts)
    ends = {"embedding": counts.embedding, "head": counts.head, "final_norm": counts.final_norm}
    body = "layers * (attention + norms) + dense_layers * dense_mlp"
    total = compute(
        "total_parameters", "parameters",
        f"embedding + head + final_norm + {body} + moe_layers * (router + shared + experts * expert)", **layers, **ends,
    )  # fmt: skip
    active = compute(
        "active_parameters", "parameters",
        f"embedding + head + final_norm + {body} + moe_layers * (router + shared + top_k * expert)", **layers, **ends,
    )  # fmt: skip
    figures = [total, active]
    if shape.num_mtp_layers:
        module = "mtp_layers * (attention + norms + router + shared + mtp_extra + {} * expert)"
        more = layers | {"mtp_layers": shape.num_mtp_layers, "mtp_extra": counts.mtp_extra}
        figures += [
            compute("mtp_parameters", "parameters", module.format("experts"), **more),
            compute("total_parameters_with_mtp", "parameters", "total + " + module.format("experts"),
                    total=total.value, **more),
            compute("active_parameters_with_mtp", "parameters", "active + " + module.format("top_k"),
                    active=active.value, **more),
        ]  # fmt: skip
    return Section("Parameters", figures)


def kv_bytes_per_token(shape: ModelShape, cache_bytes: float = 2) -> Figure:
    """Bytes that a cached token takes over all layers."""
    if shape.is_mla:
        return compute(
            "kv_bytes_per_token", "B/token", "layers * (kv_lora_rank + qk_rope_head_dim) * cache_bytes",
            layers=shape.num_hidden_layers, kv_lora_rank=shape.kv_lora_rank,
            qk_rope_head_dim=shape.qk_rope_head_dim, cache_bytes=cache_bytes,
        )  # fmt: skip
    return compute(
        "kv_bytes_per_token", "B/token", "layers * 2 * kv_heads * head_dim * cache_bytes",
        layers=shape.num_hidden_layers, kv_heads=shape.num_key_value_heads, head_dim=shape.qk_head_dim,
        cache_bytes=cache_bytes,
    )  # fmt: skip


def linear_weights(shape: ModelShape) -> Figure:
    """Weights of the linear layers that a token passes, head included; no embedding (a lookup), norms, biases."""
    counts = count_parameters(shape)
    inputs = _layer_inputs(shape, counts) | {
        "head": shape.vocab_size * shape.hidden_size,
        "attention": _attention_weights(shape, counts),
        "dense_mlp": 3 * shape.hidden_size * shape.intermediate_size,
        "shared": 3 * shape.hidden_size * shape.moe_intermediate_size * shape.num_shared_experts,
        "expert": 3 * shape.hidden_size * shape.moe_intermediate_size if shape.num_experts else 0,
    }
    del inputs["norms"], inputs["experts"]
    return compute(
        "linear_weights", "parameters",
        "head + layers * attention + dense_layers * dense_mlp + moe_layers * (router + shared + top_k * expert)",
        **inputs,
    )  # fmt: skip


def _attention_weights(shape: ModelShape, counts: Counts) -> int:
    """Attention's parameters without norms and biases."""
    plain = ModelShape(**{name: getattr(shape, name) for name in ModelShape.__dataclass_fields__}
                       | {"qkv_bias": False, "output_bias": False, "has_qk_norm": False})  # fmt: skip
    if shape.is_mla:
        return _latent_attention(plain) - (shape.q_lora_rank or 0) - shape.kv_lora_rank
    return _grouped_attention(plain)


def attention_flops(shape: ModelShape, length: int) -> Figure:
    """Forward FLOPs of attention itself per token, averaged over a causal sequence of `length`."""
    return compute(
        f"attention_flops_at_{length}", "FLOP/token", "layers * heads * (qk_head_dim + v_head_dim) * (length + 1)",
        layers=shape.num_hidden_layers, heads=shape.num_attention_heads, qk_head_dim=shape.qk_head_dim,
        v_head_dim=shape.v_head_dim, length=length,
    )  # fmt: skip


def flops_section(shape: ModelShape, sequence_length: int, with_mtp: bool = False) -> Section:
    """FLOPs per token of a forward and a backward at a sequence length, and attention's share against length."""
    weights, attention = linear_weights(shape), attention_flops(shape, sequence_length)
    formula, inputs = "2 * linear_weights + attention", {"linear_weights": weights.value, "attention": attention.value}
    if with_mtp and shape.num_mtp_layers:
        # A module is one more layer, the projection of two hidden sizes into one, and the head once more.
        counts = count_parameters(shape)
        layer = (
            _attention_weights(shape, counts)
            + counts.router
            + 3
            * shape.hidden_size
            * shape.moe_intermediate_size
            * (shape.num_shared_experts + shape.num_experts_per_tok)
        )
        inputs |= {"mtp_layers": shape.num_mtp_layers, "layers": shape.num_hidden_layers,
                   "mtp_weights": layer + 2 * shape.hidden_size**2 + shape.vocab_size * shape.hidden_size}  # fmt: skip
        formula += " + mtp_layers * (2 * mtp_weights + attention / layers)"
    forward = compute("forward_flops", "FLOP/token", formula, **inputs)
    backward = compute("backward_flops", "FLOP/token", "2 * forward", forward=forward.value)
    training = compute(
        "training_flops", "FLOP/token", "forward + backward", forward=forward.value, backward=backward.value
    )
    lengths = sorted({4096, 32768, 131072} - {sequence_length})
    share = compute("attention_share", "%", "attention / forward", attention=attention.value, forward=forward.value)
    figures = [weights, attention, forward, backward, training, share]
    return Section("FLOPs per token", figures + [attention_flops(shape, length) for length in lengths])


def decode_flops(shape: ModelShape, context: float) -> Figure:
    """FLOPs of one decoded token with `context` tokens cached."""
    inputs = {"linear_weights": linear_weights(shape).value, "layers": shape.num_hidden_layers,
              "heads": shape.num_attention_heads, "context": context}  # fmt: skip
    if shape.is_mla:
        return compute(
            "decode_flops", "FLOP/token",
            "2 * linear_weights + layers * 2 * heads * (2 * kv_lora_rank + qk_rope_head_dim) * context", **inputs,
            kv_lora_rank=shape.kv_lora_rank, qk_rope_head_dim=shape.qk_rope_head_dim,
        )  # fmt: skip
    return compute(
        "decode_flops", "FLOP/token", "2 * linear_weights + layers * 4 * heads * head_dim * context", **inputs,
        head_dim=shape.qk_head_dim,
    )  # fmt: skip
