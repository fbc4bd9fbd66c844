"""What the rollout recorded beside what the training pass computes, token by token, on the embedded base.

    python tests/bench/bench_rollout_vs_train.py [--num_tokens 1000000] [--task pick_two countdown] [--core 1]
    python tests/bench/bench_rollout_vs_train.py --fp8 [--num_tokens 100000]

Groups are sampled as GRPO samples them (prompts of the tasks, ragged lengths, temperature 1), laid out in the trainer's
micro-batches (prompts shared, no padding) and passed through its training pass, forward only, without and with the
rollout's experts replayed. Printed for each: the sampled tokens, the difference of their log-probabilities in nats, and
the routing flips, the (token, MoE layer) pairs where the pass, left to itself, chooses another set of experts than the
rollout did; a prompt's tokens count once a micro-batch. A flip's margin is by how much the last chosen expert's score
is ahead of the next one's: flips of tiny margins are rounding, others a mistake.

Must, in fp32 and without replay: differences of at most 1e-5 and not one flip; the exit code is 1 otherwise. What is
above is compared with a pass in float64, which says how much of it is each side's rounding.
--fp8: both in FP8 (`r1lab.precision`), where a tie that the two round apart changes all that follows.
"""

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from models import BASE
from sides import pin

from r1lab.grpo.batch import build_batches
from r1lab.grpo.logps import LogpsModel, completion_logps
from r1lab.kernels import ops
from r1lab.loading import load_policy
from r1lab.model.moe import TopkGate
from r1lab.model.packing import build_packing
from r1lab.precision import enable_fp8
from r1lab.rollout import RolloutEngine, SamplingParams
from r1lab.tasks import TASKS, encode_prompts, load_task
from r1lab.types import Prompt, Rollout, RolloutGroup, TrainBatch

MUST_DIFFERENCE = 1e-5
GROUP = 16
PROMPTS_PER_STEP = 32
PROGRESS_TOKENS = 100_000


@dataclass
class Differences:
    """Over all tokens so far."""

    num_tokens: int = 0
    total: float = 0.0
    largest: float = 0.0
    over: list[tuple[list[int], float, float]] = field(default_factory=list)
    """(tokens up to the sampled one, the rollout's logp, training's) where they differ by more than MUST_DIFFERENCE."""
    num_flips: int = 0
    num_pairs: int = 0
    """(token, MoE layer) pairs whose routing was recorded."""
    largest_margin: float = 0.0
    """Of the flips."""

    def add(self, difference: torch.Tensor, is_flipped: torch.Tensor, margin: torch.Tensor) -> None:
        self.num_tokens += len(difference)
        self.total += difference.double().sum().item()
        self.largest = max(self.largest, difference.max().item())
        self.num_flips += int(is_flipped.sum())
        self.num_pairs += is_flipped.numel()
        self.largest_margin = max(self.largest_margin, margin[is_flipped].max().item() if is_flipped.any() else 0.0)

    def line(self, name: str) -> str:
        return (
            f"{name:<16} {self.num_tokens:>9,} tokens   |logp difference| mean {self.total / self.num_tokens:.2e} max "
            f"{self.largest:.2e} nats, {len(self.over):,} over {MUST_DIFFERENCE:g}   {self.num_flips:,} flips of "
            f"{self.num_pairs:,} ({100 * self.num_flips / self.num_pairs:.4f} %), margins to {self.largest_margin:.1e}"
        )


def sampled_groups(engine: RolloutEngine, prompts: list[Prompt], max_tokens: int, seed: int) -> list[RolloutGroup]:
    params = SamplingParams(n=GROUP, max_tokens=max_tokens, seed=seed, record_routing=True)
    completions = engine.generate([prompt.token_ids for prompt in prompts], params)
    return [
        RolloutGroup(prompt, [Rollout(completion, "", advantage=1.0) for completion in group])
        for prompt, group in zip(prompts, completions, strict=True)
    ]


