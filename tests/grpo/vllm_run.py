"""Training with the stub of a vLLM server, as a function and as a program: python vllm_run.py URL OUTPUT."""

import os
import sys
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from grpo_cases import EOS, good_share_of_even_prompts, make_policy, make_trainer, weights_of
from processes import free_port
from vllm_stub import CudaInName, server_config, stand_ins

from r1lab.evaluate import build_generate, evaluate_split
from r1lab.rollout import SamplingParams, VLLMRolloutEngine, build_vllm_engine
from r1lab.types import Prompt

# Rounds in which a single prompt is still missing: one of two processes has none to ask for.
UNEVEN = {"generation_batch_size": 16, "dynamic_sampling": True, "max_resamples": 3, "seed": 18}


def connect(url: str, policy, accelerator=None) -> VLLMRolloutEngine:
    config = server_config(url, free_port())
    return build_vllm_engine(policy, SimpleNamespace(eos_token_id=EOS), config, CudaInName(accelerator))


def train_unevenly(url: str, accelerator: Accelerator) -> dict:
    """One step -> the weights, the metrics, how many prompts this process asked for in each round, and an evaluation.

    Only one: what dynamic sampling fills a step up with differs between numbers of processes, whatever the engine.
    """
    policy = make_policy()
    engine = connect(url, policy, accelerator)
    trainer = make_trainer(policy, good_share_of_even_prompts, accelerator, vllm=engine, use_vllm=True, **UNEVEN)
    rounds, sample = [], trainer.collector.sample

    def count(prompt_ids, seeds):
        rounds.append(len(prompt_ids))
        return sample(prompt_ids, seeds)

    trainer.collector.sample = count
    results = _evaluate(engine)
    metrics = trainer.step().metrics
    weights = weights_of(policy)
    return {
        "weights": weights, "metrics": metrics, "rounds": rounds, "results": results, "error": _ask_badly(engine)
    }  # fmt: skip


def _evaluate(engine: VLLMRolloutEngine) -> dict:
    """One problem: of two processes the second has none."""
    accelerator = engine.accelerator
    generate = build_generate(engine, max_tokens=4)
    return evaluate_split(
        [Prompt("p", [2, 5], {})], generate, lambda ids: " ".join(map(str, ids)), _is_even, num_samples=3,
        rank=accelerator.process_index, world_size=accelerator.num_processes, gather=gather_object,
    )  # fmt: skip


def _is_even(completions, **columns) -> list[float]:
    return [float(int(text.split()[0]) % 2 == 0) for text in completions]


def _ask_badly(engine: VLLMRolloutEngine) -> str:
    """The last process's prompt is wrong."""
    accelerator = engine.accelerator
    is_last = accelerator.process_index == accelerator.num_processes - 1
    try:
        engine.generate_together([[99] if is_last else [2]], SamplingParams(max_tokens=1), [[0]])
    except ValueError as error:
        return str(error)
    return ""


def main(url: str, output: str) -> None:
    accelerator = Accelerator()
    with stand_ins():
        torch.save(train_unevenly(url, accelerator), f"{output}.{accelerator.process_index}")
    accelerator.wait_for_everyone()
    # Not through the interpreter's end: there the main thread, holding the GIL, waits in ~ProcessGroupGloo for a thread
    # that wants the GIL to let the last broadcast's tensor go, and on a busy machine both do.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
