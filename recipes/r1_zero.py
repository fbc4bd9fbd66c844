"""R1-Zero: reinforcement learning straight from a base model, no supervised fine-tuning (DeepSeek-R1, section 2.2).

    accelerate launch recipes/r1_zero.py                                          # the embedded base on pick-two
    accelerate launch recipes/r1_zero.py --config recipes/configs/countdown.yaml  # ... on real Countdown
    accelerate launch recipes/r1_zero.py --config recipes/configs/qwen2.5_0.5b_gsm8k.yaml
    accelerate launch recipes/r1_zero.py --model_name_or_path DIR --dataset_name FILE.jsonl --reward_funcs accuracy format

Any field of `ScriptArguments`, `RunConfig` or `GRPOConfig` can stand in the YAML file or on the command line; the
command line wins.
"""

import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from trl import TrlParser

from r1lab.checkpoint import CheckpointError
from r1lab.config import GRPOConfig
from r1lab.evaluate import evaluate_split, reflection_token_ids
from r1lab.grpo.score import RewardError
from r1lab.grpo.trainer import GRPOTrainer, TrainingDiverged
from r1lab.loading import LoadingError, load_policy, load_prompts
from r1lab.report import print_results
from r1lab.rollout import HFRolloutEngine, RolloutEngine, SamplingParams
from r1lab.run import Interrupted, Run, RunConfig
from r1lab.tasks import TASKS
from rewards import load_reward

BASE = Path(__file__).resolve().parent.parent / "data" / "base"


@dataclass
class ScriptArguments:
    """What to train on what."""

    model_name_or_path: str = field(default=str(BASE), metadata={"help": "Checkpoint directory, .gguf file or hub id."})
    task: str = field(default="pick_two", metadata={"help": f"Embedded task: {', '.join(TASKS)}."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, or a local .jsonl / .parquet file, in place of the embedded task."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of a hub dataset."})
    prompt_column: str | None = field(default=None, metadata={"help": "Column with the problem; default: prompt, question or problem."})
    solution_column: str | None = field(default=None, metadata={"help": "Column with the answer; default: solution or answer."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message for chat models; default R1-Zero's."})
    num_train_problems: int = field(default=8192, metadata={"help": "Distinct training problems of an embedded task."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Held-out .jsonl / .parquet or hub id."})


def build_engine(policy, tokenizer):
    is_native = callable(getattr(policy, "hidden_states", None))
    return (RolloutEngine if is_native else HFRolloutEngine)(policy, eos_token_id=tokenizer.eos_token_id)


def main(script: ScriptArguments, run_config: RunConfig, config: GRPOConfig) -> None:
    plugin = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(log_with=run_config.log_with, project_dir=run_config.output_dir, kwargs_handlers=[plugin])
    set_seed(config.seed)
    reward_funcs = [load_reward(name) for name in config.reward_funcs]
    policy, tokenizer = load_policy(script.model_name_or_path)
    engine = build_engine(policy, tokenizer)
    train_prompts, held_out = load_prompts(script, tokenizer, policy.config, config, run_config.final_num_problems)
    decode = partial(tokenizer.decode, skip_special_tokens=True)

    def sampling(**overrides) -> SamplingParams:
        settings = {"max_tokens": config.max_completion_length, "temperature": config.temperature,
                    "top_p": config.top_p, "top_k": config.top_k}  # fmt: skip
        return SamplingParams(**settings | overrides)

    def sample(prompt_ids, seeds):
        return engine.generate(prompt_ids, sampling(n=config.num_generations), seeds=seeds)

    def evaluate(prompts, num_problems, num_samples, ban_reflection=False):
        banned = reflection_token_ids(tokenizer) if ban_reflection else ()

        def generate(prompt_ids, n, temperature):
            return engine.generate(prompt_ids, sampling(n=n, temperature=temperature, top_p=1.0, top_k=0,
                                                        seed=config.seed + 1, banned_token_ids=banned))  # fmt: skip

        policy.eval()
        return evaluate_split(prompts[:num_problems], generate, decode, reward_funcs[0], num_samples=num_samples)

    trainer = GRPOTrainer(
        policy,
        sample=sample,
        decode=decode,
        reward_funcs=reward_funcs,
        prompts=train_prompts,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else engine.pad_token_id,
        config=config,
        accelerator=accelerator,
    )
    if run_config.log_with:
        accelerator.init_trackers("r1lab")
    evaluators = {split: partial(evaluate, prompts) for split, prompts in held_out.items()}
    settings = asdict(script) | asdict(run_config) | asdict(config)
    run = Run(trainer, run_config, accelerator, tokenizer, evaluators, settings)
    results = run.train()
    if accelerator.is_main_process:
        print_results(results, run.directory, run.seconds)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(*TrlParser((ScriptArguments, RunConfig, GRPOConfig)).parse_args_and_config())
    except (ValueError, OSError, CheckpointError, LoadingError, RewardError, TrainingDiverged) as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)
