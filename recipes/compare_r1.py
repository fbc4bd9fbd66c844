"""Zero against R1, cold start alone, rejection sampling alone, and distillation, over seeds.

    for S in 0 1 2; do
        accelerate launch recipes/r1_zero.py --seed $S --eval_steps 5 --final_num_samples 4 --output_dir runs/zero_s$S
        accelerate launch recipes/r1.py --seed $S --output_dir runs/r1_s$S
        accelerate launch recipes/distill.py --seed $S --teacher runs/r1_s$S --output_dir runs/distill_s$S
    done
    python recipes/compare_r1.py --zero_dirs runs/zero_s? --r1_dirs runs/r1_s? --distill_dirs runs/distill_s?

Writes recipes/results/r1.json and r1.png, and prints the tables. Accuracies are held out, sampled at temperature 1.
Language consistency is read off the training completions, by the reward's own rule and for every run alike: Zero is
not rewarded for it. Steps are RL steps; those of R1 are counted through both of its RL stages.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import TrlParser

from r1lab.report import mean_and_range
from r1lab.trace import load_run, read_completions
from r1lab.trace.curves import COLOURS
from rewards import language_consistency_reward

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

RESULTS = Path(__file__).resolve().parent / "results"
THRESHOLDS = (0.5, 0.8, 0.9)
EARLY_STEPS = 10
"""The first RL steps, over which the form is called stable or not."""
LAST_STEPS = 5
SHOWN = ("accuracy", "accuracy_se", "greedy_accuracy", "format", "mean_length", "clipped_ratio", "reflection/rate",
         "num_problems")  # fmt: skip
"""What is kept of an evaluation."""
FORMAT = "rewards/format_reward/mean"
LANGUAGE = "language_consistency"


@dataclass
class CompareArguments:
    """Which runs; the lists differ in their seeds only, in the same order."""

    zero_dirs: list[str] = field(metadata={"help": "Finished runs of r1_zero.py."})
    r1_dirs: list[str] = field(metadata={"help": "Finished runs of r1.py."})
    distill_dirs: list[str] = field(default_factory=list, metadata={"help": "Finished runs of distill.py."})
    name: str = field(default="r1", metadata={"help": "Name of the files in output_dir."})
    output_dir: str = field(default=str(RESULTS), metadata={"help": "Where they go."})

    def __post_init__(self) -> None:
        for name in ("zero_dirs", "r1_dirs"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: give at least one run")


# -------------------------------------------------------------------------------------------------------- reading


def read_rl(directory: str | Path) -> "pandas.DataFrame":
    """An RL run's metrics by step, with `accuracy` (held out, mean over the splits; where it was evaluated) and
    `language_consistency` of the step's completions.

    Raises:
        ValueError, FileNotFoundError: not a run (see `load_run`).
    """
    metrics = load_run(directory).metrics.drop_duplicates("step", keep="last").set_index("step").sort_index()
    columns = [name for name in metrics if name.startswith("eval/") and name.endswith("/accuracy")]
    metrics["accuracy"] = metrics[columns].mean(axis=1) if columns else float("nan")
    if FORMAT not in metrics:  # a run that is not rewarded for its format
        metrics[FORMAT] = float("nan")
    completions = read_completions(directory)
    shares = language_consistency_reward(completions=list(completions["completion"]))
    metrics[LANGUAGE] = completions.assign(share=shares).groupby("step")["share"].mean()
    return metrics


def read_results(directory: str | Path) -> dict[str, Any]:
    """A finished run's `results.json`. Raises ValueError where there is none."""
    path = Path(directory) / "results.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: the run has not finished; run its command again, or leave it out")
    return json.loads(path.read_text())


def steps_to(accuracy: "pandas.Series", threshold: float) -> int | None:
    """The first step at which the held-out accuracy reaches the threshold; None when it never does."""
    reached = accuracy.dropna()
    reached = reached[reached >= threshold]
    return int(reached.index[0]) if len(reached) else None


def describe_rl(metrics: "pandas.DataFrame") -> dict[str, Any]:
    """Form early in RL and at its end, over the sampled training completions."""
    trained = metrics[metrics.index > 0]
    early, late = trained.head(EARLY_STEPS), trained.tail(LAST_STEPS)
    return {
        "steps": int(trained.index.max()),
        "early_format": {
            "first": float(early[FORMAT].iloc[0]),
            "mean": float(early[FORMAT].mean()),
            "min": float(early[FORMAT].min()),
            "largest_step": float(early[FORMAT].diff().abs().max()),
        },
        "first_language_consistency": float(early[LANGUAGE].iloc[0]),
        "early_language_consistency": float(early[LANGUAGE].mean()),
        "late_format": float(late[FORMAT].mean()),
        "late_language_consistency": float(late[LANGUAGE].mean()),
    }


