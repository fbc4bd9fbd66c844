"""Time and price of training: pipeline bubble, tokens per second, GPU hours.

`efficiency` is the share of the device's bf16 peak that its arithmetic reaches while it is not in the bubble; all that
the formulas leave out (memory traffic, exposed communication, uneven stages, the optimizer) is in it. The default is
what V3 reached: 38.94 % of the peak over the whole step (causal FLOPs; arXiv:2505.09343, table 4), divided by the
96.3 % of the step that the DualPipe formula leaves of its layout.
"""

from r1lab.parallel.schedule import check_sizes
from r1lab.parallel.simulate import BUBBLE_FORMULAS, Durations
from r1lab.plan.cluster import Cluster, Parallel
from r1lab.plan.figures import Section, compute

DEFAULT_EFFICIENCY = 0.404

BUBBLES = {
    # `simulate.BUBBLE_FORMULAS`, spelled out.
    "1f1b": "(pp - 1) * (forward + backward)",
    "zb1p": "(pp - 1) * (forward + backward - 2 * weight)",
    "dualpipe": "(pp / 2 - 1) * (overlapped + backward - 3 * weight)",
    "dualpipev": "(pp - 1) * (overlapped + backward - 3 * weight)",
}


def micro_batches_per_step(parallel: Parallel, batch_size: int, micro_batch_size: int) -> int:
    """Micro-batches that each pipeline reads in a step.

    Args:
        batch_size, micro_batch_size: sequences of a step over all devices, and of a micro-batch.

    Raises:
        ValueError: the batch does not split so, or the schedule cannot run so many.
    """
    for name, value in (("batch_size", batch_size), ("micro_batch_size", micro_batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    chunk = parallel.dp * micro_batch_size
    if batch_size % chunk:
        nearest = max(1, round(batch_size / chunk)) * chunk
        raise ValueError(
            f"batch_size={batch_size} is not divisible by dp={parallel.dp} x micro_batch_size={micro_batch_size}; "
            f"use a multiple of {chunk}, for example {nearest}"
        )
    count = batch_size // chunk
    check_sizes(parallel.schedule, parallel.pp, count)
    return count


def pipeline_section(parallel: Parallel, num_micro_batches: int, durations: Durations | None = None) -> Section:
    """The bubble by the report's formula, and its share of a step. Times are in forwards of one stage."""
    times = durations or Durations()
    inputs: dict[str, float] = {"pp": parallel.pp, "forward": times.forward, "backward": times.backward}
    if parallel.schedule != "1f1b":
        inputs["weight"] = times.weight
    if parallel.schedule.startswith("dualpipe"):
        inputs["overlapped"] = times.overlapped
    bubble = compute("bubble", "F", BUBBLES[parallel.schedule], **inputs)
    passes = 2 if parallel.schedule == "dualpipev" else 1
    # A forward and a backward that run at once take less than both: what a device is busy with shrinks too.
    pair = "overlapped" if "overlapped" in inputs else "(forward + backward)"
    work = {name: inputs[name] for name in ("overlapped", "forward", "backward") if name in pair}
    letters = {"forward": "F", "backward": "B", "weight": "W", "overlapped": "F&B"}
    times_used = ", ".join(f"{letters[name]} = {value:g}" for name, value in inputs.items() if name in letters)
    return Section(
        f"Pipeline, {parallel.schedule}",
        [
            compute("num_micro_batches", "", "count", count=num_micro_batches),
            bubble,
            compute("bubble_share", "%", f"bubble / (bubble + passes * micro_batches * {pair})",
                    bubble=bubble.value, passes=passes, micro_batches=num_micro_batches, **work),
        ],
        [f"DeepSeek-V3 report, table 2: {BUBBLE_FORMULAS[parallel.schedule]}, with {times_used}."],
    )  # fmt: skip


def training_section(
    cluster: Cluster,
    *,
    training_flops: float,
    bubble_share: float,
    efficiency: float,
    num_tokens: float,
    price: float,
    gpu_hours_per_trillion: float | None = None,
    extra_gpu_hours: float = 0,
    tokens_per_step: int | None = None,
) -> Section:
    """Throughput, GPU hours and cost of training on `num_tokens`.

    Args:
        gpu_hours_per_trillion: a measured throughput to use instead of the efficiency.
        extra_gpu_hours: hours to add (context extension, post-training).
        price: dollars per GPU hour.
        tokens_per_step: for the time of a step; left out if None.

    Raises:
        ValueError: a value is out of range.
    """
    if not 0 < efficiency <= 1:
        raise ValueError(f"efficiency={efficiency}: is a share of the peak; use more than 0 and at most 1")
    for name, value in (("num_tokens", num_tokens), ("gpu_hours_per_trillion", gpu_hours_per_trillion)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value}: must be positive")
    for name, value in (("price", price), ("extra_gpu_hours", extra_gpu_hours)):
        if value < 0:
            raise ValueError(f"{name}={value}: must not be negative")
    peak = {"peak": cluster.gpu.bf16_flops, "training_flops": training_flops}
    if gpu_hours_per_trillion:
        rate = compute("tokens_per_gpu_second", "tokens/s", "1e12 / (hours_per_trillion * 3600)",
                       hours_per_trillion=gpu_hours_per_trillion)  # fmt: skip
    else:
        rate = compute("tokens_per_gpu_second", "tokens/s", "peak * efficiency * (1 - bubble_share) / training_flops",
                       efficiency=efficiency, bubble_share=bubble_share, **peak)  # fmt: skip
    total = compute("tokens_per_second", "tokens/s", "gpus * rate", gpus=cluster.num_gpus, rate=rate.value)
    hours = compute("gpu_hours", "h", "tokens / rate / 3600 + extra", tokens=num_tokens, rate=rate.value,
                    extra=extra_gpu_hours)  # fmt: skip
    figures = [
        rate,
        compute("model_flops_utilisation", "%", "rate * training_flops / peak", rate=rate.value, **peak),
        total,
        hours,
        compute("days", "days", "gpu_hours / gpus / 24", gpu_hours=hours.value, gpus=cluster.num_gpus),
        compute("cost", "$", "gpu_hours * price", gpu_hours=hours.value, price=price),
    ]
    if tokens_per_step:
        figures.insert(3, compute("training_step_time", "s", "tokens_per_step / tokens_per_second",
                                  tokens_per_step=tokens_per_step, tokens_per_second=total.value))  # fmt: skip
    return Section("Training time and cost", figures)
