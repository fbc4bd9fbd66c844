"""R1-Zero: reinforcement learning straight from a base model, no supervised fine-tuning (DeepSeek-R1, section 2.2).

    accelerate launch recipes/r1_zero.py                                          # the main job: configs/pick_two.yaml
    accelerate launch recipes/r1_zero.py --config recipes/configs/countdown.yaml  # the embedded base on real Countdown
    accelerate launch recipes/r1_zero.py --config recipes/configs/qwen2.5_0.5b_gsm8k.yaml
    accelerate launch recipes/r1_zero.py --model_name_or_path DIR --dataset_name FILE.jsonl
    accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/r1_zero.py       # several GPUs

Any field of `ScriptArguments`, `RunConfig` or `GRPOConfig` can stand in the YAML file or on the command line; the
command line wins.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object, set_seed
from trl import TrlParser

from r1lab.checkpoint import CheckpointError
from r1lab.config import GRPOConfig
from r1lab.evaluate import build_generate, evaluate_split, reflection_token_ids
from r1lab.grpo.score import RewardError
from r1lab.grpo.trainer import GRPOTrainer, TrainingDiverged
from r1lab.grpo.update import reads_recorded_load
from r1lab.loading import load_policy, load_prompts
from r1lab.parallel.all_to_all import ExpertGroupError
from r1lab.parallel.spread import ParallelSettingsError, check_processes, enable_fsdp_on_cpus, exit_together
from r1lab.report import print_results
from r1lab.rollout import HFRolloutEngine, RolloutEngine, SamplingParams, build_vllm_engine, generate_of
from r1lab.run import Interrupted, Run, RunConfig
from r1lab.tasks import TASKS
from r1lab.trace.report import write_report
from rewards import load_reward

RECIPES = Path(__file__).resolve().parent
BASE = RECIPES.parent / "data" / "base"
MAIN_JOB = RECIPES / "configs" / "pick_two.yaml"


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
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column with the problem; default: prompt, question or problem."}
    )
    solution_column: str | None = field(
        default=None, metadata={"help": "Column with the answer; default: solution or answer."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message for chat models; default R1-Zero's."}
    )
    num_train_problems: int = field(default=8192, metadata={"help": "Distinct training problems of an embedded task."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Held-out .jsonl / .parquet or hub id."})


def build_engine(policy, tokenizer, config: GRPOConfig | None = None, accelerator: Accelerator | None = None):
    """vLLM where the config asks for it; else our engine for our policy, transformers' generation for any other."""
    if config is not None and config.use_vllm:
        return build_vllm_engine(policy, tokenizer, config, accelerator)
    if not callable(getattr(policy, "hidden_states", None)):
        return HFRolloutEngine(policy, eos_token_id=tokenizer.eos_token_id)
    num_drafts = 0 if config is None else config.num_speculative_tokens
    return RolloutEngine(policy, eos_token_id=tokenizer.eos_token_id, num_speculative_tokens=num_drafts)


def build_sampler(engine, config: GRPOConfig):
    """How the trainer draws completions: `num_generations` for each prompt, each from a seed of its own."""
    saves_a_pass = isinstance(engine, RolloutEngine) and reads_recorded_load(engine.model, config)
    params = SamplingParams(
        n=config.num_generations,
        max_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        record_routing=config.router_replay or saves_a_pass,
    )
    generate = generate_of(engine)
    return lambda prompt_ids, seeds: generate(prompt_ids, params, seeds=seeds)


def build_evaluator(engine, tokenizer, prompts, reward, max_tokens: int, accelerator: Accelerator | None = None):
    """(num_problems, num_samples, ban_reflection=False) -> sampled and greedy results on one held-out split.

    With an accelerator the problems are shared out among its processes.
    """
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    shares = {}
    if accelerator is not None and accelerator.num_processes > 1:
        shares = {"rank": accelerator.process_index, "world_size": accelerator.num_processes, "gather": gather_object}

    def evaluate(num_problems: int, num_samples: int, ban_reflection: bool = False) -> dict[str, float]:
        banned = reflection_token_ids(tokenizer) if ban_reflection else ()
        generate = build_generate(engine, max_tokens=max_tokens, banned_token_ids=banned)
        return evaluate_split(prompts[:num_problems], generate, decode, reward, num_samples=num_samples, **shares)

    return evaluate


