"""Decoding with drafts of the multi-token-prediction module beside decoding without, and how often drafts are accepted.

    python tests/bench/bench_speculative.py speed DIR [--batch 1 2 4 8 16] [--drafts 1 2] [--num_problems 9] [--core 1]
    python tests/bench/bench_speculative.py acceptance DIR [--task pick_two] [--num_problems 60] [--write]

DIR: a checkpoint with a module (recipes/pretrain.py). speed: groups of 16 completions of held-out prompts, B at a time,
at temperature 1 and the same seeds, so that both sides write the very same tokens; tokens a second of the process's CPU
time, one thread. acceptance: of the drafts in completions of held-out problems, sampled and greedy; beside it what
rejection sampling would accept there, and the bar.
"""

import argparse
from functools import partial

import torch
from sides import add_options, interleave, pin, report, row, timed

from r1lab.kernels.reference.speculative_step import acceptance
from r1lab.loading import EVAL_SEED, load_policy
from r1lab.model import mtp_hidden_states
from r1lab.rollout import RolloutEngine, SamplingParams
from r1lab.tasks import TASKS, encode_prompts, load_task

MUST_SPEED = {1: 1.3, 2: 1.3, 4: 1.3}
MUST_ACCEPTANCE = 0.85


def held_out(task: str, tokenizer, num_problems: int) -> list[list[int]]:
    """Prompts of every difficulty, as many of each."""
    sizes = [num_problems // len(TASKS[task])] * len(TASKS[task])
    rows = [load_task(task, "test", size, EVAL_SEED, level) for level, size in zip(TASKS[task], sizes, strict=True)]
    return [prompt.token_ids for part in rows for prompt in encode_prompts(part, tokenizer, max_length=512)]


def build_engine(policy, tokenizer, num_drafts: int = 0, max_batch: int = 512) -> RolloutEngine:
    """That drafts at every batch size, if at all."""
    engine = RolloutEngine(policy, eos_token_id=tokenizer.eos_token_id, num_threads=1, max_batch=max_batch,
                           num_speculative_tokens=num_drafts)  # fmt: skip
    engine.drafting.always = True
    return engine


def speed_of(engine: RolloutEngine, prompts: list[list[int]], params: SamplingParams) -> dict[str, float]:
    """Tokens a second, by clock."""
    groups = []
    seconds = timed(lambda: groups.extend(engine.generate(prompts, params)))
    num_tokens = sum(len(completion.token_ids) for group in groups for completion in group)
    return {clock: num_tokens / value for clock, value in seconds.items()}


def measure_speed(policy, tokenizer, options) -> list[dict]:
    rows = []
    prompts = held_out(options.task, tokenizer, options.num_problems)
    params = SamplingParams(n=16, max_tokens=options.max_tokens, seed=1)  # a group reads its prompt once
    for batch in options.batch:
        sides = {
            str(n): partial(speed_of, build_engine(policy, tokenizer, n, batch), prompts, params)
            for n in (0, *options.drafts)
        }
        rate = {name: result["cpu"] for name, result in interleave(sides, options.rounds).items()}
        for n in options.drafts:
            must = MUST_SPEED.get(batch, 0) if n == 1 else 0
            name = f"decode, drafts of {n} vs none, tiny, B={batch}"
            rows.append(row(name, rate[str(n)], rate["0"], must, "tokens/s of CPU"))
    return rows


@torch.no_grad()
def teacher_forced(policy, prompts, groups, temperature: float) -> tuple[float, float]:
    """(expected acceptance, that of rejection sampling), over the completions' tokens from the second on."""
    shared, rejection = [], []
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            ids = torch.tensor([prompt + completion.token_ids])
            hidden = policy.hidden_states(ids)
            states, _ = mtp_hidden_states(policy, hidden, ids)
            first = len(prompt)
            logits, drafts = policy.lm_head(hidden)[0, first:-1], policy.lm_head(states)[0, first - 1 : -1]
            shared.append(acceptance(logits, drafts, temperature))
            rejection.append(acceptance(logits, drafts, temperature, by_rejection=True))
    return torch.cat(shared).mean().item(), torch.cat(rejection).mean().item()


def measure_acceptance(policy, tokenizer, options) -> list[dict]:
    prompts, rows = held_out(options.task, tokenizer, options.num_problems), []
    for temperature in (1.0, 0.0):
        engine = build_engine(policy, tokenizer, 1)
        groups = engine.generate(
            prompts, SamplingParams(max_tokens=options.max_tokens, temperature=temperature, seed=1)
        )
        measured = engine.drafting.accepted / engine.drafting.drafted
        expected, rejection = teacher_forced(policy, prompts, groups, temperature)
        print(f"temperature {temperature}: {engine.drafting.drafted} drafts, {measured:.3f} accepted; expected "
              f"{expected:.3f}, by rejection sampling {rejection:.3f}")  # fmt: skip
        how = "greedy" if temperature == 0 else "sampled"
        rows.append(row(f"acceptance of the second token, {options.task}, {how}", measured, MUST_ACCEPTANCE, 1.0,
                        "share of drafts", by_rejection=round(rejection, 3)))  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("what", choices=["speed", "acceptance"])
    parser.add_argument("policy", help="checkpoint directory with a module")
    parser.add_argument("--task", default="pick_two", choices=list(TASKS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--drafts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--num_problems", type=int, default=60)
    parser.add_argument("--max_tokens", type=int, default=160)
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    policy, tokenizer = load_policy(options.policy, with_mtp=True)
    measure = measure_speed if options.what == "speed" else measure_acceptance
    report(measure(policy, tokenizer, options), options.write)


if __name__ == "__main__":
    main()
