"""Where the time and memory of one training step go: a trace for chrome://tracing or Perfetto, and two tables.

Stages are the ranges that trainer and updater name ("r1lab/rollout", "r1lab/forward", ...). Floating-point operations
are counted from the shapes of the matrix products and of our kernels, those of attention and of the rollout from the
step's own prompts and completions; peak is what `torch.mm` reaches here, measured just before the step.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from r1lab.grpo.batch import has_gradient
from r1lab.grpo.trainer import GRPOTrainer, StepOutput
from r1lab.types import RolloutGroup

RANGE = "r1lab/"
MATMUL = 1024
MIN_SHARE = 0.005
"""PyTorch's ops below this share of the step are added up in one row of the table."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One row of a table."""

    name: str
    calls: int
    seconds: float
    flops: float | None = None
    """Floating-point operations; None where they are not known."""
    peak_bytes: int | None = None
    """The most memory that tensors held meanwhile."""


@dataclass(frozen=True, slots=True)
class StepProfile:
    """What `profile_step` measured."""

    seconds: float
    peak_flops: float
    """Operations a second of a 1024 x 1024 x 1024 matrix product on this device."""
    stages: list[Cost]
    ops: list[Cost]
    """By time, all threads together."""


def profile_step(trainer: GRPOTrainer, directory: Path) -> tuple[StepOutput, StepProfile]:
    """Makes one step of the trainer; leaves `trace.json` and `profile.txt` in `directory`.

    The step is the same step that the trainer would have made; the profiler makes it a little slower.
    """
    directory.mkdir(parents=True, exist_ok=True)
    device = trainer.accelerator.device
    peak_flops = measure_peak(device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        start = time.perf_counter()
        output = trainer.step()
        seconds = time.perf_counter() - start
    trace = directory / "trace.json"
    profiler.export_chrome_trace(str(trace))
    known = _known_flops(trainer.policy.config, output.groups, trainer.config.mask_truncated_completions)
    stages = _stages(json.loads(trace.read_text())["traceEvents"], known)
    result = StepProfile(seconds, peak_flops, stages, _ops(profiler, known))
    with open(directory / "profile.txt", "w") as file:
        print_profile(result, Console(file=file, width=120))
    return output, result


def measure_peak(device: torch.device, rounds: int = 5) -> float:
    """Operations a second of the fastest of some 1024 x 1024 x 1024 fp32 products."""
    a, b = (torch.ones(MATMUL, MATMUL, device=device) for _ in range(2))
    wait: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    fastest = float("inf")
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        torch.mm(a, b)
        wait()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * MATMUL**3 / fastest


def print_profile(result: StepProfile, console: Console) -> None:
    """Both tables."""
    peak = f"peak {result.peak_flops / 1e9:.1f} GFLOP/s (torch.mm, {MATMUL} cubed)"
    stages = _table(f"one step, {result.seconds:.2f} s; {peak}", result.stages, result)
    console.print(stages)
    console.print(_table("by op, its own time", _fold(result), result))


def _fold(result: StepProfile) -> list[Cost]:
    """The ops that matter and ours, the others as one row."""
    is_shown = [op.seconds >= MIN_SHARE * result.seconds or op.name.startswith("r1lab::") for op in result.ops]
    rest = [op for op, shown in zip(result.ops, is_shown) if not shown]
    others = Cost(f"{len(rest)} others", sum(op.calls for op in rest), sum(op.seconds for op in rest))
    return [op for op, shown in zip(result.ops, is_shown) if shown] + [others]


def _table(title: str, rows: Sequence[Cost], result: StepProfile) -> Table:
    has_memory = any(row.peak_bytes is not None for row in rows)
    table = Table(title=title)
    for name in ("", "calls", "ms", "of step", "GFLOP", "GFLOP/s", "of peak", *(["MB at most"] if has_memory else [])):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        cells = [row.name, str(row.calls), f"{row.seconds * 1e3:.1f}", f"{row.seconds / result.seconds:.1%}"]
        if row.flops and row.seconds:
            rate = row.flops / row.seconds
            cells += [f"{row.flops / 1e9:.2f}", f"{rate / 1e9:.1f}", f"{rate / result.peak_flops:.0%}"]
        else:
            cells += ["", "", ""]
        if has_memory:
            cells.append("" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}")
        table.add_row(*cells)
    return table


# Stages, from the trace


def _stages(events: Sequence[dict], known: dict[str, float]) -> list[Cost]:
    """The named ranges, added up by name in the order of their first appearance."""
    ranges = [e for e in events if e.get("ph") == "X" and e["name"].startswith(RANGE)]
    memory = [(e["ts"], e["args"]["Total Allocated"]) for e in events
              if e["name"] == "[memory]" and e["args"].get("Total Allocated") is not None]  # fmt: skip
    found: dict[str, list[dict]] = {}
    for each in sorted(ranges, key=lambda e: e["ts"]):
        if each.get("cat") == "user_annotation":  # on a GPU the same range comes a second time
            found.setdefault(each["name"], []).append(each)
    return [
        Cost(
            name.removeprefix(RANGE),
            len(parts),
            sum(part["dur"] for part in parts) / 1e6,
            known.get(name),
            max((total for part in parts for at, total in memory if 0 <= at - part["ts"] <= part["dur"]), default=None),
        )
        for name, parts in found.items()
    ]


# Ops, from the profiler's events


def _ops(profiler: profile, known: dict[str, float]) -> list[Cost]:
    """Ops by their own time. The autograd wrapper of one of our ops is counted with the op."""
    calls: dict[str, int] = {}
    seconds: dict[str, float] = {}
    flops: dict[str, float] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.key.startswith(RANGE) or event.self_cpu_time_total + event.self_device_time_total == 0:
            continue
        name = _op_name(event.key)
        own = event.self_device_time_total or event.self_cpu_time_total
        seconds[name] = seconds.get(name, 0.0) + own / 1e6
        if name == event.key:
            calls[name] = calls.get(name, 0) + event.count
            flops[name] = flops.get(name, 0.0) + event.count * _flops_of_call(event.key, event.input_shapes or [])
    for name, value in known.items():
        if name in seconds:
            flops[name] = flops.get(name, 0.0) + value
    names = sorted(seconds, key=seconds.get, reverse=True)
    return [Cost(name, calls.get(name, 0), seconds[name], flops.get(name) or None) for name in names]


def _op_name(key: str) -> str:
    """ "GeneratedBackwardFor_r1lab_moe_experts_default": what runs below it is that op's forward."""
    wrapper = "GeneratedBackwardFor_r1lab_"
    if key.startswith(wrapper) and not key.endswith("Backward"):
        return f"r1lab::{key.removeprefix(wrapper).removesuffix('_default')}"
    return key


def _flops_of_call(name: str, shapes: list) -> float:
    """Of one call with these input shapes; 0 where the shapes do not tell."""
    if name == "aten::mm":
        return 2.0 * shapes[0][0] * shapes[0][1] * shapes[1][1]
    if name == "aten::addmm":
        return 2.0 * shapes[1][0] * shapes[1][1] * shapes[2][1]
    if name == "aten::bmm":
        return 2.0 * shapes[0][0] * shapes[0][1] * shapes[0][2] * shapes[1][2]
    if name in ("r1lab::linear", "r1lab::linear_backward"):  # x [..., K], weight [N, K]; grad_y first
        x, weight = shapes[:2] if name == "r1lab::linear" else shapes[1:3]
        return (2.0 if name == "r1lab::linear" else 4.0) * math.prod(x) * weight[-2]
    if name == "r1lab::swiglu":  # x [..., D], gate [F, D]
        return 6.0 * math.prod(shapes[0]) * shapes[1][0]
    if name == "r1lab::swiglu_backward":  # grad_y, x, gate
        return 12.0 * math.prod(shapes[1]) * shapes[2][0]
    if name == "r1lab::mla_block":  # x [T, D], norm, q_a, norm, q_b, kv_a, norm, kv_b, o; without pairs
        return 2.0 * shapes[0][0] * sum(map(_numel, shapes[2:9]))
    if name == "r1lab::mla_block_backward":  # grad_y, then the same; queries and attended values again
        recomputed = _numel(shapes[5]) + _numel(shapes[8])
        return 2.0 * shapes[1][0] * (2 * sum(map(_numel, shapes[3:10])) + recomputed)
    if name == "r1lab::moe_experts":  # x [T, D], topk_idx [T, K], topk_weights, gate_up [E, 2F, D]
        return _expert_flops(shapes[0], shapes[1], shapes[3], products=3)
    if name == "r1lab::moe_experts_backward":  # grad_y, x, topk_idx, topk_weights, gate_up
        return _expert_flops(shapes[1], shapes[2], shapes[4], products=6)
    if name == "r1lab::token_logps":  # hidden [T, D], head [V, D]
        return 2.0 * shapes[0][0] * shapes[0][1] * shapes[1][0]
    if name == "r1lab::token_logps_backward":  # grad_logps, hidden, head; the logits are computed again
        return 6.0 * shapes[1][0] * shapes[1][1] * shapes[2][0]
    return 0.0


def _numel(shape: list[int]) -> int:
    """Of a matrix; 0 of a norm's weight, and of what is not there."""
    return math.prod(shape) if len(shape) > 1 else 0


def _expert_flops(x: list[int], topk_idx: list[int], gate_up: list[int], products: int) -> float:
    return 2.0 * products * topk_idx[0] * topk_idx[1] * x[1] * gate_up[1] / 2


# What shapes do not tell


def _known_flops(config: Any, groups: Sequence[RolloutGroup], mask_truncated: bool) -> dict[str, float]:
    """Operations of attention in the training pass, and of the rollout, for a policy of ours; {} for any other."""
    if not hasattr(config, "kv_lora_rank"):
        return {}
    seen, trained = _pairs(groups, mask_truncated)
    keys = config.qk_nope_head_dim + config.qk_rope_head_dim
    a_pair = 2.0 * config.num_attention_heads * config.num_hidden_layers
    latent, value = config.kv_lora_rank + config.qk_rope_head_dim, config.kv_lora_rank
    return {
        "r1lab::mla_block": a_pair * seen * (latent + value),
        "r1lab::mla_block_backward": a_pair * trained * (3 * latent + 2 * value),
        "r1lab::mla_attention": a_pair * seen * (keys + config.v_head_dim),
        "r1lab::mla_attention_backward": a_pair * trained * (3 * keys + 2 * config.v_head_dim),
        f"{RANGE}rollout": _rollout_flops(config, groups),
    }


def _pairs(groups: Sequence[RolloutGroup], mask_truncated: bool) -> tuple[int, int]:
    """(query, key) pairs of one pass over all rows, and over those with a gradient; a prompt counts once a pass."""
    counts = [0, 0]
    for group in groups:
        prompt = len(group.prompt.token_ids)
        is_trained = [has_gradient(rollout, mask_truncated) for rollout in group.rollouts]
        rows = [len(r.completion.token_ids) for r in group.rollouts]
        own = [length * prompt + length * (length + 1) // 2 for length in rows]
        passes = int(any(is_trained)) + int(not all(is_trained))
        counts[0] += sum(own) + passes * prompt * (prompt + 1) // 2
        counts[1] += sum(n for n, t in zip(own, is_trained) if t) + any(is_trained) * prompt * (prompt + 1) // 2
    return counts[0], counts[1]


def _rollout_flops(config: Any, groups: Sequence[RolloutGroup]) -> float:
    """Absorbed attention over the latents, one token at a time; every prompt is read once."""
    linear, attended = _decode_flops(config)
    total = 0.0
    for group in groups:
        prompt = len(group.prompt.token_ids)
        lengths = [len(r.completion.token_ids) for r in group.rollouts]
        total += linear * (prompt + sum(lengths)) + attended * prompt * (prompt + 1) / 2
        total += attended * sum(n * prompt + n * (n + 1) / 2 for n in lengths)
    return total


def _decode_flops(config: Any) -> tuple[float, float]:
    """Operations of one token in all layers and the head, and those for each token that it attends to."""
    D, H, C = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    N, R, W = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    query = D * config.q_lora_rank + config.q_lora_rank * H * (N + R) if config.q_lora_rank else D * H * (N + R)
    attention = query + D * (C + R) + H * C * (N + W) + H * W * D
    experts = config.num_experts_per_tok + config.n_shared_experts
    moe = 3 * D * config.moe_intermediate_size * experts + D * config.n_routed_experts
    num_dense = min(config.first_k_dense_replace, config.num_hidden_layers)
    layers = config.num_hidden_layers * attention + num_dense * 3 * D * config.intermediate_size
    layers += (config.num_hidden_layers - num_dense) * moe
    return 2.0 * (layers + D * config.vocab_size), 2.0 * config.num_hidden_layers * H * (2 * C + R)
