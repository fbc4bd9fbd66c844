"""pass@k curves of two or more evaluations: over k, and over the tokens that k completions cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.evaluate.split import SplitOutcome
from r1lab.evaluate.statistics import bootstrap_intervals, pass_at_k, powers_of_two
from r1lab.evaluate.store import Evaluation
from r1lab.trace.curves import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = (("is_correct", "strict", "-"), ("is_correct_blind", "format-blind", "--"))
_MAX_RUNS = len(COLOURS)


def plot_pass_at_k(
    evaluations: Sequence[Evaluation], labels: Sequence[str], out_png: str | Path, *, title: str = ""
) -> Path:
    """Draws pass@k, one column of panels a split that all evaluations have.

    Above, over k: whether RL goes beyond what its base finds in k tries. Below, the same over the tokens of k
    completions (k times the mean length): a run that thinks longer has to be worth it. Solid: strict; dashed:
    format-blind, so that a gain in format alone shows. Bands: 95 %, bootstrap over problems.

    Raises:
        ValueError: no evaluations or too many, labels of another number, or no split in common.
    """
    from matplotlib.figure import Figure

    if not 1 <= len(evaluations) <= _MAX_RUNS:
        raise ValueError(f"{len(evaluations)} evaluations: draw 1 to {_MAX_RUNS}")
    if len(labels) != len(evaluations):
        raise ValueError(f"{len(labels)} labels for {len(evaluations)} evaluations: give one each")
    splits = [split for split in evaluations[0].splits if all(split in other.splits for other in evaluations)]
    if not splits:
        raise ValueError("the evaluations have no split in common: evaluate all of them on the same task")
    figure = Figure(figsize=(1.2 + 3.6 * len(splits), 7.2), dpi=150, layout="constrained")
    panels = figure.subplots(2, len(splits), sharey=True, squeeze=False)
    for column, split in enumerate(splits):
        for evaluation, label, colour in zip(evaluations, labels, COLOURS, strict=False):
            _draw(panels[:, column], evaluation.splits[split], label, colour)
        _finish(panels[:, column], split, evaluations)
    for row in panels:
        row[0].set_ylabel("problems solved, %")
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    if title:
        figure.suptitle(title)
    out_png = Path(out_png)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png)
    return out_png


def _draw(panels: Sequence["Axes"], outcome: SplitOutcome, label: str, colour: str) -> None:
    sizes = powers_of_two(len(outcome.sampled[0]))
    mean_length = sum(one.num_tokens for group in outcome.sampled for one in group) / (
        len(outcome.sampled) * len(outcome.sampled[0])
    )
    for attribute, kind, style in STYLES:
        scores = {str(k): _scores(outcome, attribute, k) for k in sizes}
        means = [100 * sum(values) / len(values) for values in scores.values()]
        bands = [(100 * low, 100 * high) for low, high in bootstrap_intervals(scores).values()]
        for axes, scale in zip(panels, (1.0, mean_length), strict=True):
            places = [scale * k for k in sizes]
            marks: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.6}
            axes.plot(places, means, style, color=colour, label=f"{label}, {kind}", **marks)
            axes.fill_between(places, *zip(*bands, strict=True), color=colour, alpha=0.12, linewidth=0)


def _scores(outcome: SplitOutcome, attribute: str, k: int) -> list[float]:
    return [pass_at_k(len(group), sum(getattr(one, attribute) for one in group), k) for group in outcome.sampled]


def _finish(panels: Sequence["Axes"], split: str, evaluations: Sequence[Evaluation]) -> None:
    counts = sorted({len(evaluation.splits[split].prompts) for evaluation in evaluations})
    top, bottom = panels
    top.set_title(f"{split}: {' / '.join(map(str, counts))} problems")
    sizes = powers_of_two(max(len(evaluation.splits[split].sampled[0]) for evaluation in evaluations))
    top.set_xscale("log", base=2)
    top.set_xticks(sizes, [str(size) for size in sizes])
    top.set_xlabel("k, completions a problem (pass@k)")
    bottom.set_xscale("log", base=2)
    bottom.xaxis.set_major_formatter("{x:g}")
    bottom.set_xlabel("tokens of k completions, mean")
    for axes in panels:
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