@contextmanager
def own_choices(model: torch.nn.Module) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """What the policy's gates choose by themselves in the pass inside, replay or not: (experts [N, K], margin [N]) a
    layer."""
    chosen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(gate: TopkGate, _, output) -> None:
        logits, bias = output[0].detach(), gate.e_score_correction_bias
        settings = gate.n_group, gate.topk_group, gate.top_k, gate.norm_topk_prob, gate.routed_scaling_factor
        best = (logits.sigmoid() + bias).topk(gate.top_k + 1).values  # the base has one group of experts
        chosen.append((ops.moe_gate(logits, bias, *settings)[0], best[:, -2] - best[:, -1]))

    hooks = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, TopkGate)]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def compare(model: LogpsModel, batch: TrainBatch, is_replayed: bool, differences: Differences) -> None:
    """One micro-batch through the training pass."""
    with own_choices(model) as chosen:
        logps = completion_logps(model, batch if is_replayed else replace(batch, routing=None))[0].detach()
    packing = build_packing(batch.attention_mask, None, tuple(batch.input_ids.shape), batch.shared_lengths)
    routing = batch.routing.flatten(0, 1) if packing is None else packing.take(batch.routing).squeeze(0)
    own, margin = (torch.stack(parts, dim=1) for parts in zip(*chosen))
    is_flipped = (own.sort(-1).values != routing.long().sort(-1).values).any(-1)
    is_recorded = (routing >= 0).all(-1).all(-1)
    difference_BT = (logps - batch.rollout_logps).abs() * batch.completion_mask
    differences.add(difference_BT[batch.completion_mask], is_flipped[is_recorded], margin[is_recorded])
    for i, t in (difference_BT > MUST_DIFFERENCE).nonzero().tolist():
        tokens = batch.input_ids[i, : t + 2].tolist()
        differences.over.append((tokens, batch.rollout_logps[i, t].item(), logps[i, t].item()))


@torch.no_grad()
def distances_from_truth(policy: torch.nn.Module, over: list[tuple[list[int], float, float]]) -> str:
    truth, errors = copy.deepcopy(policy).double().eval(), []
    for tokens, *logps in over:
        expected = truth(torch.tensor([tokens[:-1]])).logits[0, -1].log_softmax(-1)[tokens[-1]].item()
        errors.append([abs(logp - expected) for logp in logps])
    mean, largest = torch.tensor(errors).mean(0).tolist(), torch.tensor(errors).amax(0).tolist()
    return (
        f"of those {len(over)} tokens, from a pass in float64: the rollout mean {mean[0]:.1e} max {largest[0]:.1e}, "
        f"training mean {mean[1]:.1e} max {largest[1]:.1e} nats"
    )


def measure(policy, tokenizer, options) -> dict[str, Differences]:
    engine = RolloutEngine(policy, eos_token_id=tokenizer.eos_token_id, num_threads=1)
    model = LogpsModel(policy)
    prompts = {task: encode_prompts(load_task(task, "train", options.num_problems, 0), tokenizer, max_length=512)
               for task in options.task}  # fmt: skip
    sides = {"without replay": False, "with replay": True}
    results = {name: Differences() for name in sides}
    step, start, reported = 0, time.perf_counter(), 0
    while results["without replay"].num_tokens < options.num_tokens:
        own = prompts[options.task[step % len(options.task)]]
        first = step // len(options.task) * PROMPTS_PER_STEP
        some = [own[(first + i) % len(own)] for i in range(PROMPTS_PER_STEP)]
        groups = sampled_groups(engine, some, options.max_tokens, seed=step)
        batches, _ = build_batches(
            groups, pad_token_id=tokenizer.pad_token_id, max_tokens_per_batch=options.max_tokens_per_batch,
            share_prompts=True, replay_routing=True,
        )  # fmt: skip
        model.train()
        for batch in batches:
            for name, is_replayed in sides.items():
                compare(model, batch, is_replayed, results[name])
        step += 1
        if results["without replay"].num_tokens - reported >= PROGRESS_TOKENS:
            reported = results["without replay"].num_tokens
            print(f"{time.perf_counter() - start:7.0f} s  {results['without replay'].line('so far')}", flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_tokens", type=int, default=1_000_000, help="sampled tokens, at least")
    parser.add_argument("--task", nargs="+", default=["pick_two", "countdown"], choices=list(TASKS))
    parser.add_argument("--num_problems", type=int, default=8192, help="distinct problems of each task")
    parser.add_argument("--max_tokens", type=int, default=256, help="longest completion")
    parser.add_argument("--max_tokens_per_batch", type=int, default=4096, help="tokens computed in a micro-batch")
    parser.add_argument("--fp8", action="store_true", help="rollouts and training pass in FP8")
    parser.add_argument("--core", type=int, default=None, help="pin this process to one core")
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    policy, tokenizer = load_policy(str(BASE))
    if options.fp8:
        enable_fp8(policy)
    results = measure(policy, tokenizer, options)
    for name, differences in results.items():
        print(differences.line(name))
    plain = results["without replay"]
    if not options.fp8 and plain.over:
        print(distances_from_truth(policy, plain.over))
    if not options.fp8 and (plain.largest > MUST_DIFFERENCE or plain.num_flips):
        sys.exit(f"rollout and training differ: at most {MUST_DIFFERENCE:g} nats and no flip are allowed")


if __name__ == "__main__":
    main()