def _shown(results: dict[str, dict]) -> dict[str, dict]:
    """Of each split what is kept, and under `mean` the mean over the splits."""
    kept = {split: {name: one.get(name) for name in (*SHOWN, LANGUAGE)} for split, one in results.items()}
    names = [name for name in ("accuracy", "greedy_accuracy", "format", "mean_length", "reflection/rate")]
    return kept | {"mean": {name: statistics.mean(one[name] for one in results.values()) for name in names}}


def read_zero(directory: str) -> dict[str, Any]:
    """One seed of r1_zero.py."""
    results, metrics = read_results(directory), read_rl(directory)
    rl = describe_rl(metrics)
    return {
        "seed": results["seed"],
        "seconds": results["seconds"],
        "rl": rl,
        "models": {
            "base": {"rl_steps": 0, LANGUAGE: rl["first_language_consistency"], **_shown(results["base"])},
            "zero": {"rl_steps": rl["steps"], LANGUAGE: rl["late_language_consistency"], **_shown(results["final"])},
        },
        "curve": _curve(metrics),
    }


def read_r1(directory: str) -> dict[str, Any]:
    """One seed of r1.py, whatever stages it has, the first RL at least."""
    results = read_results(directory)
    stages, evaluations = results["stages"], results["evaluations"]
    if "rl" not in stages:
        raise ValueError(f"{directory}: the stage rl has not run, so there is nothing to compare")
    frames = {stage: read_rl(Path(directory) / stage) for stage in ("rl", "final_rl") if stage in stages}
    described = {stage: describe_rl(frame) for stage, frame in frames.items()}
    first_steps = described["rl"]["steps"]
    all_steps = first_steps + described.get("final_rl", {"steps": 0})["steps"]
    language = {stage: one["late_language_consistency"] for stage, one in described.items()}
    language["cold_start"] = described["rl"]["first_language_consistency"]
    steps = {"cold_start": 0, "rl": first_steps, "rejection": first_steps, "final_rl": all_steps}
    if "final_rl" in described:
        language["rejection"] = described["final_rl"]["first_language_consistency"]
    curve = _curve(frames["rl"])
    if "final_rl" in frames:
        later = _curve(frames["final_rl"])
        later["step"] = [step + first_steps for step in later["step"]]
        curve = {name: [*curve[name], *later[name]] for name in curve}
    return {
        "seed": results["seed"],
        "seconds": {stage: marker["seconds"] for stage, marker in stages.items()},
        "filters": stages.get("rejection", {}).get("filters"),
        "rl": described,
        "models": {
            stage: {"rl_steps": steps[stage], LANGUAGE: language.get(stage), **_shown(evaluation)}
            for stage, evaluation in evaluations.items()
            if stage in steps
        },
        "curve": curve,
    }


def read_distilled(directory: str) -> dict[str, Any]:
    """One seed of distill.py."""
    results = read_results(directory)
    rl_dir = Path(directory) / "rl"
    language, steps = {}, {}
    if "rl" in results["stages"]:
        rl = describe_rl(read_rl(rl_dir))
        steps["rl"] = rl["steps"]
        language = {"student": rl["first_language_consistency"], "rl": rl["late_language_consistency"]}
    models = {}
    for name, evaluation in results["evaluations"].items():
        shares = [one[LANGUAGE] for one in evaluation.values() if LANGUAGE in one]
        share = statistics.mean(shares) if shares else language.get(name)
        models[name] = {"rl_steps": steps.get(name, 0), LANGUAGE: share, **_shown(evaluation)}
    seconds = {stage: marker["seconds"] for stage, marker in results["stages"].items()}
    filters = results["stages"].get("traces", {}).get("filters")
    return {"seed": results["seed"], "seconds": seconds, "filters": filters, "models": models}


def _curve(metrics: "pandas.DataFrame") -> dict[str, list]:
    names = {"accuracy": "accuracy", "format": FORMAT, "length": "completions/mean_length", "language": LANGUAGE}
    rounded = {ours: [None if v != v else round(float(v), 4) for v in metrics[name]] for ours, name in names.items()}
    return {"step": [int(step) for step in metrics.index], **rounded}


