"""Evaluate a checkpoint, or any causal language model, on held-out problems.

    python recipes/evaluate.py --model_name_or_path runs/r1_zero/checkpoints/step_00100
    python recipes/evaluate.py --model_name_or_path DIR --task countdown --protocol r1
    python recipes/evaluate.py --model_name_or_path DIR --eval_dataset_name FILE.jsonl --reward accuracy

Sampled and greedy accuracy, pass@k, maj@k, format and reflection, with standard errors over problems, as a table and
(`--output_file`) as JSON. `--protocol r1` samples as DeepSeek-R1's evaluations do: temperature 0.6, top-p 0.95
(arXiv:2501.12948, section 3).
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from r1_zero import ScriptArguments, build_engine, build_evaluator
from trl import TrlParser

from r1lab.config import GRPOConfig, at_least
from r1lab.loading import load_policy, load_prompts
from r1lab.report import print_results
from rewards import load_reward

PROTOCOLS = {"plain": (1.0, 1.0), "r1": (0.6, 0.95)}
"""Name -> (temperature, top-p)."""


@dataclass
class EvaluateConfig:
    """How to evaluate."""

    reward: str = field(default="countdown", metadata={"help": "The reward whose 1 means right, by name or path."})
    protocol: str = field(default="plain", metadata={"help": f"Sampling: {', '.join(PROTOCOLS)}."})
    num_problems: int = field(default=300, metadata={"help": "Held-out problems a split."})
    num_samples: int = field(default=8, metadata={"help": "Completions a problem."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    ban_reflection: bool = field(default=False, metadata={"help": "Never sample a reflective word."})
    output_file: str | None = field(default=None, metadata={"help": "Where the results go as JSON."})

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol={self.protocol!r}: use one of {', '.join(PROTOCOLS)}")
        for name in ("num_problems", "num_samples", "max_completion_length"):
            at_least(self, name, 1)


def main(script: ScriptArguments, config: EvaluateConfig) -> None:
    reward = load_reward(config.reward)
    policy, tokenizer = load_policy(script.model_name_or_path)
    engine = build_engine(policy, tokenizer)
    script.dataset_name = script.eval_dataset_name  # held-out problems only
    limits = GRPOConfig(max_completion_length=config.max_completion_length)
    _, held_out = load_prompts(script, tokenizer, policy.config, limits, config.num_problems)
    if not held_out:
        raise ValueError("nothing to evaluate on: name the problems with --eval_dataset_name")
    temperature, top_p = PROTOCOLS[config.protocol]
    results = {}
    for split, prompts in held_out.items():
        evaluate = build_evaluator(engine, tokenizer, prompts, reward, config.max_completion_length, temperature, top_p)
        results[split] = evaluate(config.num_problems, config.num_samples, config.ban_reflection)
    print_results({"final": results})
    if config.output_file:
        settings = {"model": script.model_name_or_path, "temperature": temperature, "top_p": top_p, **vars(config)}
        Path(config.output_file).write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main(*TrlParser((ScriptArguments, EvaluateConfig)).parse_args_and_config())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
