"""A training run on disk: drives a trainer and keeps its metrics, completions, checkpoints, evaluations and pictures.

<output_dir>/config.yaml  metrics.jsonl  completions/  checkpoints/  results.json  curves.png
"""

import json
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object

from r1lab.checkpoint import (
    capture_rng_state,
    load_checkpoint,
    remove_checkpoints_after,
    resolve_resume,
    restore_rng_state,
    save_checkpoint,
)
from r1lab.config import at_least
from r1lab.grpo.trainer import GRPOTrainer, StepOutput
from r1lab.profile import profile_step
from r1lab.trace.curves import plot_curves
from r1lab.trace.metrics import MetricsLog
from r1lab.trace.progress import Progress
from r1lab.trace.recorder import RUN_FORMAT, prompt_text, remove_completions_after, write_completions
from r1lab.trace.reflection import reflection_metrics
from r1lab.types import RolloutGroup
from rewards.registry import reward_name

PROFILED_STEP = 2
"""The first step warms up."""

Evaluate = Callable[..., dict[str, float]]
"""(num_problems, num_samples, ban_reflection=False) -> results of one split."""


@dataclass
class RunConfig:
    """Where a run lives and how often it looks at itself."""

    output_dir: str = field(default="runs/r1_zero", metadata={"help": "The run directory."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A run or checkpoint directory to continue; 'true' = output_dir."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start anew in a directory that holds a run."})
    save_steps: int = field(default=20, metadata={"help": "Checkpoint every so many steps; the last step always."})
    save_total_limit: int = field(default=2, metadata={"help": "Keep this many newest checkpoints."})
    eval_steps: int = field(
        default=20, metadata={"help": "Evaluate on held-out problems every so many steps; 0 = never."}
    )
    eval_num_problems: int = field(default=60, metadata={"help": "Held-out problems a split, during the run."})
    eval_num_samples: int = field(default=4, metadata={"help": "Completions a problem, during the run."})
    final_num_problems: int = field(default=300, metadata={"help": "Held-out problems a split, for base and final."})
    final_num_samples: int = field(default=8, metadata={"help": "Completions a problem, for base and final."})
    show_sample_steps: int = field(default=5, metadata={"help": "Show the best and the worst completion this often."})
    profile: bool = field(
        default=False,
        metadata={"help": f"Profile step {PROFILED_STEP}: a trace for Perfetto and a table, in output_dir/profile."},
    )
    trace_groups: int = field(
        default=0,
        metadata={"help": "Record the completions of this many groups a step, spread over the step's; 0 = all."},
    )
    run_format: int = field(
        default=RUN_FORMAT, metadata={"help": "Of the run directory's files; recorded, nothing to set."}
    )
    log_with: str | None = field(default=None, metadata={"help": "accelerate tracker: tensorboard, wandb, trackio."})

    def __post_init__(self) -> None:
        for name in ("save_steps", "save_total_limit", "eval_num_problems", "eval_num_samples", "final_num_problems",
                     "final_num_samples", "show_sample_steps"):  # fmt: skip
            at_least(self, name, 1)
        if self.eval_steps < 0:
            raise ValueError(f"eval_steps={self.eval_steps}: use 0 for never, or a positive number")
        at_least(self, "trace_groups", 0)
        if self.run_format != RUN_FORMAT:
            raise ValueError(f"run_format={self.run_format}: this r1lab writes format {RUN_FORMAT}; leave it out")


class Interrupted(RuntimeError):
    """Ctrl-C: the run was saved; the message says how to go on."""


