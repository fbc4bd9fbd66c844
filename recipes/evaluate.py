"""Evaluate a checkpoint, or any causal language model, on held-out problems; compare and draw what came out.

    python recipes/evaluate.py --model_name_or_path runs/r1_zero/checkpoints/step_00100 --output_file final.json
    python recipes/evaluate.py --model_name_or_path DIR --task pick_two countdown --protocol r1
    python recipes/evaluate.py --model_name_or_path DIR_OR_HUB_ID --task gsm8k/test.jsonl HumanEval.jsonl.gz
    python recipes/evaluate.py --model_name_or_path DIR_OR_HUB_ID --task openai/gsm8k --dataset_config main
    python recipes/evaluate.py compare base.json final.json
    python recipes/evaluate.py plot base.json final.json --output pass_at_k.png

A task is an embedded one, or a dataset: mathematics (GSM8K, MATH: a problem and its solution) or programs (HumanEval:
prompt, test and entry_point; run in the sandbox). Sampled and greedy accuracy, pass@k, maj@k, format and reflection,
with 95 % intervals (bootstrap over problems), by task and difficulty, as a table and (`--output_file`) as JSON with
every problem's outcomes. `--protocol r1` samples as DeepSeek-R1's evaluations do: 64 completions a problem at
temperature 0.6, top-p 0.95 (arXiv:2501.12948, section 3); give it room with `--max_completion_length`.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial

from r1_zero import BASE, ScriptArguments, build_engine
from trl import TrlParser

from r1lab.config import at_least
from r1lab.evaluate import (
    Evaluation,
    build_generate,
    compare_evaluations,
    judge_split,
    load_evaluation,
    load_problems,
    plot_pass_at_k,
    reflection_token_ids,
    write_evaluation,
)
from r1lab.evaluate.problems import choose_reward
from r1lab.evaluate.store import summaries
from r1lab.loading import load_policy
from r1lab.report import print_comparison, print_results
from r1lab.tasks import TASKS, encode_prompts
from rewards import load_reward

PROTOCOLS = {"plain": (1.0, 1.0, 8), "r1": (0.6, 0.95, 64)}
"""Name -> (temperature, top-p, completions a problem)."""


@dataclass
class EvaluateConfig:
    """What to evaluate, on what, and how."""

    model_name_or_path: str = field(default=str(BASE), metadata={"help": "Checkpoint directory, .gguf file or hub id."})
    task: list[str] = field(
        default_factory=lambda: ["pick_two"],
        metadata={"help": f"Embedded tasks ({', '.join(TASKS)}), hub ids, or .jsonl / .parquet files."},
    )
    reward: str = field(
        default="auto", metadata={"help": "The reward whose 1 means right, by name or path; auto: by the columns."}
    )
    protocol: str = field(default="plain", metadata={"help": f"Sampling: {', '.join(PROTOCOLS)}."})
    temperature: float | None = field(default=None, metadata={"help": "In place of the protocol's."})
    top_p: float | None = field(default=None, metadata={"help": "In place of the protocol's."})
    num_samples: int | None = field(default=None, metadata={"help": "Completions a problem; default the protocol's."})
    num_problems: int = field(default=300, metadata={"help": "Held-out problems a split, at most."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion, in tokens."})
    ban_reflection: bool = field(default=False, metadata={"help": "Never sample a reflective word."})
    output_file: str | None = field(default=None, metadata={"help": "Where the results go as JSON."})
    keep_completions: bool = field(default=False, metadata={"help": "Completions in the output file, too."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_split: str = field(default="test", metadata={"help": "Split of a hub dataset."})
    prompt_column: str | None = field(
        default=None, metadata={"help": "Column with the problem; default: prompt, question or problem."}
    )
    solution_column: str | None = field(
        default=None, metadata={"help": "Column with the answer; default: solution or answer."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message; default R1-Zero's."})

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol={self.protocol!r}: use one of {', '.join(PROTOCOLS)}")
        given = (self.temperature, self.top_p, self.num_samples)
        chosen = (preset if one is None else one for one, preset in zip(given, PROTOCOLS[self.protocol], strict=True))
        self.temperature, self.top_p, self.num_samples = chosen
        for name in ("num_problems", "num_samples", "max_completion_length"):
            at_least(self, name, 1)
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: must be positive; greedy decoding is done as well")


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Samples and judges every split."""
    policy, tokenizer = load_policy(config.model_name_or_path)
    script = ScriptArguments(
        dataset_config=config.dataset_config,
        dataset_train_split=config.dataset_split,
        prompt_column=config.prompt_column,
        solution_column=config.solution_column,
        system_prompt=config.system_prompt,
    )
    problems = load_problems(config.task, config.num_problems, script, tokenizer)
    context = getattr(policy.config, "max_position_embeddings", None) or 1 << 30
    if config.max_completion_length >= context:
        raise ValueError(
            f"max_completion_length={config.max_completion_length} fills the model's context of {context} tokens; "
            "lower it to leave room for the prompt"
        )
    generate = build_generate(
        build_engine(policy, tokenizer),
        max_tokens=config.max_completion_length,
        top_p=config.top_p,
        banned_token_ids=reflection_token_ids(tokenizer) if config.ban_reflection else (),
    )
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    evaluation = Evaluation(asdict(config))
    for split, rows in problems.items():
        reward = load_reward(choose_reward(rows) if config.reward == "auto" else config.reward)
        prompts = encode_prompts(rows, tokenizer, max_length=context - config.max_completion_length)
        samples = {"num_samples": config.num_samples, "temperature": config.temperature}
        watch = partial(_progress_bar, what=split)
        evaluation.splits[split] = judge_split(prompts, generate, decode, reward, **samples, watch=watch)
    return evaluation


def _progress_bar(items: Iterable, count: int, what: str) -> Iterable:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, what, total=count, console=console, transient=True, disable=not console.is_terminal)


def main(config: EvaluateConfig) -> None:
    evaluation = evaluate(config)
    results, intervals = summaries(evaluation)
    print_results({"final": results}, intervals={"final": intervals})
    if config.output_file:
        write_evaluation(config.output_file, evaluation, results, intervals, keep_text=config.keep_completions)


def compare(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="evaluate.py compare", description="Second run against first, paired.")
    parser.add_argument("first", help="JSON of the first evaluation")
    parser.add_argument("second", help="JSON of the second, on the same problems")
    options = parser.parse_args(arguments)
    print_comparison(compare_evaluations(load_evaluation(options.first), load_evaluation(options.second)))


def plot(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="evaluate.py plot", description="pass@k over k, and over tokens.")
    parser.add_argument("files", nargs="+", help="JSON of evaluations on the same problems, base first")
    parser.add_argument("--labels", nargs="+", help="one a file (default: the files' names)")
    parser.add_argument("--output", default="pass_at_k.png", help="the picture (default: %(default)s)")
    parser.add_argument("--title", default="")
    options = parser.parse_args(arguments)
    labels = options.labels or [file.rpartition("/")[2].removesuffix(".json") for file in options.files]
    evaluations = [load_evaluation(file) for file in options.files]
    print(plot_pass_at_k(evaluations, labels, options.output, title=options.title))


def run_command(arguments: list[str]) -> None:
    """The recipe from its command line; a mistake ends it with one clear line and exit code 1."""
    commands = {"compare": compare, "plot": plot}
    try:
        if arguments and arguments[0] in commands:
            commands[arguments[0]](arguments[1:])
        else:
            main(TrlParser(EvaluateConfig, allow_abbrev=False).parse_args_and_config(arguments)[0])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run_command(sys.argv[1:])
