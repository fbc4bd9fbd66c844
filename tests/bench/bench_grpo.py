"""A full GRPO step (sample, score, update) beside TRL's GRPOTrainer, from the embedded base, on one thread in fp32.

    python tests/bench/bench_grpo.py time --lengths fixed natural [--micro_batch 16] [--rounds 2] [--core 1] [--write]
    python tests/bench/bench_grpo.py memory [--write]
    python tests/bench/bench_grpo.py cores [--rounds 5] [--write]

16 prompts x 8 completions of up to 96 tokens. fixed: nobody may end a completion early, and all of them train: the
reward is a share of characters, which differs within every group. natural: Countdown and its reward, completions of
the base about a third of the limit long, groups without a right one as they come. Each trainer samples for itself, so
the tokens differ and their number is printed. TRL runs transformers' model with the same weights, no gradient
checkpointing, dropout or logging; `--micro_batch` is its per_device_train_batch_size. time: CPU seconds a step, rounds
interleaved through a callback of TRL's. memory: peak resident memory of a process that makes one step, a process a
side. cores: our step on two threads and on one, wall seconds, which need a quiet machine.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from statistics import median

import torch
from accelerate import Accelerator
from models import BASE, load_pair
from sides import CLOCKS, add_options, interleave, pin, report, row, timed
from transformers import AutoTokenizer, TrainerCallback

from r1lab.grpo import GRPOConfig, GRPOTrainer
from r1lab.rollout import RolloutEngine, SamplingParams
from r1lab.tasks import encode_prompts, load_task
from rewards import load_reward

PROMPTS, GROUP, LIMIT = 16, 8, 96
MUST_TIME = {"fixed": 3.5, "natural": 8}
MUST_MEMORY = {128: 4, 16: 1.6}


def odd_digits_reward(completions, **columns):
    """Share of the characters that are odd digits: no two completions of a group are likely to get the same."""
    return [sum(character in "13579" for character in text) / max(1, len(text)) for text in completions]


def reward_of(lengths: str):
    return odd_digits_reward if lengths == "fixed" else load_reward("countdown")


@dataclass
class OurStep:
    """Our trainer; calling it makes a step and returns its seconds and completion tokens."""

    policy: torch.nn.Module
    lengths: str
    shape: tuple[int, int, int] = (PROMPTS, GROUP, LIMIT)
    max_tokens_per_batch: int = GRPOConfig().max_tokens_per_batch
    trainer: GRPOTrainer = field(init=False)

    def __post_init__(self):
        num_prompts, group, limit = self.shape
        tokenizer = AutoTokenizer.from_pretrained(BASE)
        config = GRPOConfig(num_generations=group, generation_batch_size=num_prompts * group, warmup_steps=0,
                            max_completion_length=limit, lr_scheduler_type="constant", max_steps=1000,
                            max_tokens_per_batch=self.max_tokens_per_batch)  # fmt: skip
        is_fixed = self.lengths == "fixed"
        engine = RolloutEngine(self.policy, eos_token_id=[] if is_fixed else tokenizer.eos_token_id)
        params = SamplingParams(n=group, max_tokens=limit, record_routing=True)
        self.trainer = GRPOTrainer(
            self.policy,
            sample=lambda prompt_ids, seeds: engine.generate(prompt_ids, params, seeds=seeds),
            decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            reward_funcs=[reward_of(self.lengths)],
            prompts=encode_prompts(load_task("countdown", "train", 256, 0), tokenizer, max_length=256),
            pad_token_id=0,
            config=config,
            accelerator=Accelerator(cpu=True),
        )

    def __call__(self) -> dict[str, float]:
        outputs = []
        seconds = timed(lambda: outputs.append(self.trainer.step()))
        return seconds | {"length": outputs[0].metrics["completions/mean_length"]}


class Clock(TrainerCallback):
    """Times each of TRL's steps, and lets another side make one in between."""

    def __init__(self, between=lambda: None):
        self.between, self.seconds = between, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.running = timed_from_here()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(self.running())
        self.between()


def timed_from_here():
    """-> function that says the seconds since now."""
    starts = {name: clock() for name, clock in CLOCKS.items()}
    return lambda: {name: clock() - starts[name] for name, clock in CLOCKS.items()}


