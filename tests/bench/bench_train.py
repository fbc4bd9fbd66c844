"""The training pass (logps of the completions, loss, backward) beside transformers' model on the same rows.

    python tests/bench/bench_train.py [--prompts 2] [--group 16] [--lengths equal ragged] [--core 1] [--write]

Same weights, same rows, same loss; "apart" is our model on rows that do not share their prompt. equal: prompts of 32
and completions of 96 tokens, so that transformers pads nothing; ragged: prompts of 16 and completions of 10 to 130
tokens, as the main job has them. transformers gets rows sorted by length, the head on the completion's columns only,
and the fastest of its experts' implementations. CPU seconds of the process, one thread, fp32; gradients are compared
first.
"""

import argparse
import random

import torch
from models import load_pair, random_prompts
from sides import add_options, interleave, pin, report, row, timed

from r1lab.grpo import policy_loss
from r1lab.grpo.batch import build_batches
from r1lab.grpo.logps import LogpsModel, completion_logps
from r1lab.types import Completion, Prompt, Rollout, RolloutGroup

LENGTHS = {"equal": (32, (96, 96)), "ragged": (16, (10, 130))}
"""Prompt, then shortest and longest completion."""
EXPERTS = ("eager", "grouped_mm")
"""transformers' ways to compute experts, without "batched_mm", which copies the weights for every token."""
MUST = 1.5


def make_groups(lengths: str, num_prompts: int, group: int, vocab_size: int) -> list[RolloutGroup]:
    """Random tokens, advantages of both signs."""
    prompt_length, bounds = LENGTHS[lengths]
    generator = random.Random(0)
    prompts = random_prompts(num_prompts, prompt_length, vocab_size)
    sizes = [[generator.randint(*bounds) for _ in range(group)] for _ in prompts]
    draw = generator.uniform
    tokens = [[random_prompts(1, size, vocab_size, seed=size)[0] for size in row_sizes] for row_sizes in sizes]
    return [
        RolloutGroup(
            Prompt("", prompt),
            [Rollout(Completion(ids, [-1.0] * len(ids), "stop"), "", advantage=draw(-1, 1)) for ids in rows],
        )
        for prompt, rows in zip(prompts, tokens, strict=True)
    ]


def build_pass(model: torch.nn.Module, groups: list[RolloutGroup], share_prompts: bool, max_tokens: int):
    """-> function that leaves the gradients of one pass in the model."""
    batches, totals = build_batches(
        groups, pad_token_id=0, max_tokens_per_batch=max_tokens, share_prompts=share_prompts
    )
    wrapped = LogpsModel(model.train())

    def run():
        model.zero_grad()
        for batch in batches:
            logps, _ = completion_logps(wrapped, batch)
            loss = policy_loss(logps, None, batch.advantages, batch.completion_mask,
                               num_items_in_batch=totals.num_tokens).loss  # fmt: skip
            loss.backward()

    return run


def largest_difference(ours: torch.nn.Module, theirs: torch.nn.Module) -> float:
    """Of two models' gradients, relative to the largest entry of each tensor."""
    peer = dict(theirs.named_parameters())
    pairs = [(p.grad, peer[name].grad) for name, p in ours.named_parameters()]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in pairs)


def compare(size: str, lengths: str, options) -> list[dict]:
    ours, theirs = load_pair(size)
    groups = make_groups(lengths, options.prompts, options.group, ours.config.vocab_size)
    num_tokens = sum(len(g.prompt.token_ids) + len(r.completion.token_ids) for g in groups for r in g.rollouts)
    peers = {}
    for experts in EXPERTS:
        run = build_pass(theirs, groups, False, options.max_tokens)
        theirs.set_experts_implementation(experts)
        peers[experts] = timed(run)["cpu"]
    experts = min(peers, key=peers.get)
    print("  transformers, CPU s: " + ", ".join(f"{name} {value:.2f}" for name, value in peers.items()), flush=True)
    theirs.set_experts_implementation(experts)
    shared, apart = (build_pass(ours, groups, share, options.max_tokens) for share in (True, False))
    peer = build_pass(theirs, groups, False, options.max_tokens)
    shared(), peer()
    print(f"  gradients within {largest_difference(ours, theirs):.1e} of transformers'", flush=True)
    results = interleave(
        {"ours": lambda: timed(shared), "apart": lambda: timed(apart), "transformers": lambda: timed(peer)},
        options.rounds,
    )
    rate = {name: num_tokens / result["cpu"] for name, result in results.items()}
    name = f"{size}, {options.prompts} x {options.group} {lengths} rows"
    return [
        row(f"training pass vs transformers, {name}", rate["ours"], rate["transformers"], MUST, "tokens/s of CPU",
            setting=f"{experts} experts"),
        row(f"training pass, prompts shared vs apart, {name}", rate["ours"], rate["apart"], 1, "tokens/s of CPU"),
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--size", choices=["tiny", "medium"], default="tiny")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--max_tokens", type=int, default=4096, help="of a micro-batch")
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    for lengths in options.lengths:
        report(compare(options.size, lengths, options), options.write)


if __name__ == "__main__":
    main()
