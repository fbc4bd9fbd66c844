"""Planning reinforcement learning: rollout tokens per second and the time of a GRPO step.

Rollouts and training take turns on the same devices. A decode step of a device with B rows takes the longest of

    memory      (weights read + B x context x KV bytes per token) / (bandwidth x bandwidth_efficiency)
    arithmetic  B x FLOPs per decoded token / (peak x efficiency)
    exchange    B x MoE layers x devices per token x (dispatch + combine) / bandwidth, with experts on other devices

Weights read are those of all layers, but of the routed experts only the ones that some row of the replica chose, for an
even load: experts x (1 - (1 - top_k / experts)^rows). Attention runs data-parallel: a replica of `rollout_ep` devices
shares out the experts and repeats the rest. A group's prompt is read once. Rows are refilled as they finish; at the end
the longest completions decode alone, down to the floor of one row:

    rollout time = rows x mean length / B x step(B) + (max length - mean length) x step(1)

Training then costs 3 forwards of the model per token (prompt and completion, no padding) and update pass, one forward
more per token with a reference policy.
"""

from dataclasses import dataclass

from r1lab.plan.cluster import Cluster
from r1lab.plan.communication import exchange_seconds, payload_figures, touch_probability
from r1lab.plan.figures import Figure, Section, compute
from r1lab.plan.models import ModelShape
from r1lab.plan.parameters import count_parameters, decode_flops, flops_section, kv_bytes_per_token

WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1 + 4 / 128**2}
USABLE_MEMORY = 0.9
"""Share of a device's memory that weights and cache may take (vLLM's default)."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What a GRPO step samples and how. Names are TRL's where it has the concept.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    generation_batch_size: int = 1024
    """Completions of a step, over all devices."""
    num_generations: int = 8
    """Completions per prompt."""
    prompt_length: int = 256
    """Mean, in tokens."""
    mean_completion_length: int = 1024
    max_completion_length: int = 4096
    num_iterations: int = 1
    """Passes of training over each batch."""
    uses_reference: bool = False
    """A KL term to a reference policy: one more forward."""
    rollout_ep: int | None = None
    """Devices that share the experts of one rollout replica; None = the fewest that fit."""
    cache_bytes: float = 2
    """Bytes per number in the cache."""
    bandwidth_efficiency: float = 0.8
    """Share of the memory bandwidth that decoding reaches; an assumption, to be measured."""
    max_rows: int | None = None
    """Most rows decoded at once per device; None = as many as the cache has room for."""

    def __post_init__(self) -> None:
        for name in ("generation_batch_size", "prompt_length", "mean_completion_length", "max_completion_length",
                     "num_iterations"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("rollout_ep", "max_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.num_generations < 2:
            raise ValueError(f"num_generations={self.num_generations}: a group needs at least 2 completions to compare")
        if self.generation_batch_size % self.num_generations:
            raise ValueError(
                f"generation_batch_size={self.generation_batch_size} is not divisible by "
                f"num_generations={self.num_generations}; use a multiple of it"
            )
        if self.mean_completion_length > self.max_completion_length:
            raise ValueError(
                f"mean_completion_length={self.mean_completion_length} is above "
                f"max_completion_length={self.max_completion_length}; lower it or raise the maximum"
            )
        if not 0 < self.bandwidth_efficiency <= 1 or not self.cache_bytes > 0:
            raise ValueError(
                f"bandwidth_efficiency={self.bandwidth_efficiency}, cache_bytes={self.cache_bytes}: the first is a "
                "share of 0 to 1, the second positive"
            )


class Replica:
    """A rollout replica: how much of the model a device keeps, and how long a decode step takes on it.

    Raises:
        ValueError: the model does not fit, or its experts cannot be shared out so.
    """

    def __init__(
        self, shape: ModelShape, cluster: Cluster, plan: RolloutPlan, precision: str, efficiency: float
    ) -> None:
        self.shape, self.cluster, self.plan, self.efficiency = shape, cluster, plan, efficiency
        self.precision = precision
        counts, width = count_parameters(shape), WEIGHT_BYTES[precision]
        plain = min(max(width, 2.0), 4.0)
        body = sum(counts.layer(shape, i)[0] for i in range(shape.num_hidden_layers))
        # An embedding is looked up, not read whole; tied to the head it is read as the head.
        self.dense_read = body * width + (counts.head or counts.embedding) * plain
        self.dense_kept = self.dense_read + (counts.embedding * plain if counts.head else 0)
        self.expert_bytes = counts.expert * shape.num_moe_layers * width
        self.kv = kv_bytes_per_token(shape, plan.cache_bytes).value
        self.ep = self._devices()

    def weights(self, ep: int) -> float:
        """Bytes of weights per device with `ep` devices in a replica."""
        return self.dense_kept + self.shape.num_experts / ep * self.expert_bytes

    @property
    def room(self) -> float:
        """Bytes of a device for weights and cache."""
        return self.cluster.gpu.memory_bytes * USABLE_MEMORY

    def _devices(self) -> int:
        longest = self.plan.prompt_length + self.plan.max_completion_length
        experts, gpus, wanted = self.shape.num_experts, self.cluster.num_gpus, self.plan.rollout_ep
        fits = [ep for ep in range(1, gpus + 1) if gpus % ep == 0 and (ep == 1 or (experts and experts % ep == 0))]
        if wanted is not None and wanted not in fits:
            raise ValueError(f"rollout_ep={wanted}: must divide {experts} experts and {gpus} GPUs; use one of {fits}")
        for ep in fits if wanted is None else [wanted]:
            if self.weights(ep) + self.kv * longest <= self.room:
                return ep
        most = wanted or fits[-1]
        raise ValueError(
            f"rollout_ep={most}: {self.weights(most) / 1e9:.1f} GB of weights and one row of {longest} tokens do not "
            f"fit into {self.room / 1e9:.0f} GB; use a lower precision, more GPUs (with experts), or larger ones"
        )

    def step_figures(self, rows: int, context: float, tag: str = "") -> list[Figure]:
        """The decode step of a device with `rows` rows and `context` tokens cached on average."""
        shape, gpu = self.shape, self.cluster.gpu
        figures = []
        experts = {"experts": 0, "hit": 0.0}
        if shape.num_experts:
            missed = (1 - shape.num_experts_per_tok / shape.num_experts) ** (rows * self.ep)
            experts = {"experts": shape.num_experts / self.ep, "hit": 1 - missed}
        read = compute("bytes_read" + tag, "B", "dense + experts * hit * expert_bytes + rows * context * kv",
                       dense=self.dense_read, expert_bytes=self.expert_bytes, rows=rows, context=context, kv=self.kv,
                       **experts)  # fmt: skip
        flops = decode_flops(shape, context)
        figures += [
            read,
            compute("memory_time" + tag, "s", "bytes_read / (bandwidth * bandwidth_efficiency)", bytes_read=read.value,
                    bandwidth=gpu.memory_bandwidth, bandwidth_efficiency=self.plan.bandwidth_efficiency),
            compute("arithmetic_time_decode" + tag, "s", "rows * decode_flops / (peak * efficiency)", rows=rows,
                    decode_flops=flops.value, peak=gpu.bf16_flops, efficiency=self.efficiency),
            compute("exchange_time_decode" + tag, "s", "moe_layers * layer_exchange", moe_layers=shape.num_moe_layers,
                    layer_exchange=self._exchange(rows)),
        ]  # fmt: skip
        longest = {f.name.removesuffix(tag): f.value for f in figures[1:]}
        figures.append(compute("decode_step" + tag, "s", f"max({', '.join(longest)})", **longest))
        return figures

    def _exchange(self, rows: int) -> float:
        """Seconds of one layer's dispatch and combine."""
        if self.ep == 1:
            return 0.0
        dispatch, combine = payload_figures(self.shape, fp8_dispatch=self.precision == "fp8")
        receivers = (self.ep - 1) * touch_probability(self.shape, self.shape.num_experts // self.ep)
        gpu = self.cluster.gpu
        inside = self.ep <= self.cluster.gpus_per_node
        bandwidth = gpu.nvlink_bandwidth if inside else gpu.network_bandwidth
        return exchange_seconds(rows, receivers, dispatch.value + combine.value, bandwidth)


def rollout_sections(
    shape: ModelShape,
    cluster: Cluster,
    plan: RolloutPlan,
    *,
    precision: str,
    efficiency: float,
    bubble_share: float = 0.0,
    num_steps: int = 1,
    price: float = 0.0,
) -> list[Section]:
    """The rollout's speed and the time of a GRPO step.

    Raises:
        ValueError: the model does not fit for rollouts, or a size is impossible.
    """
    if num_steps < 1:
        raise ValueError(f"max_steps={num_steps}: must be at least 1")
    replica = Replica(shape, cluster, plan, precision, efficiency)
    fit = compute(
        "rows_that_fit", "rows", "floor((room - weights) / (kv * (prompt + max_length)))", room=replica.room,
        weights=replica.weights(replica.ep), kv=replica.kv, prompt=plan.prompt_length,
        max_length=plan.max_completion_length,
    )  # fmt: skip
    on_device = compute("rows_per_device", "rows", "ceil(completions / gpus)", gpus=cluster.num_gpus,
                        completions=plan.generation_batch_size)  # fmt: skip
    rows = int(min(fit.value, on_device.value, plan.max_rows or fit.value))
    context = plan.prompt_length + plan.mean_completion_length / 2
    busy = replica.step_figures(rows, context)
    alone = replica.step_figures(1, plan.prompt_length + plan.max_completion_length, "_alone")
    speed = [
        compute("rollout_ep", "devices", "ep", ep=replica.ep),
        compute("rollout_weights", "B", "dense + experts / ep * expert_bytes", dense=replica.dense_kept,
                experts=shape.num_experts, ep=replica.ep, expert_bytes=replica.expert_bytes),
        kv_bytes_per_token(shape, plan.cache_bytes), fit, on_device,
        compute("rows_at_once", "rows", "rows", rows=rows), *busy,
        compute("rollout_tokens_per_second", "tokens/s", "gpus * rows / decode_step", gpus=cluster.num_gpus, rows=rows,
                decode_step=busy[-1].value),
        alone[-1],
    ]  # fmt: skip
    step = _step_figures(shape, cluster, plan, replica, on_device.value, rows, busy[-1], alone[-1], bubble_share)
    total = step[-1].value
    hours = compute("rl_gpu_hours", "h", "steps * step_time * gpus / 3600", steps=num_steps, step_time=total,
                    gpus=cluster.num_gpus)  # fmt: skip
    step += [
        compute("rollout_share", "%", "rollout_time / step_time", rollout_time=step[1].value, step_time=total),
        compute("completions_per_second", "completions/s", "completions / step_time",
                completions=plan.generation_batch_size, step_time=total),
        hours,
        compute("rl_cost", "$", "gpu_hours * price", gpu_hours=hours.value, price=price),
    ]  # fmt: skip
    return [Section("Rollouts", speed, _bound(busy)), Section("GRPO step", step)]


def _bound(busy: list[Figure]) -> list[str]:
    longest = max(busy[1:-1], key=lambda figure: figure.value)
    return [f"Decoding is bound by {longest.name.split('_')[0]}."]


def _step_figures(
    shape: ModelShape,
    cluster: Cluster,
    plan: RolloutPlan,
    replica: Replica,
    rows_per_device: float,
    rows: int,
    busy: Figure,
    alone: Figure,
    bubble_share: float,
) -> list[Figure]:
    lengths = {"prompt": plan.prompt_length, "mean_length": plan.mean_completion_length}
    speed = {"gpus": cluster.num_gpus, "peak": cluster.gpu.bf16_flops, "efficiency": replica.efficiency}
    sequence = plan.prompt_length + plan.mean_completion_length
    flops = {f.name: f.value for f in flops_section(shape, sequence).figures}
    passes = 3 * plan.num_iterations + plan.uses_reference
    figures = [
        compute("prefill_time", "s", "completions / generations * prompt * forward_flops / (gpus * peak * efficiency)",
                completions=plan.generation_batch_size, generations=plan.num_generations, prompt=plan.prompt_length,
                forward_flops=flops["forward_flops"], **speed),
        compute("rollout_time", "s", "rows_per_device * mean_length / rows * step + (max_length - mean_length) * alone",
                rows_per_device=rows_per_device, rows=rows, mean_length=plan.mean_completion_length,
                max_length=plan.max_completion_length, step=busy.value, alone=alone.value),
        compute("train_time", "s", "completions * (prompt + mean_length) * passes * forward_flops "
                "/ (gpus * peak * efficiency * (1 - bubble_share))", completions=plan.generation_batch_size,
                passes=passes, forward_flops=flops["forward_flops"], bubble_share=bubble_share, **lengths, **speed),
        compute("weight_sync_time", "s", "weights / bandwidth", weights=replica.weights(replica.ep),
                bandwidth=cluster.gpu.network_bandwidth if cluster.num_gpus > cluster.gpus_per_node
                else cluster.gpu.nvlink_bandwidth),
    ]  # fmt: skip
    parts = {figure.name: figure.value for figure in figures}
    return figures + [compute("rl_step_time", "s", " + ".join(parts), **parts)]
