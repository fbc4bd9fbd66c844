"""How the tests start recipes/r1_zero.py: small, and in a process of its own."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

TINY_RUN = [
    "--max_steps", "4", "--generation_batch_size", "16", "--num_generations", "4", "--max_completion_length", "48",
    "--num_train_problems", "200", "--eval_steps", "2", "--eval_num_problems", "4", "--eval_num_samples", "2",
    "--final_num_problems", "6", "--final_num_samples", "2", "--save_steps", "1", "--save_total_limit", "10",
]  # fmt: skip
SHORT_RUN = [*TINY_RUN, "--max_steps", "2", "--eval_steps", "0", "--final_num_problems", "2"]


def recipe_command(*arguments):
    return [sys.executable, str(ROOT / "recipes" / "r1_zero.py"), *map(str, arguments)]


def recipe_environment(**overrides):
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | overrides
