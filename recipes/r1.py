r"""R1: four stages from a base model to a reasoning model that keeps its form (DeepSeek-R1, section 2.3).

    accelerate launch recipes/r1.py                                        # the embedded base: configs/r1.yaml
    accelerate launch recipes/r1.py --stages rl rejection final_rl         # leave the cold start out
    accelerate launch recipes/r1.py --model_name_or_path DIR --dataset_name FILE.jsonl \
        --cold_start_dataset_name TRACES.jsonl                             # your own model, problems and traces

1. cold_start: the base is fine-tuned on a few long chains of thought.
2. rl: GRPO as in r1_zero.py, with a reward for keeping to one language beside accuracy and format.
3. rejection: the policy of stage 2 writes several solutions of each problem; the right and readable ones (filters:
   `r1lab/reject.py`) fine-tune the base, not that policy.
4. final_rl: GRPO again, on problems of another draw. The paper adds general prompts and reward models of preference
   here; this recipe has rule-based rewards only.

Each stage has a directory in `output_dir` and marks it when finished, so the same command goes on where it was cut. A
stage that `--stages` does not name is left out, unless `output_dir` holds it finished: then it is built on.
"""

import json
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from r1_zero import RECIPES, ScriptArguments, build_accelerator, build_engine, run_clearly, train
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sft import SFTArguments, fine_tune
from trl import TrlParser

from r1lab.checkpoint import list_checkpoints
from r1lab.config import GRPOConfig, at_least
from r1lab.demonstrations import load_demonstrations
from r1lab.loading import load_policy, load_prompts
from r1lab.reject import KEPT, RejectConfig, Sample, count_verdicts, reject, rows_of
from r1lab.rollout import SamplingParams
from r1lab.run import RunConfig
from r1lab.stages import check_stages, read_marker, remove_stage, run_stage
from r1lab.tasks.cold_start import load_cold_start
from r1lab.types import Prompt
from rewards import load_reward

STAGES = ("cold_start", "rl", "rejection", "final_rl")
DEFAULT_CONFIG = RECIPES / "configs" / "r1.yaml"
PROMPTS_PER_CALL = 64
SEED_OF_REJECTION, SEED_OF_FINAL_RL = 1000, 2000
"""Added to the seed, so that later stages draw other problems than the first RL."""


@dataclass
class R1Arguments:
    """The stages, and what only they need.

    Raises:
        ValueError: a value is out of range; the message names it and the fix.
    """

    stages: list[str] = field(default_factory=lambda: list(STAGES), metadata={"help": f"Of {', '.join(STAGES)}."})
    cold_start_dataset_name: str | None = field(
        default=None, metadata={"help": "Traces (hub id, .jsonl, .parquet); default: made for the embedded task."}
    )
    num_cold_start: int = field(default=500, metadata={"help": "Made traces, each of another problem."})
    cold_start_num_epochs: int | None = field(default=None, metadata={"help": "Default: sft_num_epochs."})
    final_max_steps: int = field(default=30, metadata={"help": "Steps of the final RL; max_steps is the first RL's."})
    final_learning_rate: float | None = field(default=None, metadata={"help": "Default: learning_rate."})

    def __post_init__(self) -> None:
        check_stages(self.stages, STAGES)
        at_least(self, "final_max_steps", 1)
        if self.cold_start_num_epochs is not None:
            at_least(self, "cold_start_num_epochs", 1)


class StagedRecipe:
    """The settings of a recipe whose stages share one output directory; `args`: the recipe's own."""

    def __init__(
        self,
        script: ScriptArguments,
        run_config: RunConfig,
        config: GRPOConfig,
        args: Any,
        sft: SFTArguments,
        reject_config: RejectConfig,
    ):
        self.script, self.run_config, self.config, self.args = script, run_config, config, args
        self.sft, self.reject_config = sft, reject_config
        self.directory = Path(run_config.output_dir)