class Run:
    """Trains to the end, or to Ctrl-C, and leaves a complete run directory.

    Args:
        trainer: the GRPO trainer.
        config: see `RunConfig`.
        accelerator: the trainer's.
        tokenizer: saved beside the policy in every checkpoint.
        evaluators: held-out split -> its evaluation, which all processes call at the same time.
        settings: what `config.yaml` records.

    Raises:
        FileExistsError: `output_dir` already holds a run that is neither resumed nor overwritten.
        CheckpointError: the checkpoint to resume from cannot be used.
    """

    def __init__(
        self,
        trainer: GRPOTrainer,
        config: RunConfig,
        accelerator: Accelerator,
        tokenizer: Any,
        evaluators: dict[str, Evaluate],
        settings: dict[str, Any],
    ):
        self.trainer, self.config, self.accelerator = trainer, config, accelerator
        self.tokenizer, self.evaluators = tokenizer, evaluators
        self.directory = Path(config.output_dir)
        self.is_main = accelerator.is_main_process
        self.accuracy_name = reward_name(trainer.collector.reward_funcs[0])
        self.results: dict[str, Any] = {}
        self.seconds = 0.0
        resume = resolve_resume(_as_path_or_flag(config.resume_from_checkpoint), self.directory)
        is_own = resume is not None and resume.resolve().is_relative_to(self.directory.resolve())
        self._open_directory(settings, is_continued=is_own)
        self.metrics = MetricsLog(self.directory / "metrics.jsonl") if self.is_main else None
        if resume is not None:
            self._resume(resume)

    def _open_directory(self, settings: dict[str, Any], is_continued: bool) -> None:
        if (self.directory / "metrics.jsonl").exists() and not is_continued:
            if not self.config.overwrite_output_dir:
                raise FileExistsError(
                    f"output_dir {self.directory} already holds a run; add --resume_from_checkpoint true to continue "
                    "it, --overwrite_output_dir true to start anew, or choose another output_dir"
                )
            if self.is_main:
                (self.directory / "metrics.jsonl").unlink()
                remove_completions_after(self.directory, -1)
                remove_checkpoints_after(self.directory, -1)
        if self.is_main:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        self.accelerator.wait_for_everyone()

    def _resume(self, path: Path) -> None:
        checkpoint = load_checkpoint(path, policy=self.trainer.policy)
        self.trainer.load_state_dict(checkpoint.state["trainer"])
        self.results, self.seconds = checkpoint.state["results"], checkpoint.state["seconds"]
        if self.accelerator.num_processes == 1:
            restore_rng_state(checkpoint.state["rng"])
        if self.is_main:
            self.metrics.truncate_after(checkpoint.step)
            remove_completions_after(self.directory, checkpoint.step)
            remove_checkpoints_after(self.directory, checkpoint.step)

    def train(self) -> dict[str, Any]:
        """Runs to `max_steps`. Returns the results: base and final evaluation by split.

        Raises:
            Interrupted: Ctrl-C; a checkpoint was saved.
            TrainingDiverged, RewardError, CheckpointError: see there.
        """
        max_steps = self.trainer.config.max_steps
        started = time.perf_counter() - self.seconds
        with (
            Progress(max_steps, first_step=self.trainer.step_index, enabled=self.is_main) as self.progress,
            _interrupt_flag() as is_interrupted,
        ):
            if self.trainer.step_index == 0 and self.evaluators:
                self._evaluate_fully("base")
            while self.trainer.step_index < max_steps:
                output = self._step()
                self._record(output)
                self.seconds = time.perf_counter() - started
                step = self.trainer.step_index
                is_stopping = any(gather_object([is_interrupted()]))
                if is_stopping or step % self.config.save_steps == 0 or step == max_steps:
                    self._save()
                if is_stopping and step < max_steps:
                    raise Interrupted(f"stopped after step {step} and saved; continue with:\n  {_resume_command()}")
            if self.evaluators:
                self._evaluate_fully("final")
            self.seconds = time.perf_counter() - started
            self._finish()
        return self.results

    def _step(self) -> StepOutput:
        """One step of the trainer; the profiled one on the main process."""
        is_due = self.config.profile and self.is_main and self.trainer.step_index == PROFILED_STEP - 1
        if not is_due:
            return self.trainer.step()
        output, _ = profile_step(self.trainer, self.directory / "profile")
        self.progress.message((self.directory / "profile" / "profile.txt").read_text())
        return output

    def _record(self, output: StepOutput) -> None:
        step = self.trainer.step_index
        metrics = {"step": step, **output.metrics, **self._reflection(output.groups)}
        if self.config.eval_steps and step % self.config.eval_steps == 0 and self.evaluators:
            metrics |= self._evaluate(self.config.eval_num_problems, self.config.eval_num_samples)
        if self.is_main:
            self._log(metrics)
            self.progress.update(step, metrics)
            if step % self.config.show_sample_steps == 0:
                self._show_sample(step, output.groups)
        groups = gather_object(output.groups)
        if self.is_main:
            write_completions(self.directory, step, groups, max_groups=self.config.trace_groups or None)

    def _log(self, metrics: dict[str, float]) -> None:
        """One row to metrics.jsonl and, on the main process alone as accelerate has it, to the trackers."""
        self.metrics.append(metrics)
        if self.config.log_with:
            self.accelerator.log({name: value for name, value in metrics.items() if name != "step"}, metrics["step"])

    def _reflection(self, groups: list[RolloutGroup]) -> dict[str, float]:
        name = self.accuracy_name
        pairs = [(prompt_text(group.prompt), rollout) for group in groups for rollout in group.rollouts]
        rows = gather_object([(r.text, r.rewards.get(name) == 1.0, prompt) for prompt, r in pairs])
        return reflection_metrics(*zip(*rows, strict=True)) if rows else {}

    def _show_sample(self, step: int, groups: list[RolloutGroup]) -> None:
        rollouts = sorted(
            (r for group in groups for r in group.rollouts if r.reward == r.reward), key=lambda r: r.reward
        )
        if rollouts:
            worst, best = rollouts[0], rollouts[-1]
            self.progress.show_sample(step, best=(best.text, best.reward), worst=(worst.text, worst.reward))

    def _evaluate(self, num_problems: int, num_samples: int) -> dict[str, float]:
        return _flat(self._evaluate_splits(num_problems, num_samples))

    def _evaluate_splits(self, *sizes: int, **options: bool) -> dict[str, dict[str, float]]:
        return {split: evaluate(*sizes, **options) for split, evaluate in self.evaluators.items()}

    def _evaluate_fully(self, when: str) -> None:
        sizes = self.config.final_num_problems, self.config.final_num_samples
        self.progress.message(f"evaluating the {when} policy on {', '.join(self.evaluators)} ...")
        self.results[when] = self._evaluate_splits(*sizes)
        if when == "base" and self.is_main:
            self._log({"step": 0, **_flat(self.results["base"])})
        if when == "final":
            self.results["final_reflection_banned"] = self._evaluate_splits(*sizes, ban_reflection=True)

    def _save(self) -> None:
        trainer_state = self.trainer.state_dict()  # of all processes' shares
        if self.is_main:
            state = {
                "trainer": trainer_state,
                "rng": capture_rng_state(),
                "results": self.results,
                "seconds": self.seconds,
            }
            path = save_checkpoint(
                self.directory,
                step=self.trainer.step_index,
                policy=self.trainer.policy,
                tokenizer=self.tokenizer,
                state=state,
                keep_last=self.config.save_total_limit,
            )
            self.progress.message(f"saved {path}")
        self.accelerator.wait_for_everyone()

    def _finish(self) -> None:
        if not self.is_main:
            return
        facts = {
            "seconds": round(self.seconds, 1),
            "steps": self.trainer.step_index,
            "seed": self.trainer.config.seed,
            "command": shlex.join(sys.argv),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        }
        (self.directory / "results.json").write_text(json.dumps(facts | self.results, indent=2) + "\n")
        plot_curves(self.directory, self.directory / "curves.png", self.directory.name)
        self.metrics.close()


def _flat(results: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"eval/{split}/{name}": value for split, result in results.items() for name, value in result.items()}


def _as_path_or_flag(value: str | None) -> str | bool | None:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _resume_command() -> str:
    # Of an option given twice the last one counts, so an earlier --resume_from_checkpoint may stay.
    again = " --resume_from_checkpoint true"
    return f"accelerate launch {shlex.join(sys.argv).removesuffix(again)}{again}"


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag, read between steps; the second one interrupts at once."""
    received = []

    def handle(signum, frame):
        received.append(signum)
        signal.signal(signal.SIGINT, previous)
        print("\nfinishing this step, then saving; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
