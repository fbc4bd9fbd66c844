"""Put the seeds of one recipe together: a JSON file, a table for the README, and their curves in one picture.

python recipes/summarize.py --name r1_zero --run_dirs runs/seed0 runs/seed1 runs/seed2
"""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from trl import TrlParser

from r1lab.report import COLUMNS, mean_and_range, table_rows
from r1lab.trace.curves import plot_curves

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class SummaryArguments:
    """Which runs to put together."""

    name: str = field(metadata={"help": "Name of the files in recipes/results."})
    run_dirs: list[str] = field(metadata={"help": "Finished runs that differ in their seed only."})
    title: str = field(default="", metadata={"help": "Title of the picture."})


def read_results(run_dir: str) -> dict:
    """A finished run's results.

    Raises:
        SystemExit: the run has not finished.
    """
    path = Path(run_dir) / "results.json"
    if not path.exists():
        raise SystemExit(f"error: {path} does not exist: the run has not finished; resume it, or leave it out")
    return json.loads(path.read_text())


def build_table(seeds: list[dict]) -> str:
    """Markdown: mean over seeds, with the seeds' range in brackets where there are several."""
    lines = []
    for split, base in seeds[0]["base"].items():
        lines += ["", f"**{split}** ({base['num_problems']} held-out problems, {len(seeds)} seeds)", ""]
        lines += ["| | base | after RL | after RL, reflection banned |", "|---|---|---|---|"]
        for label, key in table_rows(base).items():
            cells = [mean_and_range([seed[column][split].get(key) for seed in seeds]) for column in COLUMNS]
            # A bar in a label would end the cell.
            label = label.replace("|", "\\|")
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lengths = [f"{statistics.mean(seed[column][split]['mean_length'] for seed in seeds):.0f}" for column in COLUMNS]
        lines.append(f"| mean length, tokens | {' | '.join(lengths)} |")
    return "\n".join(lines)


def main(args: SummaryArguments) -> None:
    seeds = [read_results(run_dir) for run_dir in args.run_dirs]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps({"seeds": seeds}, indent=1) + "\n")
    plot_curves(args.run_dirs, RESULTS / f"{args.name}.png", args.title or args.name)
    print(build_table(seeds))


if __name__ == "__main__":
    main(TrlParser(SummaryArguments).parse_args_and_config()[0])