def build_accelerator(run_config: RunConfig) -> Accelerator:
    """Raises ValueError when the tracker that `log_with` names is not installed."""
    accelerator = Accelerator(
        log_with=run_config.log_with,
        project_dir=run_config.output_dir,
        kwargs_handlers=[
            # The experts' load is counted by each process; DDP would overwrite it with the first one's.
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # Whoever has the shorter completions waits for the others.
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),
        ],
    )
    if run_config.log_with and not accelerator.log_with:  # accelerate leaves out what it cannot import
        raise ValueError(f"log_with={run_config.log_with!r}: not installed; pip install {run_config.log_with}")
    return enable_fsdp_on_cpus(accelerator)


def train(script: ScriptArguments, run_config: RunConfig, config: GRPOConfig, accelerator: Accelerator) -> dict:
    """RL of one policy, from its checkpoint to a complete run directory. Returns the results, as in `results.json`."""
    check_processes(accelerator, config.expert_parallel_size)
    set_seed(config.seed)
    reward_funcs = [load_reward(name) for name in config.reward_funcs]
    with_mtp = config.num_speculative_tokens > 0 or config.mtp_loss_weight > 0
    policy, tokenizer = load_policy(script.model_name_or_path, with_mtp)
    policy.to(accelerator.device)  # before the engine, which looks where it is
    engine = build_engine(policy, tokenizer, config, accelerator)
    train_prompts, held_out = load_prompts(script, tokenizer, policy.config, config, run_config.final_num_problems)
    trainer = GRPOTrainer(
        policy,
        sample=build_sampler(engine, config),
        decode=partial(tokenizer.decode, skip_special_tokens=True),
        reward_funcs=reward_funcs,
        prompts=train_prompts,
        pad_token_id=engine.pad_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        config=config,
        accelerator=accelerator,
        rollout_metrics=engine.drafting.take_metrics if isinstance(engine, RolloutEngine) and with_mtp else dict,
        on_new_weights=engine.weights_changed if config.use_vllm else lambda: None,
    )
    if run_config.log_with:
        accelerator.init_trackers("r1lab")
    evaluators = {
        split: build_evaluator(engine, tokenizer, prompts, reward_funcs[0], config.max_completion_length, accelerator)
        for split, prompts in held_out.items()
    }
    settings = asdict(script) | asdict(run_config) | asdict(config)
    run = Run(trainer, run_config, accelerator, tokenizer, evaluators, settings)
    results = run.train()
    if accelerator.is_main_process:
        report = write_report(run.directory, show_progress=True)
        print_results(results)
        print(f"{run.seconds / 60:.1f} minutes; metrics, completions, checkpoints and curves are in {run.directory}")
        print(f"the completions, to read in a browser: {report}")
    return results


def main(script: ScriptArguments, run_config: RunConfig, config: GRPOConfig) -> None:
    accelerator = build_accelerator(run_config)
    train(script, run_config, config, accelerator)
    accelerator.end_training()


def parse_arguments(arguments: list[str]) -> tuple[ScriptArguments, RunConfig, GRPOConfig]:
    """The settings; the main job's where no config, model or dataset is named."""
    named = {argument.partition("=")[0] for argument in arguments}
    if not named & {"--config", "--model_name_or_path", "--dataset_name"}:
        arguments = ["--config", str(MAIN_JOB), *arguments]
    parser = TrlParser((ScriptArguments, RunConfig, GRPOConfig), allow_abbrev=False)
    return parser.parse_args_and_config(arguments)


def run_command(arguments: list[str]) -> None:
    """The recipe from its command line."""
    run_clearly(lambda: main(*parse_arguments(arguments)))


def run_clearly(work: Callable[[], None]) -> None:
    """A mistake ends the program with one clear line and exit code 1, Ctrl-C with 130."""
    try:
        work()
    except ParallelSettingsError as error:
        exit_together(f"error: {error}")
    except (
        ValueError,
        OSError,
        FloatingPointError,
        CheckpointError,
        ExpertGroupError,
        RewardError,
        TrainingDiverged,
    ) as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run_command(sys.argv[1:])
