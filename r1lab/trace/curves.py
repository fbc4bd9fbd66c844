"""Learning curves of one run, or of several seeds of the same run, as one picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.trace.load import load_run
from r1lab.trace.metrics import find_accuracy_key

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart with any colour vision (black and yellow left out).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_curves(run_dirs: str | Path | Sequence[str | Path], out_png: str | Path, title: str = "") -> Path:
    """Draws reward, accuracy, mean completion length and reflection share over optimisation steps.

    Args:
        run_dirs: a run directory, or several that differ in their seed only: thin lines, and their mean over the
            steps that all of them reached as a thick one.
        out_png: the picture; 1500 x 1000 pixels.
        title: above the panels.

    The accuracy panel shows `eval/<split>/accuracy` where evaluations were logged (one colour a split), and the
    accuracy reward of the sampled training completions. A panel without data says so.

    Raises:
        FileNotFoundError, ValueError: a run cannot be read (see `load_run`), or `run_dirs` is empty.
    """
    from matplotlib.figure import Figure

    paths = [run_dirs] if isinstance(run_dirs, str | Path) else list(run_dirs)
    if not paths:
        raise ValueError("run_dirs is empty: give at least one run directory")
    frames = [load_run(path).metrics for path in paths]
    # A Figure of its own, drawn by Agg: no pyplot, hence no display and no global state.
    figure = Figure(figsize=(10, 6.6667), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.03)
    panels = figure.subplots(2, 2, sharex=True)
    _draw_single(panels[0, 0], frames, "reward", "Reward", "mean over rollouts")
    _draw_accuracy(panels[0, 1], frames)
    _draw_single(panels[1, 0], frames, "completions/mean_length", "Completion length", "mean, tokens")
    _draw_single(panels[1, 1], frames, "reflection/rate", "Reflection", "completions that reflect, %", scale=100)
    for axes in panels[1]:
        axes.set_xlabel("optimisation step")
    if len(frames) > 1:
        title = f"{title}  (thin: {len(frames)} seeds, thick: mean)".strip()
    if title:
        figure.suptitle(title, fontsize=13)
    out_png = Path(out_png)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png)
    return out_png


def _draw_single(axes: "Axes", frames: list, key: str, name: str, unit: str, scale: float = 1.0) -> None:
    _style(axes, name, unit)
    drawn = _draw_seeds(axes, frames, lambda _: key, COLOURS[0], scale=scale)
    if not drawn:
        _say_empty(axes)
    elif scale == 100:
        axes.set_ylim(-2, 102)
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def _draw_accuracy(axes: "Axes", frames: list) -> None:
    _style(axes, "Accuracy", "right answers, %")
    drawn = _draw_seeds(axes, frames, _accuracy_key, "#999999", label="training samples", scale=100)
    splits = dict.fromkeys(
        key for frame in frames for key in frame.columns if key.startswith("eval/") and key.endswith("/accuracy")
    )
    for index, key in enumerate(splits):
        split = key.removeprefix("eval/").removesuffix("/accuracy")
        colour = COLOURS[index % len(COLOURS)]
        drawn += _draw_seeds(axes, frames, lambda _, key=key: key, colour, label=split, marker="o", scale=100)
    if not drawn:
        _say_empty(axes)
        return
    axes.set_ylim(-2, 102)
    axes.legend(frameon=False, fontsize=9, loc="best")


def _draw_seeds(
    axes: "Axes",
    frames: list,
    key_of: Callable[[Any], str | None],
    colour: str,
    *,
    label: str | None = None,
    marker: str | None = None,
    scale: float = 1.0,
) -> int:
    """Draws one quantity for every seed and their mean; returns how many seeds have it."""
    series = [_series(frame, key_of(frame)) * scale for frame in frames]
    series = [one for one in series if len(one)]
    if len(series) == 1:
        axes.plot(series[0].index, series[0], color=colour, linewidth=1.5, marker=marker, markersize=4, label=label)
    elif series:
        import pandas

        for one in series:
            axes.plot(one.index, one, color=colour, linewidth=0.8, alpha=0.4)
        mean = pandas.concat(series, axis=1).dropna().mean(axis=1)
        axes.plot(mean.index, mean, color=colour, linewidth=2.2, marker=marker, markersize=4, label=label)
    return len(series)


def _series(frame: "pandas.DataFrame", key: str | None) -> "pandas.Series":
    """A metric by step, without the steps that lack it; the last line of a step wins."""
    import pandas

    if key is None or key not in frame.columns:
        return pandas.Series(dtype=float)
    values = pandas.to_numeric(frame.set_index("step")[key], errors="coerce").dropna()
    return values[~values.index.duplicated(keep="last")].sort_index()


def _accuracy_key(frame: "pandas.DataFrame") -> str | None:
    return find_accuracy_key(frame.columns)


def _style(axes: "Axes", name: str, unit: str) -> None:
    axes.set_title(name, fontsize=11, loc="left", fontweight="bold")
    axes.set_ylabel(unit, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, labelbottom=True)


def _say_empty(axes: "Axes") -> None:
    axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color="#777777")
    axes.set_yticks([])