def add_steps_to(zero: Sequence[dict], r1: Sequence[dict]) -> None:
    """Adds to each run the RL steps it took to each of `THRESHOLDS`, and R1's to the Zero run of the same place."""
    for run in (*zero, *r1):
        run["steps_to"] = {f"{threshold:.0%}": steps_to(_accuracy(run), threshold) for threshold in THRESHOLDS}
    finals = [run["models"]["zero"]["mean"]["accuracy"] for run in zero]
    for index, run in enumerate(r1):
        final = finals[index] if len(zero) == len(r1) else statistics.mean(finals)
        run["zero_final_accuracy"] = final
        run["steps_to"]["Zero's final accuracy"] = steps_to(_accuracy(run), final)
    for run, final in zip(zero, finals, strict=True):
        # Its last evaluation during the run has fewer problems than the final one, and may fall short of it.
        reached = steps_to(_accuracy(run), final)
        run["steps_to"]["Zero's final accuracy"] = run["rl"]["steps"] if reached is None else reached


def _accuracy(run: dict[str, Any]) -> "pandas.Series":
    import pandas

    curve = run["curve"]
    return pandas.Series(curve["accuracy"], index=curve["step"], dtype=float)


# ---------------------------------------------------------------------------------------------------------- tables

MODELS = {
    "base": "base",
    "zero": "R1-Zero",
    "cold_start": "cold start only",
    "rl": "cold start + RL",
    "rejection": "rejection sampling + SFT",
    "final_rl": "R1 (all four stages)",
}
SMALL_MODELS = {"student": "small student", "rl": "RL on the student", "distill": "distilled"}


