"""Verifiable problems, as `datasets.Dataset` rows with `prompt` and what their reward reads."""

from r1lab.tasks.datasets import TASKS, load_task
from r1lab.tasks.prompts import encode_prompts

__all__ = ["TASKS", "encode_prompts", "load_task"]
