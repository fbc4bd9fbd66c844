"""Memory of the fullest device: weights, gradients, optimizer states, activations, logits.

Weights are cut by layer into pipeline stages (the first has the embedding, the last the head and the MTP modules), and
a layer's experts over the ep devices. DualPipe keeps two stages per device; the sums below are over all a device keeps.
Precisions, in bytes per parameter (`PRECISIONS`): fp8 is V3's recipe (report, sections 3.3.1 to 3.3.3).

Activations are what the backward needs, per token and layer, of linear inputs (`input` bytes each: 1 in fp8) and other
tensors (`other` bytes each), for `in_flight` micro-batches of one stage:

    full        the layer's input; everything else is computed again
    selective   V3's choice (section 3.2.3): norms, up-projections and SwiGLU outputs are computed again
    none        everything that autograd keeps with fused attention and fused norms

Not counted: the allocator's waste, communication buffers, workspaces (plan for 5 to 10 GB), and in `full` and
`selective` the one layer that is being computed again.
"""

from dataclasses import dataclass

from r1lab.parallel.schedule import num_stages, stages_of_device
from r1lab.parallel.simulate import peak_activations_formula
from r1lab.plan.cluster import Cluster, Parallel
from r1lab.plan.figures import Figure, Section, compute
from r1lab.plan.models import ModelShape
from r1lab.plan.parameters import count_parameters


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes per parameter and per activation."""

    linear: float
    """Weight of a linear layer (with its scales)."""
    plain: float
    """Weight of the embedding, the head, a norm, the router."""
    gradient: float
    master: float
    moments: float
    """Both Adam moments together."""
    input: float
    """A linear layer's input, kept for the backward."""
    other: float


PRECISIONS = {
    "fp32": Precision(4, 4, 4, 0, 8, 4, 4),
    # bf16 with fp32 master weights, gradients summed in fp32.
    "bf16": Precision(2, 2, 4, 4, 8, 2, 2),
    # V3: FP8 weights with one fp32 scale per 128 x 128 block, fp32 master weights and gradients, bf16 moments; inputs
    # kept in FP8 with one fp32 scale per 128.
    "fp8": Precision(1 + 4 / 128**2, 2, 4, 4, 4, 1 + 4 / 128, 2),
}
RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True, slots=True)
class DeviceParameters:
    """Parameters that one device keeps."""

    device: int
    shared: int
    """Linear weights that every replica keeps: attention, dense MLPs, shared experts."""
    plain: int
    """Embedding, head, norms, routers."""
    experts: int
    """This device's share of the routed experts."""
    layers: int
    dense_layers: int


def layers_of_stage(num_layers: int, stages: int, stage: int) -> range:
    """The layers of a stage: as even as can be, the earlier stages taking what is over."""
    base, over = divmod(num_layers, stages)
    start = stage * base + min(stage, over)
    return range(start, start + base + (stage < over))


def device_parameters(shape: ModelShape, parallel: Parallel, device: int, with_mtp: bool = False) -> DeviceParameters:
    """What device `device` of a pipeline keeps."""
    counts = count_parameters(shape)
    stages = num_stages(parallel.schedule, parallel.pp)
    own = stages_of_device(parallel.schedule, parallel.pp, device)
    layers = [layer for stage in own for layer in layers_of_stage(shape.num_hidden_layers, stages, stage)]
    is_first, is_last = 0 in own, stages - 1 in own
    num_mtp = shape.num_mtp_layers if with_mtp and is_last else 0
    layers += [shape.num_hidden_layers + i for i in range(num_mtp)]
    shared = experts = plain = 0
    for layer in layers:
        common, routed = counts.layer(shape, layer)
        router = 0 if layer < shape.num_dense_layers else counts.router
        shared, plain = shared + common - router - counts.norms, plain + router + counts.norms
        experts += routed // parallel.ep
    needs_embedding = is_first or (is_last and (bool(num_mtp) or shape.tie_word_embeddings))
    plain += needs_embedding * counts.embedding + is_last * (counts.head + counts.final_norm)
    shared += num_mtp * counts.mtp_extra
    dense = sum(layer < shape.num_dense_layers for layer in layers)
    return DeviceParameters(device, shared, plain, experts, len(layers), dense)


def activation_bytes(shape: ModelShape, precision: Precision, recompute: str, is_dense: bool) -> Figure:
    """Bytes that a layer keeps per token for the backward."""
    name = "activations_per_token_dense_layer" if is_dense else "activations_per_token_moe_layer"
    if recompute == "full":
        return compute(name, "B/token", "hidden * other", hidden=shape.hidden_size, other=precision.other)
    attention, inputs = _attention_activations(shape, recompute)
    mlp, more = _mlp_activations(shape, recompute, is_dense)
    # Both residual sums are kept: the norms read them again.
    formula = f"2 * hidden * other + {attention} + {mlp}"
    return compute(
        name,
        "B/token",
        formula,
        hidden=shape.hidden_size,
        input=precision.input,
        other=precision.other,
        **inputs,
        **more,
    )


def _attention_activations(shape: ModelShape, recompute: str) -> tuple[str, dict[str, float]]:
    heads, qk, v = shape.num_attention_heads, shape.qk_head_dim, shape.v_head_dim
    output = "heads * v_head_dim * max(input, other)"  # read by attention's backward and by the output projection's
    inputs: dict[str, float] = {"heads": heads, "v_head_dim": v}
    if not shape.is_mla:
        inputs |= {"qk_head_dim": qk, "kv_heads": shape.num_key_value_heads}
        kept = f"{output} + (heads * qk_head_dim + kv_heads * (qk_head_dim + v_head_dim)) * other"
        return (kept + " + hidden * input" if recompute == "none" else kept), inputs
    inputs |= {"q_lora_rank": shape.q_lora_rank or 0, "latent": shape.cache_width}
    if recompute == "selective":
        return f"(q_lora_rank + latent) * other + {output}", inputs
    inputs["qk_head_dim"] = qk
    normed = "(hidden + q_lora_rank + latent) * input + (q_lora_rank + latent) * other"
    return f"{normed} + heads * (2 * qk_head_dim + v_head_dim) * other + {output}", inputs


