"""One machine's part of two runs of the recipe, as a program under `accelerate launch`: machine_run.py DIRECTORY

The first asks for what the processes cannot do; the second spreads the experts over all of them.
"""

import sys
from pathlib import Path

import accelerate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "recipes"))

from r1_zero import run_command  # noqa: E402
from recipe_runs import SHORT_RUN  # noqa: E402


def main(directory: str) -> None:
    try:
        run_command([*SHORT_RUN, "--output_dir", f"{directory}/refused", "--expert_parallel_size", "3"])
    except SystemExit as stop:
        print(f"process {accelerate.PartialState().process_index} would end with {stop.code}", flush=True)
    run_command([*SHORT_RUN, "--output_dir", f"{directory}/run", "--expert_parallel_size", "2"])


if __name__ == "__main__":
    main(*sys.argv[1:])