def build_trl(model, lengths: str, micro_batch: int, steps: int, clock: Clock, shape=(PROMPTS, GROUP, LIMIT)):
    """TRL's trainer of the same task."""
    from trl import GRPOConfig as TRLConfig  # not in the process whose memory is ours
    from trl import GRPOTrainer as TRLTrainer

    num_prompts, group, limit = shape
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    total = num_prompts * group
    config = TRLConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to=[], save_strategy="no", max_steps=steps,
        logging_strategy="no", disable_tqdm=True, per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=total // micro_batch, num_generations=group, max_completion_length=limit,
        learning_rate=1e-6, beta=0.0, temperature=1.0, gradient_checkpointing=False, disable_dropout=True,
        generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id]} if lengths == "fixed" else None,
    )  # fmt: skip
    return TRLTrainer(
        model=model,
        reward_funcs=reward_of(lengths),
        args=config,
        train_dataset=load_task("countdown", "train", 256, 0),
        processing_class=tokenizer,
        callbacks=[clock],
    )


def mean_length(trainer) -> float:
    name = "completions/mean_length"
    values = [float(entry[name]) for entry in trainer.state.log_history if name in entry]
    return sum(values) / len(values)


def compare_time(lengths: str, options) -> list[dict]:
    ours, theirs = load_pair()
    theirs.set_experts_implementation(options.experts)
    mine: list[dict[str, float]] = []
    step = OurStep(ours, lengths)

    def between():
        mine.append(step())
        print(f"  {lengths} round {len(mine) - 1}: ours {mine[-1]}, TRL {clock.seconds[-1]}", flush=True)

    clock = Clock(between)
    warm_up = int(options.rounds > 1)  # half a minute of work hardly has a beginning
    trainer = build_trl(theirs, lengths, options.micro_batch, options.rounds + warm_up, clock)
    trainer.train()
    own_length = median(each["length"] for each in mine[warm_up:])
    print(f"  mean length: ours {own_length:.1f}, TRL {mean_length(trainer):.1f}", flush=True)
    seconds = [median(each["cpu"] for each in rounds[warm_up:]) for rounds in (mine, clock.seconds)]
    name = f"GRPO step vs TRL, tiny, {PROMPTS} x {GROUP}, {lengths} lengths, limit {LIMIT}"
    return [row(name, *seconds, MUST_TIME[lengths], "CPU seconds a step", is_less_better=True,
                setting=f"TRL micro-batch {options.micro_batch}, {options.experts} experts")]  # fmt: skip


def peak_memory(side: str, micro_batch: int) -> dict[str, float]:
    """MB of this process, before and at the peak of a step."""
    ours, theirs = load_pair()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if side == "ours":
        del theirs
        OurStep(ours, "fixed")()
    else:
        del ours
        build_trl(theirs, "fixed", micro_batch, 1, Clock()).train()
    return {"before": before, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def compare_memory(options) -> list[dict]:
    def measure(side: str, micro_batch: int) -> dict[str, float]:
        command = [sys.executable, __file__, "memory", "--side", side, "--micro_batch", str(micro_batch)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        print(f"  {side} {micro_batch}: {result['before']:.0f} MB before, {result['peak']:.0f} MB peak", flush=True)
        return result

    ours = measure("ours", 0)
    rows = []
    for micro_batch, must in MUST_MEMORY.items():
        theirs = measure("trl", micro_batch)
        name = f"of a GRPO step vs TRL, micro-batch {micro_batch}, 16 x 8, fixed 96 tokens"
        rows.append(row(f"peak memory {name}", ours["peak"], theirs["peak"], must, "MB resident", True))
        grown = [side["peak"] - side["before"] for side in (ours, theirs)]
        rows.append(row(f"peak memory above the loaded model {name}", *grown, must, "MB resident", True))
    return rows


def compare_cores(options) -> list[dict]:
    step = OurStep(load_pair()[0], "fixed")

    def run(num_threads: int) -> dict[str, float]:
        torch.set_num_threads(num_threads)
        return step()

    results = interleave({"two": lambda: run(2), "one": lambda: run(1)}, options.rounds)
    two, one = results["two"]["wall"], results["one"]["wall"]
    return [row("GRPO step on 2 cores vs 1, tiny, fixed 96 tokens", two, one, 1.7, "wall seconds", True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "memory", "cores"])
    add_options(parser)
    parser.add_argument("--lengths", nargs="+", choices=MUST_TIME, default=list(MUST_TIME))
    parser.add_argument("--micro_batch", type=int, default=16)
    parser.add_argument("--experts", default="grouped_mm", help="transformers' implementation")
    parser.add_argument("--side", choices=["ours", "trl"], help="measure this process's memory, for the parent")
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    if options.side:
        print(json.dumps(peak_memory(options.side, options.micro_batch)))
    elif options.what == "time":
        for lengths in options.lengths:
            report(compare_time(lengths, options), options.write)
    else:
        report((compare_memory if options.what == "memory" else compare_cores)(options), options.write)


if __name__ == "__main__":
    main()
