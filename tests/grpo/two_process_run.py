"""Runs of the trainer, as a function and as a program: python two_process_run.py CASES.json OUTPUT, in any number."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from grpo_cases import good_share, good_share_of_even_prompts, make_policy, make_trainer, weights_of

REWARDS = {"good_share": good_share, "good_share_of_even_prompts": good_share_of_even_prompts}


def run_cases(cases: dict[str, dict], accelerator: Accelerator) -> dict[str, dict]:
    """Case -> the policy's weights after two steps, each step's metrics, and whether it left this process idle."""
    results = {}
    for name, case in cases.items():
        policy = make_policy()
        trainer = make_trainer(policy, REWARDS[case["reward"]], accelerator, **case["settings"])
        steps = [trainer.step() for _ in range(2)]
        is_idle = [all(r.advantage == 0 for group in step.groups for r in group.rollouts) for step in steps]
        metrics = [step.metrics for step in steps]
        results[name] = {"weights": weights_of(policy), "metrics": metrics, "is_idle": is_idle}
    return results


def main(cases_path: str, output_path: str) -> None:
    accelerator = Accelerator()
    results = run_cases(json.loads(Path(cases_path).read_text()), accelerator)
    torch.save(results, f"{output_path}.{accelerator.process_index}")
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
