"""All sections of a plan."""

from dataclasses import dataclass

from r1lab.parallel.simulate import Durations
from r1lab.plan.cluster import Cluster, Parallel, check_parallel
from r1lab.plan.communication import communication_section
from r1lab.plan.figures import Section, find_value
from r1lab.plan.memory import memory_section
from r1lab.plan.models import ModelShape
from r1lab.plan.parameters import flops_section, kv_bytes_per_token, parameter_section
from r1lab.plan.rollouts import RolloutPlan, rollout_sections
from r1lab.plan.training import DEFAULT_EFFICIENCY, micro_batches_per_step, pipeline_section, training_section


@dataclass(frozen=True, slots=True)
class Run:
    """What is trained, beside the model and the machines."""

    sequence_length: int | None = None
    """Tokens of a training sequence; None = 4096, or the model's longest if that is less."""
    micro_batch_size: int = 1
    batch_size: int | None = None
    """Sequences of a step over all devices; None = 8 micro-batches per device of the pipeline (2 without one)."""
    precision: str = "bf16"
    rollout_precision: str | None = None
    """None = as in training."""
    recompute: str = "selective"
    with_mtp: bool = False
    """Train the MTP modules too."""
    cache_bytes: float = 2
    efficiency: float = DEFAULT_EFFICIENCY
    durations: Durations | None = None
    num_tokens: float = 1e12
    price: float = 2.0
    """Dollars per GPU hour; 2 is what the V3 report assumes for an H800 (table 1)."""
    gpu_hours_per_trillion: float | None = None
    extra_gpu_hours: float = 0
    rollouts: RolloutPlan | None = None
    max_steps: int = 100
    """GRPO steps."""


def make_plan(shape: ModelShape, cluster: Cluster, parallel: Parallel, run: Run) -> list[Section]:
    """The plan, section by section; with `run.rollouts` for GRPO instead of pretraining.

    Raises:
        ValueError: something cannot be; the message names the value and the fix.
    """
    check_parallel(shape, cluster, parallel)
    length = _check_length(shape, run)
    count = micro_batches_per_step(parallel, run.batch_size or default_batch(parallel, run), run.micro_batch_size)
    pipeline = pipeline_section(parallel, count, run.durations)
    bubble_share = find_value(pipeline.figures, "bubble_share")
    flops = flops_section(shape, length, run.with_mtp)
    training_flops = find_value(flops.figures, "training_flops")
    micro_batch_tokens = run.micro_batch_size * length
    parameters = parameter_section(shape)
    parameters.figures.append(kv_bytes_per_token(shape, run.cache_bytes))
    sections = [
        parameters, flops,
        memory_section(shape, cluster, parallel, precision=run.precision, recompute=run.recompute,
                       micro_batch_tokens=micro_batch_tokens, num_micro_batches=count, with_mtp=run.with_mtp),
        communication_section(shape, cluster, parallel, fp8_dispatch=run.precision == "fp8",
                              sequence_length=length, efficiency=run.efficiency),
        pipeline,
    ]  # fmt: skip
    training = training_section(
        cluster, training_flops=training_flops, bubble_share=bubble_share, efficiency=run.efficiency,
        num_tokens=run.num_tokens, price=run.price, gpu_hours_per_trillion=run.gpu_hours_per_trillion,
        extra_gpu_hours=run.extra_gpu_hours, tokens_per_step=count * parallel.dp * micro_batch_tokens,
    )  # fmt: skip
    if run.rollouts is None:
        return [*sections, training]
    return sections + rollout_sections(
        shape, cluster, run.rollouts, precision=run.rollout_precision or run.precision, efficiency=run.efficiency,
        bubble_share=bubble_share, num_steps=run.max_steps, price=run.price,
    )  # fmt: skip


def default_batch(parallel: Parallel, run: Run) -> int:
    """Sequences of a step if none are given: 8 micro-batches per device of the pipeline, 2 without one."""
    return parallel.dp * run.micro_batch_size * (8 * parallel.pp if parallel.pp > 1 else 2)


def _check_length(shape: ModelShape, run: Run) -> int:
    """The length of a training sequence, once it and the rollouts are known to fit the model's context."""
    longest = shape.max_position_embeddings
    length = min(4096, longest or 4096) if run.sequence_length is None else run.sequence_length
    asked = {"sequence_length": length}
    if run.rollouts:
        asked["prompt_length + max_completion_length"] = run.rollouts.prompt_length + run.rollouts.max_completion_length
    for name, value in asked.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
        if longest and value > longest:
            raise ValueError(
                f"{name}={value}: {shape.name} has max_position_embeddings={longest}; shorten it, or extend the "
                "model's context first"
            )
    return length
