"""Distillation: a small dense model learns from the final model's traces, beside RL on that small model directly.

    accelerate launch recipes/distill.py --teacher runs/r1             # the embedded default: configs/r1_distill.yaml
    accelerate launch recipes/distill.py --teacher DIR --student_name_or_path DIR_OR_HUB_ID --dataset_name FILE.jsonl

DeepSeek-R1 (sections 2.4 and 4.1) finds that a small model gets further by imitating a larger one's solutions than by
RL of its own. Four stages, each in its directory and resumed like those of r1.py:

1. student: the paper's students are pretrained bases. The embedded one is a dense Llama of 0.9 M parameters, pretrained
   for a short while on the base's corpus. `--student_name_or_path` takes another, or shares one between seeds.
2. traces: solutions that the teacher writes, filtered as in stage 3 of r1.py.
3. distill: the student is fine-tuned on them, and evaluated.
4. rl: the same student, GRPO straight from it, as in r1_zero.py.
"""

import json
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pretrain
from accelerate import Accelerator
from accelerate.utils import set_seed
from r1 import STAGES as R1_STAGES
from r1 import (
    StagedRecipe,
    check_resume,
    print_evaluations,
    read_traces,
    reinforce,
    sample_traces,
)
from r1_zero import RECIPES, ScriptArguments, build_accelerator, build_engine, build_evaluator, run_clearly
from sft import SFTArguments, fine_tune
from transformers import LlamaConfig, LlamaForCausalLM
from trl import TrlParser

from r1lab.config import GRPOConfig, at_least
from r1lab.loading import load_policy, load_prompts
from r1lab.reject import RejectConfig
from r1lab.run import RunConfig
from r1lab.stages import check_stages, read_marker, remove_stage, run_stage
from r1lab.tasks.tokenizer import build_tokenizer
from rewards import language_consistency_reward, load_reward

STAGES = ("student", "traces", "distill", "rl")
DEFAULT_CONFIG = RECIPES / "configs" / "r1_distill.yaml"


@dataclass
class DistillArguments:
    """Who teaches whom.

    Raises:
        ValueError: a value is out of range; the message names it and the fix.
    """

    teacher: str = field(default="runs/r1", metadata={"help": "A finished run of r1.py, a checkpoint, or a hub id."})
    student_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint directory or hub id; default: one is pretrained here."}
    )
    student_num_steps: int = field(default=800, metadata={"help": "Pretraining steps of the student."})
    student_tokens_per_batch: int = field(default=5120, metadata={"help": "Tokens a pretraining step."})
    stages: list[str] = field(default_factory=lambda: list(STAGES), metadata={"help": f"Of {', '.join(STAGES)}."})

    def __post_init__(self) -> None:
        check_stages(self.stages, STAGES)
        at_least(self, "student_num_steps", 1)
        at_least(self, "student_tokens_per_batch", 1)


def build_student_config(tokenizer) -> LlamaConfig:
    """A dense model of about 0.9 M parameters, as deep and as wide as the embedded base."""
    return LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 16) * 16,
        hidden_size=128,
        num_hidden_layers=4,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.05,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def pretrain_student(directory: Path, args: DistillArguments) -> tuple[dict, bool]:
    """The embedded student: random weights, then `pretrain.py` on the corpus of the embedded base, seed 0."""
    settings = {"num_steps": args.student_num_steps, "tokens_per_batch": args.student_tokens_per_batch}

    def work() -> dict[str, Any]:
        set_seed(0)
        tokenizer = build_tokenizer()
        start = directory / "start"
        if Accelerator().is_main_process:
            LlamaForCausalLM(build_student_config(tokenizer)).save_pretrained(start)
            tokenizer.save_pretrained(start)
        Accelerator().wait_for_everyone()
        # The base's proportions: a third of the run mostly drills.
        config = pretrain.PretrainConfig(
            output_dir=str(directory / "model"),
            init_from=str(start),
            num_steps=args.student_num_steps,
            tokens_per_batch=args.student_tokens_per_batch,
            drill_steps=round(args.student_num_steps * 0.37),
            warmup_steps=min(50, args.student_num_steps),
        )
        pretrain.main(config)
        facts = json.loads((directory / "model" / "pretraining.json").read_text())
        return {"model": "model", "num_tokens": facts["tokens"], "final_loss": facts["final_loss"]}

    return run_stage(directory, settings, work)


def find_teacher(name: str) -> tuple[str, str]:
    """The teacher's model, and its name for a marker. A run of r1.py stands for its final model.

    Raises:
        ValueError: a run of r1.py that has not finished.
    """
    directory = Path(name)
    if any((directory / stage).is_dir() for stage in R1_STAGES):
        marker = read_marker(directory / "final_rl")
        if marker is None:
            raise ValueError(f"teacher {name!r}: the run's last stage, final_rl, has not finished; run r1.py again")
        return str(directory / "final_rl" / marker["model"]), f"{name}, finished {marker['finished']}"
    return name, name


