"""The command line of the planner; `r1lab.plan` says what it does."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import r1lab.plan
from r1lab.parallel.schedule import SCHEDULES
from r1lab.parallel.simulate import Durations
from r1lab.plan.cluster import GPUS, Cluster, Parallel, find_gpu
from r1lab.plan.figures import Section, format_value
from r1lab.plan.memory import PRECISIONS, RECOMPUTE
from r1lab.plan.models import BUILT_IN, load_shape
from r1lab.plan.planner import Run, make_plan
from r1lab.plan.rollouts import WEIGHT_BYTES, RolloutPlan


def build_parser() -> argparse.ArgumentParser:
    """Options keep TRL's and accelerate's names where these have one."""
    parser = argparse.ArgumentParser(
        prog="python -m r1lab.plan",
        description=r1lab.plan.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help=f"a path, or one of embedded, {', '.join(BUILT_IN)}")
    parser.add_argument("--explain", action="store_true", help="show every formula with what went into it")
    parser.add_argument("--json", action="store_true", help="print JSON: name -> value, unit, formula, inputs")
    _add_cluster(parser.add_argument_group("cluster"))
    _add_run(parser.add_argument_group("training"))
    _add_rollouts(parser.add_argument_group("reinforcement learning (with --rl)"))
    return parser


def _whole(text: str) -> int:
    """A whole number, 1e6 allowed."""
    number = float(text)
    if number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(number)


_whole.__name__ = "whole number"


def _add_cluster(group: Any) -> None:
    group.add_argument("--gpu", default="H100", help=f"one of {', '.join(GPUS)} (default: %(default)s)")
    group.add_argument("--num_gpus", type=_whole, default=8, help="devices in all (default: %(default)s)")
    group.add_argument("--gpus_per_node", type=_whole, default=8, help="(default: %(default)s)")
    for name, text in (
        ("bf16_flops", "peak FLOP/s of a device, dense"), ("memory_bytes", "its memory"),
        ("memory_bandwidth", "its bytes/s"), ("nvlink_bandwidth", "bytes/s within a node, one direction"),
        ("network_bandwidth", "bytes/s between nodes, per device"),
    ):  # fmt: skip
        group.add_argument(f"--{name}", type=float, help=f"{text}, instead of the table's")
    group.add_argument("--pp", type=_whole, default=1, help="pipeline devices (default: %(default)s)")
    group.add_argument("--dp", type=_whole, help="replicas of the pipeline (default: num_gpus / pp)")
    group.add_argument(
        "--ep", type=_whole, default=1, help="replicas that share out the experts (default: %(default)s)"
    )
    group.add_argument("--tp", type=_whole, default=1, help="only 1")
    group.add_argument("--schedule", default="1f1b", help=f"one of {', '.join(SCHEDULES)} (default: %(default)s)")
    group.add_argument("--zero", type=_whole, default=1, help="ZeRO stage; 3 is FSDP2 (default: %(default)s)")


def _add_run(group: Any) -> None:
    defaults = {field.name: field.default for field in fields(Run)}
    for name, kind, text in (
        ("sequence_length", _whole, "tokens of a sequence"),
        ("micro_batch_size", _whole, "sequences of a micro-batch"),
        ("batch_size", _whole, "sequences of a step over all devices"),
        ("precision", str, f"one of {', '.join(PRECISIONS)}"),
        ("recompute", str, f"what the backward computes again: {', '.join(RECOMPUTE)}"),
        ("cache_bytes", float, "bytes per number of the KV or latent cache"),
        ("efficiency", float, "share of the bf16 peak reached outside the bubble"),
        ("num_tokens", float, "tokens to train on"),
        ("price", float, "dollars per GPU hour"),
        ("gpu_hours_per_trillion", float, "a measured throughput, instead of the efficiency"),
        ("extra_gpu_hours", float, "hours to add (context extension, post-training)"),
    ):  # fmt: skip
        group.add_argument(f"--{name}", type=kind, default=defaults[name], help=f"{text} (default: %(default)s)")
    group.add_argument("--with_mtp", action="store_true", help="train the multi-token prediction modules too")
    group.add_argument("--times", type=float, nargs=4, metavar=("F", "B", "W", "F&B"), default=(1, 2, 1, 3),
                       help="times of one stage for the bubble (default: 1 2 1 3, as in counting FLOPs)")  # fmt: skip


def _add_rollouts(group: Any) -> None:
    group.add_argument("--rl", action="store_true", help="plan GRPO: rollouts and step time")
    group.add_argument("--max_steps", type=_whole, default=100, help="GRPO steps (default: %(default)s)")
    group.add_argument("--rollout_precision", help="precision of the rollout's weights (default: that of training)")
    defaults = {field.name: field.default for field in fields(RolloutPlan)}
    for name, text in (
        ("generation_batch_size", "completions of a step over all devices"),
        ("num_generations", "completions per prompt"),
        ("prompt_length", "mean tokens of a prompt"),
        ("mean_completion_length", "mean tokens of a completion"),
        ("max_completion_length", "most tokens of a completion"),
        ("num_iterations", "training passes over each batch"),
        ("rollout_ep", "devices that share a rollout replica's experts"),
        ("max_rows", "most rows decoded at once per device"),
    ):
        group.add_argument(f"--{name}", type=_whole, default=defaults[name], help=f"{text} (default: %(default)s)")
    group.add_argument("--bandwidth_efficiency", type=float, default=defaults["bandwidth_efficiency"],
                       help="share of the memory bandwidth that decoding reaches (default: %(default)s)")  # fmt: skip
    group.add_argument("--uses_reference", action="store_true", help="a KL term to a reference policy")


def plan_from_options(options: argparse.Namespace) -> list[Section]:
    """The plan that the command line asks for.

    Raises:
        ValueError: something cannot be; the message names the value and the fix.
    """
    peaks = ("bf16_flops", "memory_bytes", "memory_bandwidth", "nvlink_bandwidth", "network_bandwidth")
    gpu = find_gpu(options.gpu, **{name: getattr(options, name) for name in peaks})
    cluster = Cluster(gpu, options.num_gpus, options.gpus_per_node)
    dp = options.dp if options.dp is not None else max(1, options.num_gpus // max(1, options.pp))
    parallel = Parallel(options.pp, dp, options.ep, options.tp, options.schedule, options.zero)
    if options.rollout_precision and options.rollout_precision not in WEIGHT_BYTES:
        raise ValueError(f"rollout_precision={options.rollout_precision!r}: use one of {', '.join(WEIGHT_BYTES)}")
    rollouts = None
    if options.rl:
        rollouts = RolloutPlan(**{field.name: getattr(options, field.name) for field in fields(RolloutPlan)})
    special = {"rollouts": rollouts, "durations": Durations(*options.times)}
    names = [field.name for field in fields(Run) if field.name not in special]
    run = Run(**{name: getattr(options, name) for name in names}, **special)
    return make_plan(load_shape(options.model), cluster, parallel, run)


def as_json(sections: Sequence[Section]) -> dict[str, Any]:
    """{section title: {figure name: {value, unit, formula, inputs}}, "notes": [...]}."""
    plan: dict[str, Any] = {
        section.title: {
            f.name: {"value": f.value, "unit": f.unit, "formula": f.formula, "inputs": f.inputs}
            for f in section.figures
        }
        for section in sections
    }
    return plan | {"notes": [note for section in sections for note in section.notes]}


def as_text(sections: Sequence[Section], explain: bool) -> str:
    """The plan as a table; with `explain`, each figure followed by its formula and what went into it."""
    lines = []
    for section in sections:
        lines += ["", section.title, "-" * len(section.title)]
        for figure in section.figures:
            lines.append(f"  {figure.name:<32} {figure.text:>22}")
            if explain:
                lines.append(f"      = {figure.formula}")
                inputs = ", ".join(f"{name} {_short(value)}" for name, value in figure.inputs.items())
                lines += [f"      with {inputs}"] if inputs else []
        lines += [f"  {note}" for note in section.notes]
    return "\n".join(lines[1:])


def _short(value: float) -> str:
    if isinstance(value, int) and abs(value) < 10**6:
        return str(value)
    return format_value(value, "") if abs(value) >= 1e3 else f"{value:.4g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 with the reason on standard error."""
    options = build_parser().parse_args(arguments)
    try:
        sections = plan_from_options(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(as_json(sections), indent=1) if options.json else as_text(sections, options.explain))
    return 0


if __name__ == "__main__":
    sys.exit(main())
