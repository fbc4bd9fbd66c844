"""A run directory read back: metrics, evaluations, completions, settings, results."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1lab.trace.metrics import read_metrics
from r1lab.trace.recorder import FIXED_COLUMNS, RUN_FORMAT, completions_files

if TYPE_CHECKING:
    import datasets
    import pandas

_EVALUATION = "eval/"


@dataclass
class Run:
    """A run directory, read back."""

    path: Path
    config: dict[str, Any]
    """The settings, `config.yaml`; {} when the run has none."""
    metrics: "pandas.DataFrame"
    """One row a line of `metrics.jsonl`, in order; null reads as NaN."""
    notes: list[str] = field(default_factory=list)
    """What was left out and why: files a kill left half-written, files that are missing."""

    @cached_property
    def completions(self) -> "pandas.DataFrame":
        """All rollouts that were recorded, by step; read at the first use. Unreadable files are left out and noted.

        The columns: see recorder.py.
        """
        frame, notes = _read_completions(self.path, None)
        self.notes.extend(notes)
        return frame

    @cached_property
    def evaluations(self) -> "pandas.DataFrame":
        """The held-out evaluations during the run: one row a (step, split, metric), with its value."""
        names = [name for name in self.metrics.columns if name.startswith(_EVALUATION)]
        tidy = self.metrics.melt(id_vars="step", value_vars=names, var_name="name").dropna(subset="value")
        parts = tidy["name"].str.removeprefix(_EVALUATION).str.partition("/")
        tidy = tidy.assign(split=parts[0], metric=parts[2]) if len(tidy) else tidy.assign(split="", metric="")
        return tidy[["step", "split", "metric", "value"]].sort_values("step", kind="stable", ignore_index=True)

    @cached_property
    def results(self) -> "pandas.DataFrame":
        """The closing evaluations, `results.json`: one row a (when, split, metric), with its value; `when` is "base",
        "final" or "final_reflection_banned". Empty, with a note, for a run that has not finished.
        """
        import pandas

        rows, notes = _read_results(self.path / "results.json")
        self.notes.extend(notes)
        return pandas.DataFrame(rows, columns=["when", "split", "metric", "value"])

    def to_datasets(self) -> "datasets.DatasetDict":
        """metrics, evaluations, completions and results as `datasets.Dataset`; what is empty is left out."""
        import datasets

        frames = {name: getattr(self, name) for name in ("metrics", "evaluations", "completions", "results")}
        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_pandas(frame, preserve_index=False)
                for name, frame in frames.items()
                if len(frame)
            }
        )


def load_run(path: str | Path) -> Run:
    """Reads a run directory; a run that is still writing, or was killed, loads up to its last finished step.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it is empty or no run directory, is of a newer format, its config or its metrics cannot be read, or
            no step was finished.
    """
    import pandas

    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such run directory")
    _check_is_run(path)
    notes: list[str] = []
    config = _read_config(path / "config.yaml", notes)
    _check_format(path, config)
    file = path / "metrics.jsonl"
    rows = read_metrics(file)
    if not rows:
        raise ValueError(f"{file} has no finished step: the run was stopped before its first one; start it again")
    if not file.read_bytes().endswith(b"\n"):
        notes.insert(0, "metrics.jsonl: half-written last line left out")
    return Run(path=path, config=config, metrics=pandas.DataFrame(rows), notes=notes)


def _check_is_run(path: Path) -> None:
    if (path / "metrics.jsonl").is_file():
        return
    names = sorted(child.name for child in path.iterdir())
    if not names:
        raise ValueError(f"{path} is empty: no run has started in it")
    if "config.yaml" in names:
        raise ValueError(
            f"{path} has no metrics.jsonl, only {', '.join(names)}: the run was stopped before its first step; "
            "start it again"
        )
    inside = sorted(child.parent.name for child in path.glob("*/metrics.jsonl"))
    hint = f"; did you mean {path / inside[0]}?" if inside else ""
    raise ValueError(f"{path} is not a run directory: it has no metrics.jsonl{hint}")


def _read_config(file: Path, notes: list[str]) -> dict[str, Any]:
    import yaml

    if not file.is_file():
        notes.append(f"{file.name} is missing")
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict | None):
        raise ValueError(f"{file} holds a {type(config).__name__}: expected `field: value` lines")
    return config or {}


def _check_format(path: Path, config: dict[str, Any]) -> None:
    version = config.get("run_format", 1)
    if not isinstance(version, int):
        raise ValueError(f"{path / 'config.yaml'}: run_format is {version!r}, not a number")
    if version > RUN_FORMAT:
        raise ValueError(
            f"{path} was written by a newer r1lab (run_format {version}; this one reads up to {RUN_FORMAT}): "
            "upgrade r1lab to look at it"
        )


def _read_results(file: Path) -> tuple[list[tuple[str, str, str, float]], list[str]]:
    if not file.is_file():
        return [], [f"{file.name} is missing: the run has not finished"]
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return [], [f"{file.name}: left out, is not JSON ({error})"]
    rows = [
        (when, split, metric, value)
        for when, splits in data.items()
        if isinstance(splits, dict)
        for split, metrics in splits.items()
        if isinstance(metrics, dict)
        for metric, value in metrics.items()
    ]
    return rows, []


def read_completions(run_dir: str | Path, steps: Iterable[int] | None = None) -> "pandas.DataFrame":
    """The rollouts of the given steps (None: all), by step. Empty, with the fixed columns, when there are none."""
    return _read_completions(run_dir, None if steps is None else set(steps))[0]


def _read_completions(run_dir: str | Path, steps: set[int] | None) -> tuple["pandas.DataFrame", list[str]]:
    import pandas
    import pyarrow.parquet

    tables, notes = [], []
    for number, path in completions_files(run_dir):
        if steps is not None and number not in steps:
            continue
        try:
            tables.append(pyarrow.parquet.read_table(path))
        except (pyarrow.ArrowInvalid, OSError) as error:
            notes.append(f"{path.name}: left out, cannot be read ({str(error).splitlines()[0]})")
    if not tables:
        return pandas.DataFrame(columns=list(FIXED_COLUMNS)), notes
    return pyarrow.concat_tables(tables, promote_options="default").to_pandas(), notes