def build_tables(zero: Sequence[dict], r1: Sequence[dict], distilled: Sequence[dict]) -> str:
    """Markdown: the models, the form of RL, and the steps to given accuracies."""
    splits = [split for split in zero[0]["models"]["base"] if isinstance(zero[0]["models"]["base"][split], dict)]
    lines = [f"| | RL steps | {' | '.join(splits)} | greedy | well formed | one language | length |"]
    lines += [f"|---|---|{'---|' * len(splits)}---|---|---|---|"]
    rows = [(label, key, [*zero, *r1]) for key, label in MODELS.items()]
    rows += [(label, key, list(distilled)) for key, label in SMALL_MODELS.items()]
    for label, key, runs in rows:
        models = [run["models"][key] for run in runs if key in run["models"]]
        if models:
            lines.append(f"| {label} | {_model_cells(models, splits)} |")
    lines += ["", "| sampled while training | R1-Zero | R1, first RL | R1, final RL |", "|---|---|---|---|"]
    phases = [
        [run["rl"] for run in zero],
        *([run["rl"][s] for run in r1 if s in run["rl"]] for s in ("rl", "final_rl")),
    ]
    forms: dict[str, Callable[[dict], float]] = {
        "well formed at step 1": lambda rl: rl["early_format"]["first"],
        f"well formed, mean of steps 1 to {EARLY_STEPS}": lambda rl: rl["early_format"]["mean"],
        f"well formed, worst of steps 1 to {EARLY_STEPS}": lambda rl: rl["early_format"]["min"],
        f"well formed, last {LAST_STEPS} steps": lambda rl: rl["late_format"],
        f"one language, mean of steps 1 to {EARLY_STEPS}": lambda rl: rl["early_language_consistency"],
        f"one language, last {LAST_STEPS} steps": lambda rl: rl["late_language_consistency"],
    }
    for label, read in forms.items():
        lines.append(f"| {label} | {' | '.join(mean_and_range([read(rl) for rl in phase]) for phase in phases)} |")
    lines += ["", "| RL steps to a held-out accuracy of | R1-Zero | R1 |", "|---|---|---|"]
    for threshold in zero[0]["steps_to"]:
        cells = [", ".join(_step(run["steps_to"][threshold]) for run in runs) for runs in (zero, r1)]
        lines.append(f"| {threshold} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _model_cells(models: Sequence[dict], splits: Sequence[str]) -> str:
    cells = [", ".join(map(str, dict.fromkeys(model["rl_steps"] for model in models)))]
    cells += [mean_and_range([model[split]["accuracy"] for model in models]) for split in splits]
    cells += [mean_and_range([model["mean"][name] for model in models]) for name in ("greedy_accuracy", "format")]
    cells += [mean_and_range([model[LANGUAGE] for model in models])]
    cells += [f"{statistics.mean(model['mean']['mean_length'] for model in models):.0f}"]
    return " | ".join(cells)


def _step(step: int | None) -> str:
    return "never" if step is None else str(step)


# --------------------------------------------------------------------------------------------------------- picture


def plot(zero: Sequence[dict], r1: Sequence[dict], distilled: Sequence[dict], path: Path) -> None:
    """Four curves over RL steps and the final accuracies; thin: seeds, thick: their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), dpi=140, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    axes = figure.subplots(2, 3)
    panels = (
        (axes[0, 0], "accuracy", "Held-out accuracy", "mean over splits, %", 100),
        (axes[0, 1], "format", "Well formed", "training samples, %", 100),
        (axes[1, 0], "language", "Language consistency", "training samples, % of words", 100),
        (axes[1, 1], "length", "Completion length", "training samples, tokens", 1),
    )
    boundary = r1[0]["rl"]["rl"]["steps"] if "final_rl" in r1[0]["rl"] else None
    for panel, name, title, unit, scale in panels:
        _style(panel, title, unit)
        _draw(panel, zero, name, scale, COLOURS[0], "R1-Zero")
        _draw(panel, r1, name, scale, COLOURS[1], "R1")
        panel.set_xlabel("RL step")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_ylim(*((-2, 102) if scale == 100 else (0, None)))
        if boundary is not None:
            panel.axvline(boundary, color=COLOURS[1], linewidth=0.8, linestyle=":")
    if boundary is not None:
        note = "rejection sampling + SFT"
        axes[0, 0].text(boundary, 0, f" {note}", rotation=90, fontsize=7, va="bottom", ha="right", color=COLOURS[1])
    axes[0, 0].legend(frameon=False, fontsize=9, loc="lower right")
    _draw_models(axes[0, 2], [*zero, *r1], MODELS, "Models of the base's size")
    _draw_models(axes[1, 2], distilled, SMALL_MODELS, "Small dense student")
    seeds = f"{len(r1)} seeds (thin: seeds, thick: mean)" if len(r1) > 1 else "1 seed"
    figure.suptitle(f"R1-Zero and R1, {seeds}", fontsize=13)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw(axes: "Axes", runs: Sequence[dict], name: str, scale: float, colour: str, label: str) -> None:
    import pandas

    series = []
    for run in runs:
        one = pandas.Series(run["curve"][name], index=run["curve"]["step"], dtype=float).dropna() * scale
        # Where stages meet, a step has two values: the end of one and the start of the next.
        axes.plot(
            one.index, one, color=colour, linewidth=0.8 if len(runs) > 1 else 1.8, alpha=0.45 if len(runs) > 1 else 1
        )
        series.append(one[~one.index.duplicated(keep="last")])
    if len(runs) > 1:
        mean = pandas.concat(series, axis=1).dropna().mean(axis=1)
        axes.plot(mean.index, mean, color=colour, linewidth=2.2)
    axes.plot([], [], color=colour, linewidth=2.2, label=label)


def _draw_models(axes: "Axes", runs: Sequence[dict], names: dict[str, str], title: str) -> None:
    _style(axes, title, "held-out accuracy, %")
    axes.grid(visible=False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    found = {label: [run["models"][key]["mean"]["accuracy"] * 100 for run in runs if key in run["models"]]
             for key, label in names.items()}  # fmt: skip
    found = {label: values for label, values in found.items() if values}
    if not found:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color="#777777")
        axes.set_yticks([])
        return
    for row, values in enumerate(found.values()):
        axes.barh(row, statistics.mean(values), color=COLOURS[5], height=0.6)
        axes.plot(values, [row] * len(values), "o", color="black", markersize=3)
        axes.text(max(values) + 2, row, f"{statistics.mean(values):.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(found)), found)
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_ylabel("")
    axes.set_xlabel("held-out accuracy, mean over splits, % (dots: seeds)", fontsize=9)


def _style(axes: "Axes", name: str, unit: str) -> None:
    axes.set_title(name, fontsize=11, loc="left", fontweight="bold")
    axes.set_ylabel(unit, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def main(args: CompareArguments) -> None:
    zero = [read_zero(directory) for directory in args.zero_dirs]
    r1 = [read_r1(directory) for directory in args.r1_dirs]
    distilled = [read_distilled(directory) for directory in args.distill_dirs]
    add_steps_to(zero, r1)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    results = {"zero": zero, "r1": r1, "distill": distilled}
    (output / f"{args.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(zero, r1, distilled, output / f"{args.name}.png")
    print(build_tables(zero, r1, distilled))


if __name__ == "__main__":
    try:
        main(TrlParser(CompareArguments).parse_args_and_config()[0])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