def evaluate_model(name: str, script: ScriptArguments, run_config: RunConfig, config: GRPOConfig) -> dict[str, dict]:
    """Held-out results by split, with the sampled completions' language consistency."""
    policy, tokenizer = load_policy(name)
    policy.to(Accelerator().device)
    engine = build_engine(policy, tokenizer)
    _, held_out = load_prompts(script, tokenizer, policy.config, config, run_config.final_num_problems)
    reward = load_reward(config.reward_funcs[0])
    results = {}
    for split, prompts in held_out.items():
        judged, shares = _with_language(reward)
        evaluate = build_evaluator(engine, tokenizer, prompts, judged, config.max_completion_length)
        results[split] = evaluate(run_config.final_num_problems, run_config.final_num_samples)
        sampled = shares[: len(prompts) * run_config.final_num_samples]  # the greedy ones come after
        results[split]["language_consistency"] = sum(sampled) / len(sampled)
    return results


def _with_language(reward: Callable) -> tuple[Callable, list[float]]:
    """The reward, which also notes each completion's language consistency."""
    shares: list[float] = []

    def judge(completions, **columns):
        shares.extend(language_consistency_reward(completions=completions))
        return reward(completions=completions, **columns)

    return judge, shares


class Distillation(StagedRecipe):
    """The four stages over one output directory."""

    def run(self) -> dict[str, Any]:
        """Runs what is left of the named stages. Returns what `results.json` holds."""
        is_main = build_accelerator(self.run_config).is_main_process
        started = time.perf_counter()
        for stage in STAGES:
            if stage in self.args.stages:
                if is_main:
                    print(f"== {stage}", flush=True)
                getattr(self, stage)()
        results = self._results()
        if is_main:
            (self.directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            print_evaluations(results["evaluations"])
            print(f"{(time.perf_counter() - started) / 60:.1f} minutes; everything is in {self.directory}")
        return results

    def student(self) -> None:
        """Stage 1, unless a student was named."""
        if self.args.student_name_or_path is None:
            pretrain_student(self.directory / "student", self.args)

    def traces(self) -> None:
        """Stage 2."""
        teacher = find_teacher(self.args.teacher)
        sample_traces(self.directory / "traces", teacher, self.script, self.config, self.reject_config)

    def distill(self) -> None:
        """Stage 3."""
        directory = self.directory / "distill"
        model, name = self._find_student()
        traces = read_marker(self.directory / "traces")
        if traces is None:
            raise ValueError(f"{self.directory} has no finished traces to learn from; add traces to --stages")
        settings = {"starts_from": name, "traces": traces["finished"], "seed": self.config.seed, **asdict(self.sft)}

        def work() -> dict[str, Any]:
            rows = read_traces(self.directory / "traces")
            facts = fine_tune(model, rows, directory, self.sft, seed=self.config.seed, routing_bias_speed=0.0)
            if Accelerator().is_main_process:
                results = evaluate_model(str(directory / "model"), self.script, self.run_config, self.config)
                (directory / "results.json").write_text(json.dumps({"final": results}, indent=1) + "\n")
            return facts

        run_stage(directory, settings, work)

    def rl(self) -> None:
        """Stage 4."""
        reinforce(self.directory / "rl", self._find_student(), self.script, self.run_config, self.config)

    def _find_student(self) -> tuple[str, str]:
        if self.args.student_name_or_path is not None:
            return self.args.student_name_or_path, self.args.student_name_or_path
        marker = read_marker(self.directory / "student")
        if marker is None:
            raise ValueError(
                f"{self.directory} has no finished student; add student to --stages, or name one with "
                "--student_name_or_path"
            )
        return str(self.directory / "student" / marker["model"]), f"student, finished {marker['finished']}"

    def _results(self) -> dict[str, Any]:
        markers = {stage: read_marker(self.directory / stage) for stage in STAGES}
        markers = {stage: marker for stage, marker in markers.items() if marker is not None}
        evaluations = {}
        for name, stage, when in (("student", "rl", "base"), ("rl", "rl", "final"), ("distill", "distill", "final")):
            path = self.directory / stage / "results.json"
            if stage in markers and path.exists():
                evaluations[name] = json.loads(path.read_text())[when]
        return {
            "seed": self.config.seed,
            "teacher": self.args.teacher,
            "command": shlex.join(sys.argv),
            "stages": markers,
            "evaluations": evaluations,
        }


def main(script, run_config, config, args, sft, reject_config) -> None:
    """Runs the stages; see the module's docstring."""
    check_resume(run_config)
    if run_config.overwrite_output_dir and run_config.resume_from_checkpoint is None:
        with Accelerator().main_process_first():
            for stage in args.stages:
                remove_stage(Path(run_config.output_dir) / stage)
    Distillation(script, run_config, config, args, sft, reject_config).run()
    Accelerator().end_training()


def parse_arguments(arguments: list[str]) -> tuple:
    """The settings; the embedded default's where neither a config nor a dataset is named."""
    named = {argument.partition("=")[0] for argument in arguments}
    if not named & {"--config", "--dataset_name"}:
        arguments = ["--config", str(DEFAULT_CONFIG), *arguments]
    classes = (ScriptArguments, RunConfig, GRPOConfig, DistillArguments, SFTArguments, RejectConfig)
    return TrlParser(classes, allow_abbrev=False).parse_args_and_config(arguments)


if __name__ == "__main__":
    run_clearly(lambda: main(*parse_arguments(sys.argv[1:])))