class R1(StagedRecipe):
    """The four stages over one output directory."""

    def run(self) -> dict[str, Any]:
        """Runs what is left of the named stages. Returns what `results.json` holds."""
        is_main = build_accelerator(self.run_config).is_main_process
        markers = {}
        for index, stage in enumerate(STAGES):
            is_named = stage in self.args.stages
            marker = read_marker(self.directory / stage)
            if is_named:
                self._say(is_main, f"stage {index + 1} of {len(STAGES)}, {stage}")
                marker, has_run = getattr(self, stage)(self._start(markers))
                self._say(is_main, f"{stage}: {'done' if has_run else 'was done'}, {marker['seconds']:.0f} s")
            if marker is not None:
                markers[stage] = marker
        results = self._results(markers)
        if is_main:
            (self.directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            print_evaluations(results["evaluations"])
        return results

    def cold_start(self, start: tuple[str, str]) -> tuple[dict, bool]:
        """Stage 1. `start`: the model, and how the marker names it."""
        args = self.args
        settings = {
            "traces": args.cold_start_dataset_name or f"{args.num_cold_start} of {self.script.task}",
            "num_epochs": args.cold_start_num_epochs,
            **self._sft_settings(),
        }
        directory = self.directory / "cold_start"
        return run_stage(
            directory,
            {"starts_from": self.script.model_name_or_path, **settings},
            lambda: self._fine_tune(self._cold_start_rows(), directory, args.cold_start_num_epochs),
        )

    def rl(self, start: tuple[str, str]) -> tuple[dict, bool]:
        """Stage 2."""
        return reinforce(self.directory / "rl", start, self.script, self.run_config, self.config)

    def rejection(self, start: tuple[str, str]) -> tuple[dict, bool]:
        """Stage 3."""
        directory = self.directory / "rejection"
        settings = {"starts_from": self.script.model_name_or_path, "sampled_from": start[1]}
        settings |= self._sft_settings() | asdict(self.reject_config)

        def work() -> dict[str, Any]:
            traces = sample_traces(directory / "samples", start, self.script, self.config, self.reject_config)
            return self._fine_tune(read_traces(directory / "samples"), directory) | {"filters": traces["filters"]}

        return run_stage(directory, settings, work)

    def final_rl(self, start: tuple[str, str]) -> tuple[dict, bool]:
        """Stage 4."""
        config = replace(
            self.config,
            max_steps=self.args.final_max_steps,
            learning_rate=self.args.final_learning_rate or self.config.learning_rate,
            seed=self.config.seed + SEED_OF_FINAL_RL,
        )
        return reinforce(self.directory / "final_rl", start, self.script, self.run_config, config)

    def _start(self, markers: dict[str, dict]) -> tuple[str, str]:
        """The model of the last stage there is, and its name for a marker: a stage run again is another start."""
        if not markers:
            return self.script.model_name_or_path, self.script.model_name_or_path
        stage, marker = list(markers.items())[-1]
        return str(self.directory / stage / marker["model"]), f"{stage}, finished {marker['finished']}"

    def _sft_settings(self) -> dict[str, Any]:
        sft = asdict(self.sft)
        del sft["sft_save_steps"]
        return sft | {"seed": self.config.seed, "routing_bias_speed": self.config.routing_bias_speed}

    def _fine_tune(self, rows: Dataset, directory: Path, num_epochs: int | None = None) -> dict[str, Any]:
        speed = self.config.routing_bias_speed
        return fine_tune(
            self.script.model_name_or_path, rows, directory, self.sft, seed=self.config.seed,
            routing_bias_speed=speed, num_epochs=num_epochs,
        )  # fmt: skip

    def _cold_start_rows(self) -> Dataset:
        name = self.args.cold_start_dataset_name
        if name is not None:
            return load_demonstrations(name, self.script, load_policy(self.script.model_name_or_path)[1])
        if self.script.dataset_name is not None:
            raise ValueError(
                f"there are no made traces for dataset_name={self.script.dataset_name!r}: give some with "
                "--cold_start_dataset_name, or leave the stage out: --stages rl rejection final_rl"
            )
        return load_cold_start(self.script.task, self.args.num_cold_start, self.config.seed)

    def _results(self, markers: dict[str, dict]) -> dict[str, Any]:
        """The markers and, by stage, the held-out evaluation of its model: RL evaluates where it starts and ends."""
        evaluations: dict[str, Any] = {}
        for stage in ("rl", "final_rl"):
            path = self.directory / stage / "results.json"
            if stage not in markers or not path.exists():
                continue
            results = json.loads(path.read_text())
            start = markers[stage]["settings"]["starts_from"].partition(",")[0]
            for name, when in ((start if start in STAGES else "base", "base"), (stage, "final")):
                if when in results:
                    evaluations.setdefault(name, results[when])
        return {
            "seed": self.config.seed,
            "seconds": round(sum(marker["seconds"] for marker in markers.values()), 1),
            "command": shlex.join(sys.argv),
            "stages": markers,
            "evaluations": evaluations,
        }

    def _say(self, is_main: bool, text: str) -> None:
        if is_main:
            print(f"== {text}", flush=True)


# ------------------------------------------------------------------------------- stages that distill.py has too


def reinforce(
    directory: Path, start: tuple[str, str], script: ScriptArguments, run_config: RunConfig, config: GRPOConfig
) -> tuple[dict, bool]:
    """GRPO from a model, as in r1_zero.py, in `directory`; a run that was cut short goes on from its checkpoint.

    Args:
        start: the model, and how the marker names it.

    Returns: as `run_stage`.
    """

    def work() -> dict[str, Any]:
        is_begun = bool(list_checkpoints(directory))
        run = replace(
            run_config,
            output_dir=str(directory),
            resume_from_checkpoint="true" if is_begun else None,
            overwrite_output_dir=not is_begun,
        )
        train(replace(script, model_name_or_path=start[0]), run, config, build_accelerator(run))
        return {"model": str(list_checkpoints(directory)[-1].relative_to(directory))}

    return run_stage(directory, {"starts_from": start[1], **_task_settings(script), **asdict(config)}, work)


def sample_traces(
    directory: Path,
    start: tuple[str, str],
    script: ScriptArguments,
    config: GRPOConfig,
    reject_config: RejectConfig,
) -> dict[str, Any]:
    """Rejection sampling from a model on training problems; leaves `samples.parquet` (every completion and what it
    was refused for) and `traces.jsonl` (what is kept: `prompt`, `completion` and the problem's columns).

    Returns: the marker; `filters` counts how many were sampled, refused by each filter, and kept.

    Raises:
        ValueError: nothing was kept; the counts are in the message.
    """

    def work() -> dict[str, Any]:
        samples = _sample(start[0], script, config, reject_config)
        counts = count_verdicts(samples)
        if Accelerator().is_main_process:
            _print_counts(counts)
        if not counts[KEPT]:
            raise ValueError(f"rejection sampling from {start[0]} kept nothing: {json.dumps(counts)}")
        if Accelerator().is_main_process:
            _write_samples(directory, rows_of(samples))
        return {"filters": counts}

    settings = {"sampled_from": start[1], **_task_settings(script), **asdict(reject_config)}
    settings |= {"reward": config.reward_funcs[0], "max_completion_length": config.max_completion_length}
    return run_stage(directory, settings | {"seed": config.seed}, work)[0]


def read_traces(directory: Path) -> Dataset:
    """What `sample_traces` kept."""
    rows = [json.loads(line) for line in (directory / "traces.jsonl").open()]
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


def _sample(model: str, script: ScriptArguments, config: GRPOConfig, reject_config: RejectConfig) -> list[Sample]:
    accelerator = Accelerator()
    policy, tokenizer = load_policy(model)
    policy.to(accelerator.device)
    engine = build_engine(policy, tokenizer)
    seed = config.seed + SEED_OF_REJECTION
    wanted = replace(script, num_train_problems=reject_config.reject_num_problems, eval_dataset_name=None)
    prompts, _ = load_prompts(wanted, tokenizer, policy.config, replace(config, seed=seed), 1)
    random.Random(seed).shuffle(prompts)
    prompts = prompts[: reject_config.reject_num_problems]
    params = SamplingParams(
        n=reject_config.reject_num_samples,
        max_tokens=config.max_completion_length,
        temperature=reject_config.reject_temperature,
        top_p=reject_config.reject_top_p,
    )
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    reward = load_reward(config.reward_funcs[0])
    own = list(enumerate(prompts))[accelerator.process_index :: accelerator.num_processes]
    samples = []
    for part in _chunks(own, "sampling solutions", is_shown=accelerator.is_main_process):
        seeds = [[(seed << 32) + index * params.n + j for j in range(params.n)] for index, _ in part]
        chunk = [prompt for _, prompt in part]
        completions = engine.generate([prompt.token_ids for prompt in chunk], params, seeds=seeds)
        samples += reject(chunk, completions, decode, reward, reject_config)
    return gather_object(samples)


def _chunks(prompts: Sequence[tuple[int, Prompt]], title: str, is_shown: bool):
    starts = range(0, len(prompts), PROMPTS_PER_CALL)
    for start in track(starts, description=title, console=Console(stderr=True), disable=not is_shown):
        yield prompts[start : start + PROMPTS_PER_CALL]


def _write_samples(directory: Path, rows: list[dict[str, Any]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(directory / "samples.parquet")
    kept = [{name: value for name, value in row.items() if name != "verdict"} for row in rows if row["verdict"] == KEPT]
    (directory / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


def _task_settings(script: ScriptArguments) -> dict[str, Any]:
    names = ("task", "dataset_name", "dataset_config", "dataset_train_split", "prompt_column", "solution_column",
             "system_prompt", "num_train_problems")  # fmt: skip
    return {name: getattr(script, name) for name in names}


# ------------------------------------------------------------------------------------------------------ what is shown


def _print_counts(counts: dict[str, int]) -> None:
    table = Table(title="rejection sampling")
    table.add_column("completions")
    table.add_column("", justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    Console().print(table)


def print_evaluations(evaluations: dict[str, dict[str, dict]]) -> None:
    """One row a model, one column of held-out accuracy a split."""
    if not evaluations:
        return
    splits = list(next(iter(evaluations.values())))
    table = Table(title="held-out accuracy, sampled (well formed, mean length)")
    for name in ("after", *splits):
        table.add_column(name, justify="left" if name == "after" else "right")
    for name, results in evaluations.items():
        cells = [f"{r['accuracy']:.1%} ({r['format']:.0%}, {r['mean_length']:.0f})" for r in results.values()]
        table.add_row(name, *cells)
    Console().print(table)


# ------------------------------------------------------------------------------------------------------- command line


def check_resume(run_config: RunConfig) -> None:
    """Raises ValueError for a `resume_from_checkpoint` that names a place."""
    if (run_config.resume_from_checkpoint or "true").lower() != "true":
        raise ValueError(
            f"resume_from_checkpoint={run_config.resume_from_checkpoint!r}: the stages of output_dir resume by "
            "themselves; leave it out"
        )


def main(script, run_config, config, args, sft, reject_config) -> None:
    """Runs the stages; see the module's docstring."""
    check_resume(run_config)
    directory = Path(run_config.output_dir)
    if (directory / "metrics.jsonl").exists():
        raise FileExistsError(f"output_dir {directory} holds a run of r1_zero.py; choose another one")
    if run_config.overwrite_output_dir and run_config.resume_from_checkpoint is None:
        with Accelerator().main_process_first():
            for stage in args.stages:
                remove_stage(directory / stage)
    R1(script, run_config, config, args, sft, reject_config).run()
    Accelerator().end_training()


def parse_arguments(arguments: list[str]) -> tuple:
    """The settings; the embedded default's where no config, model or dataset is named."""
    named = {argument.partition("=")[0] for argument in arguments}
    if not named & {"--config", "--model_name_or_path", "--dataset_name"}:
        arguments = ["--config", str(DEFAULT_CONFIG), *arguments]
    classes = (ScriptArguments, RunConfig, GRPOConfig, R1Arguments, SFTArguments, RejectConfig)
    return TrlParser(classes, allow_abbrev=False).parse_args_and_config(arguments)


if __name__ == "__main__":
    run_clearly(lambda: main(*parse_arguments(sys.argv[1:])))
