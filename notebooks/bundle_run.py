"""A finished run, reduced to what the notebooks read: `python notebooks/bundle_run.py RUN`.

Kept: `config.yaml`, `results.json` and `metrics.jsonl` as they are, and of some steps the completions of some groups,
whole, spread evenly over the step's (as `--trace_groups` does). Added as step 0: what the base writes for the prompts
kept of the last step, so that one prompt can be seen before and after. `r1lab.trace.load_run` reads the result.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet

from r1lab.grpo.score import score_groups
from r1lab.loading import load_policy
from r1lab.rollout import RolloutEngine, SamplingParams
from r1lab.tasks import encode_prompts, load_task
from r1lab.trace import Run, load_run, write_completions
from r1lab.trace.recorder import completions_files
from r1lab.types import Rollout, RolloutGroup
from rewards import load_reward

HERE = Path(__file__).resolve().parent
BASE = HERE.parent / "data" / "base"
BUNDLE = HERE / "pick_two_run"
NUM_STEPS = 6
MAX_BYTES = 1_500_000


def choose_steps(last: int, count: int) -> list[int]:
    """The first step, the last, and steps between them, closer together early, where RL moves fastest."""
    return sorted({1 + round((last - 1) * (i / (count - 1)) ** 2) for i in range(count)})


def choose_groups(step: pyarrow.Table, count: int) -> pyarrow.Table:
    """The rows of `count` whole groups, spread evenly over the step's."""
    groups = sorted(set(step["group"].to_pylist()))
    kept = {groups[turn * len(groups) // count] for turn in range(min(count, len(groups)))}
    return step.filter([group in kept for group in step["group"].to_pylist()])


def sample_base(run: Run, prompts: list[str]) -> list[RolloutGroup]:
    """The base's completions of prompts of the run, sampled and rewarded as in training; advantages stay 0.

    Raises:
        ValueError: a prompt is none of the run's training prompts.
    """
    config = run.config
    rows = load_task(config["task"], "train", config["num_train_problems"], config["seed"])
    places = {text: place for place, text in enumerate(rows["prompt"])}
    missing = [text for text in prompts if text not in places]
    if missing:
        raise ValueError(f"{missing[0]!r} is no training prompt of {run.path}: was it made by another version?")
    policy, tokenizer = load_policy(str(BASE))
    limit = config["max_completion_length"]
    encoded = encode_prompts(rows.select([places[text] for text in prompts]), tokenizer, max_length=1024 - limit)
    params = SamplingParams(n=config["num_generations"], max_tokens=limit, seed=config["seed"])
    engine = RolloutEngine(policy, eos_token_id=tokenizer.eos_token_id)
    completions = engine.generate([prompt.token_ids for prompt in encoded], params)
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    groups = [
        RolloutGroup(prompt, [Rollout(one, decode(one.token_ids)) for one in group])
        for prompt, group in zip(encoded, completions, strict=True)
    ]
    score_groups(groups, [load_reward(name) for name in config["reward_funcs"]], config["reward_weights"])
    return groups


def bundle(source: Path, target: Path, num_steps: int, num_groups: int) -> int:
    """Writes the bundle, in place of what is there. Returns its size in bytes."""
    run = load_run(source)
    if not (source / "results.json").is_file():
        raise ValueError(f"{source} has no results.json: the run has not finished")
    shutil.rmtree(target, ignore_errors=True)
    (target / "completions").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "results.json"):
        shutil.copyfile(source / name, target / name)
    files = dict(completions_files(source))
    steps = [step for step in choose_steps(max(files), num_steps) if step in files]
    for step in steps:
        kept = choose_groups(pyarrow.parquet.read_table(files[step]), num_groups)
        pyarrow.parquet.write_table(kept, target / "completions" / files[step].name, compression="zstd")
    prompts = list(dict.fromkeys(kept["prompt"].to_pylist()))
    write_completions(target, 0, sample_base(run, prompts))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.name}: steps 0 and {steps}, {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes are more than {MAX_BYTES}: keep fewer steps or groups")
    return size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--output_dir", type=Path, default=BUNDLE)
    parser.add_argument("--num_steps", type=int, default=NUM_STEPS)
    parser.add_argument("--num_groups", type=int, default=8, help="of each step")
    arguments = parser.parse_args()
    bundle(arguments.run, arguments.output_dir, arguments.num_steps, arguments.num_groups)
