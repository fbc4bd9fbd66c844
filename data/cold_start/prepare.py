"""Write the cold-start traces of an embedded task to a file: what `recipes/r1.py` fine-tunes on first.

python data/cold_start/prepare.py --output_file traces.jsonl
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from trl import TrlParser

from r1lab.tasks.cold_start import load_cold_start


@dataclass
class PrepareArguments:
    """Which traces."""

    task: str = field(default="pick_two", metadata={"help": "Embedded task: pick_two or countdown."})
    num_cold_start: int = field(default=500, metadata={"help": "How many traces, each of another problem."})
    seed: int = field(default=0, metadata={"help": "The same seed writes the same traces."})
    output_file: str = field(default="traces.jsonl", metadata={"help": "One JSON object a line."})


def main(args: PrepareArguments) -> None:
    rows = load_cold_start(args.task, args.num_cold_start, args.seed)
    path = Path(args.output_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} traces, {sum(len(row['completion'].split()) for row in rows):,} words: {path}")


if __name__ == "__main__":
    try:
        main(TrlParser(PrepareArguments).parse_args_and_config()[0])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