def _mlp_activations(shape: ModelShape, recompute: str, is_dense: bool) -> tuple[str, dict[str, float]]:
    """Gate and up per expert; without recomputation also their product. Routed tokens' inputs are kept where the expert
    is, one copy per expert chosen."""
    gate_up = "2 * {0} * {1}" if recompute == "selective" else "(2 * {0} * other + {0} * {1})"
    # V3 keeps the inputs of SwiGLU in FP8 too (section 3.3.3), where it recomputes its output.
    if is_dense:
        kept = gate_up.format("intermediate", "input")
        return f"hidden * input + {kept}", {"intermediate": shape.intermediate_size}
    rows = f"(top_k + shared) * {gate_up.format('moe_intermediate', 'input')}"
    return f"(top_k + 1) * hidden * input + {rows}", {
        "top_k": shape.num_experts_per_tok, "shared": shape.num_shared_experts,
        "moe_intermediate": shape.moe_intermediate_size,
    }  # fmt: skip


def memory_section(
    shape: ModelShape,
    cluster: Cluster,
    parallel: Parallel,
    *,
    precision: str,
    recompute: str,
    micro_batch_tokens: int,
    num_micro_batches: int,
    with_mtp: bool = False,
) -> Section:
    """Memory of the device that keeps most, part by part.

    Raises:
        ValueError: an unknown precision or recomputation, or FP8 on a device without it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: use one of {', '.join(PRECISIONS)}")
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute={recompute!r}: use one of {', '.join(RECOMPUTE)}")
    if precision == "fp8" and not cluster.gpu.has_fp8:
        raise ValueError(f"precision='fp8': {cluster.gpu.name} has no FP8 arithmetic; use bf16")
    devices = [
        _device_figures(shape, parallel, device_parameters(shape, parallel, device, with_mtp), PRECISIONS[precision],
                        recompute, micro_batch_tokens, num_micro_batches)
        for device in range(parallel.pp)
    ]  # fmt: skip
    worst = max(range(parallel.pp), key=lambda device: devices[device][-1].value)
    figures = devices[worst]
    capacity = cluster.gpu.memory_bytes
    figures.append(compute("memory_share", "%", "total / capacity", total=figures[-1].value, capacity=capacity))
    notes = [f"The fullest device is number {worst} of the pipeline."] if parallel.pp > 1 else []
    if figures[-1].value > 1:
        notes.append(
            f"Does not fit: {figures[-2].text} on {capacity / 1e9:.0f} GB. Raise pp, ep or zero, recompute more, or "
            "take smaller micro-batches."
        )
    return Section("Memory per device, training", figures, notes)


def _device_figures(
    shape: ModelShape,
    parallel: Parallel,
    kept: DeviceParameters,
    precision: Precision,
    recompute: str,
    micro_batch_tokens: int,
    num_micro_batches: int,
) -> list[Figure]:
    copies = 2 if parallel.schedule == "dualpipe" else 1
    parts = {"shared": kept.shared, "plain": kept.plain, "experts": kept.experts}
    # DualPipe's second copy of a stage is one more replica that can take a share of its optimizer states.
    shards = {"dense_shards": parallel.dp * copies, "expert_shards": parallel.dp // parallel.ep * copies}

    def spread(level: int) -> dict[str, int]:
        return shards if parallel.zero >= level else dict.fromkeys(shards, 1)

    dense, moe = (activation_bytes(shape, precision, recompute, is_dense) for is_dense in (True, False))
    stages_kept = len(stages_of_device(parallel.schedule, parallel.pp, kept.device))
    figures = [
        compute("weights", "B", "(shared * linear + plain * wide) / dense_shards + experts * linear / expert_shards",
                **parts, linear=precision.linear, wide=precision.plain, **spread(3)),
        compute("gradients", "B", "((shared + plain) / dense_shards + experts / expert_shards) * gradient",
                **parts, gradient=precision.gradient, **spread(2)),
        compute("optimizer_states", "B",
                "((shared + plain) / dense_shards + experts / expert_shards) * (master + moments)",
                **parts, master=precision.master, moments=precision.moments, **spread(1)),
        compute("activations", "B",
                "in_flight / stages_kept * micro_batch_tokens * (dense_layers * dense + (layers - dense_layers) * moe)",
                in_flight=peak_activations_formula(parallel.schedule, parallel.pp, num_micro_batches),
                stages_kept=stages_kept, micro_batch_tokens=micro_batch_tokens, layers=kept.layers,
                dense_layers=kept.dense_layers, dense=dense.value, moe=moe.value if shape.num_experts else 0),
    ]  # fmt: skip
    if num_stages(parallel.schedule, parallel.pp) - 1 in stages_of_device(parallel.schedule, parallel.pp, kept.device):
        figures.append(compute("logits", "B", "micro_batch_tokens * vocab * 4", micro_batch_tokens=micro_batch_tokens,
                               vocab=shape.vocab_size))  # fmt: skip
    figures.append(
        compute("device_memory", "B", " + ".join(f.name for f in figures), **{f.name: f.value for f in figures})
    )
    return [dense] * bool(shape.num_dense_layers) + [moe] * bool(shape.num_experts) + figures
