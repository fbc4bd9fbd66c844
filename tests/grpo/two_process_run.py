"""Runs of the trainer, as a function and as a program under `accelerate launch`, in any number of processes:

    two_process_run.py CASES.json STATES OUTPUT

CASES: "DDP" and "FSDP" -> their cases. STATES: those of a run with another number of processes, to go on from.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from grpo_cases import good_share, good_share_of_even_prompts, make_policy, make_qwen, make_trainer, weights_of
from torch.distributed.tensor import DTensor

from r1lab.grpo.trainer import GRPOTrainer
from r1lab.parallel.spread import enable_fsdp_on_cpus

REWARDS = {"good_share": good_share, "good_share_of_even_prompts": good_share_of_even_prompts}
POLICIES = {"ours": make_policy, "with mtp": lambda: make_policy(with_mtp=True), "qwen": make_qwen}


def build(case: dict, accelerator: Accelerator) -> GRPOTrainer:
    policy = POLICIES[case.get("policy", "ours")]()
    return make_trainer(policy, REWARDS[case["reward"]], accelerator, **case["settings"])


def share_of(trainer: GRPOTrainer) -> float:
    """The part of the weights that this process keeps for training."""
    own = [p.to_local() if isinstance(p, DTensor) else p for p in trainer.updater.model.parameters()]
    return sum(p.numel() for p in own) / sum(p.numel() for p in trainer.policy.parameters())


def run_cases(cases: dict[str, dict], accelerator: Accelerator) -> dict[str, dict]:
    """Case -> the policy's weights after two steps, each step's metrics, whether it left this process idle, the state
    after the first, and this process's share of what is trained."""
    results = {}
    for name, case in cases.items():
        trainer = build(case, accelerator)
        steps = [trainer.step()]
        [state] = broadcast_object_list([{"weights": weights_of(trainer.policy), "trainer": trainer.state_dict()}])
        state = copy.deepcopy(state)  # of one process they are the trainer's own tensors
        steps.append(trainer.step())
        is_idle = [all(r.advantage == 0 for group in step.groups for r in group.rollouts) for step in steps]
        metrics = [step.metrics for step in steps]
        results[name] = {
            "weights": weights_of(trainer.policy), "metrics": metrics, "is_idle": is_idle, "state": state,
            "share": share_of(trainer),
        }  # fmt: skip
    return results


def resume_cases(cases: dict[str, dict], states: dict[str, dict], accelerator: Accelerator) -> dict[str, dict]:
    """Case -> the policy's weights after the second step, made by a new trainer from the state after the first."""
    resumed = {}
    for name, case in cases.items():
        trainer = build(case, accelerator)
        trainer.policy.load_state_dict(states[name]["weights"])
        trainer.load_state_dict(copy.deepcopy(states[name]["trainer"]))
        trainer.step()
        resumed[name] = weights_of(trainer.policy)
    return resumed


def states_of(results: dict[str, dict]) -> dict[str, dict]:
    return {name: result["state"] for name, result in results.items()}


def main(cases_path: str, states_path: str, output_path: str) -> None:
    torch.set_num_threads(1)
    accelerator, states, output = Accelerator(), torch.load(states_path), {}
    for kind, cases in json.loads(Path(cases_path).read_text()).items():
        if kind == "FSDP":  # which the launcher asked for, and accelerate does not heed on CPUs
            enable_fsdp_on_cpus(accelerator)
        assert accelerator.is_fsdp2 == (kind == "FSDP")
        results = run_cases(cases, accelerator)
        again = resume_cases(cases, states_of(results), accelerator)
        resharded = resume_cases(cases, states, accelerator)
        output |= {
            name: results[name] | {"again": again[name], "resharded": resharded[name]} for name in cases
        }  # fmt: skip
    torch.save(output, f"{output_path}.{accelerator.process_index}")
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
