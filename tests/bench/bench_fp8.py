"""FP8 beside fp32: the loss of a pretraining, logps on the embedded base, bytes of weights, activations and caches.

    python tests/bench/bench_fp8.py pretrain --side fp8 --seed 0 --output fp8-0.json [--num_steps 1100]
    python tests/bench/bench_fp8.py compare *.json [--picture errors.png]
    python tests/bench/bench_fp8.py grpo RUN_DIR ... [--picture curves.png]
    python tests/bench/bench_fp8.py drift [--num_documents 64]
    python tests/bench/bench_fp8.py memory

pretrain: the recipe's pretraining, its schedule stretched over num_steps. The sides of a seed start from the same
weights and see the same batches: fp32, FP8 and, to see how far chance alone drives two runs apart, fp32 from weights
moved by 1e-6 of themselves. --init_from data/base --learning_rate_share 0.1 goes on from a trained policy, which
leaves chance less to drive apart. compare: the relative error of the training loss against the fp32 run of the same
seed, smoothed as in V3's appendix B.1 (exponential moving average, 0.9), and of the loss on held-out documents. V3
reports less than 0.25 % for models of 16 and 230 billion parameters. grpo: the curves and results of runs of
recipes/r1_zero.py with and without --fp8 true.
"""

import argparse
import copy
import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from models import BASE
from torch.optim.lr_scheduler import LambdaLR

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

from pretrain import (  # noqa: E402
    PretrainConfig,
    build_config,
    build_optimizers,
    label_batch,
    learning_rate_factor,
    stream_batches,
)

from r1lab.files import replacing  # noqa: E402
from r1lab.kernels import ops  # noqa: E402
from r1lab.kernels.reference.decode_step import ReferenceDecoder  # noqa: E402
from r1lab.loading import load_policy  # noqa: E402
from r1lab.model import PolicyForCausalLM, update_routing_bias  # noqa: E402
from r1lab.precision import (  # noqa: E402
    computed_weight,
    disable_fp8,
    enable_fp8,
    load_fp8_pretrained,
    save_fp8_pretrained,
)
from r1lab.rollout import RolloutEngine, SamplingParams  # noqa: E402
from r1lab.rollout.policy_weights import read_weights  # noqa: E402
from r1lab.tasks.corpus import stream_documents  # noqa: E402
from r1lab.tasks.tokenizer import build_tokenizer  # noqa: E402
from r1lab.trace import load_run  # noqa: E402

SMOOTHING = 0.9
HELD_OUT_SEED = 10**6
SIDES = ("fp32", "fp8", "moved")


# -- a pretraining ----------------------------------------------------------------------------------------------------


class Learner:
    """A policy with its optimisers and losses."""

    def __init__(self, policy: PolicyForCausalLM, config: PretrainConfig):
        self.policy, self.config = policy.train(), config
        self.optimizers = build_optimizers(policy, config)
        self.schedules = [LambdaLR(each, lambda step: learning_rate_factor(step, config)) for each in self.optimizers]
        self.losses: list[float] = []

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        loss = self.policy(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        update_routing_bias(self.policy, self.config.routing_bias_speed)
        self.losses.append(loss.item())

    @torch.no_grad()
    def evaluate(self, batches: list[dict[str, torch.Tensor]]) -> float:
        self.policy.eval()
        loss = sum(self.policy(**batch).loss.item() for batch in batches) / len(batches)
        self.policy.train()
        return loss


def build_learner(config: PretrainConfig, tokenizer, side: str) -> Learner:
    torch.manual_seed(config.seed)
    policy = load_policy(config.init_from)[0] if config.init_from else PolicyForCausalLM(build_config(tokenizer))
    if side == "fp8":
        enable_fp8(policy)
    elif side == "moved":
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1 + 1e-6 * torch.randn_like(parameter))
    return Learner(policy, config)


def batches_of(seed: int, drill: float, tokenizer, tokens_per_batch: int):
    for ids in stream_batches(stream_documents(seed, drill), tokenizer, tokens_per_batch, random.Random(seed)):
        yield label_batch(ids, tokenizer)


def pretrain(options) -> None:
    """Writes the losses to the output, anew at each report."""
    share = options.num_steps / PretrainConfig().num_steps
    config = PretrainConfig(
        num_steps=options.num_steps, tokens_per_batch=options.tokens_per_batch, seed=options.seed,
        drill_steps=round(PretrainConfig().drill_steps * share), warmup_steps=max(1, round(50 * min(1, 4 * share))),
        init_from=options.init_from, learning_rate=PretrainConfig().learning_rate * options.learning_rate_share,
        muon_learning_rate=PretrainConfig().muon_learning_rate * options.learning_rate_share,
    )  # fmt: skip
    tokenizer = build_tokenizer()
    learner = build_learner(config, tokenizer, options.side)
    phases = [batches_of(2000 * options.seed + i, drill, tokenizer, config.tokens_per_batch)
              for i, drill in enumerate((config.drill_first, config.drill))]  # fmt: skip
    held_out = list(itertools.islice(batches_of(HELD_OUT_SEED, config.drill, tokenizer, 2048), options.num_held_out))
    run = {"side": options.side, "seed": options.seed, "config": vars(config), "held_out": {}}
    start = time.process_time()
    for step in range(1, config.num_steps + 1):
        learner.step(next(phases[0 if step <= config.drill_steps else 1]))
        if step % options.report_steps == 0 or step == config.num_steps:
            run["held_out"][step] = learner.evaluate(held_out)
            run |= {"losses": learner.losses, "cpu_seconds": round(time.process_time() - start)}
            with replacing(Path(options.output)) as temporary:
                temporary.write_text(json.dumps(run) + "\n")
            print(f"{options.side}, seed {options.seed}, step {step}: loss {learner.losses[-1]:.4f}, held out "
                  f"{run['held_out'][step]:.4f}, {run['cpu_seconds']} s of CPU", flush=True)  # fmt: skip


def smoothed(losses: list[float]) -> torch.Tensor:
    """Exponential moving average of the losses, started at the first one."""
    mean, means = losses[0], []
    for loss in losses:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean)
    return torch.tensor(means, dtype=torch.float64)


def compare(options) -> None:
    """A line for each run that is not fp32: its errors against the fp32 run of its seed, in percent of the loss."""
    runs = [json.loads(Path(path).read_text()) for path in options.runs]
    truths = {run["seed"]: run for run in runs if run["side"] == "fp32"}
    for path, run in zip(options.runs, runs, strict=True):
        truth = truths.get(run["seed"])
        if truth is None:
            sys.exit(f"{path} has seed {run['seed']}, and no fp32 run of that seed is given: add its file")
        if run["config"] != truth["config"]:
            sys.exit(f"{path} and the fp32 run of its seed had other settings: {run['config']}, {truth['config']}")
    print(f"{'run':<16} {'steps':>5} {'at the end':>10} {'last tenth':>10} {'mean':>8} {'mean size':>9} {'largest':>8} "
          f"{'held out':>8}   loss, held out: fp32, this")  # fmt: skip
    errors = {}
    for run in sorted(runs, key=lambda run: (run["side"], run["seed"])):
        if run["side"] == "fp32":
            continue
        truth = truths[run["seed"]]
        steps = min(len(run["losses"]), len(truth["losses"]))
        expected = smoothed(truth["losses"][:steps])
        error = 100 * (smoothed(run["losses"][:steps]) / expected - 1)
        errors[(run["side"], run["seed"])] = error
        at = max(set(run["held_out"]) & set(truth["held_out"]), key=int)  # both reported after the same steps
        high, low = truth["held_out"][at], run["held_out"][at]
        name, later = f"{run['side']}, seed {run['seed']}", error[min(steps - 1, run["config"]["warmup_steps"]) :]
        print(f"{name:<16} {steps:>5} {error[-1]:>+10.3f} {error[-max(1, steps // 10) :].mean():>+10.3f} "
              f"{later.mean():>+8.3f} {later.abs().mean():>9.3f} {later.abs().max():>8.3f} "
              f"{100 * (low / high - 1):>+8.3f}   {high:.4f}, {low:.4f}")  # fmt: skip
    if options.picture:
        draw_errors(errors, options.picture)


def draw_errors(errors: dict[tuple[str, int], torch.Tensor], path: str) -> None:
    """Relative error of each run over the steps, with V3's 0.25 % as a band."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.axhspan(-0.25, 0.25, color="0.9", label="0.25 %")
    for (side, _), error in errors.items():
        colour = "tab:red" if side == "fp8" else "tab:blue"
        axes.plot(range(1, len(error) + 1), error, color=colour, linewidth=0.8, alpha=0.7)
    axes.plot([], [], color="tab:red", label="FP8")
    axes.plot([], [], color="tab:blue", label="fp32, initial weights moved by 1e-6")
    axes.set(xlabel="step", ylabel="training loss against fp32, %")
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=120)


# -- GRPO -------------------------------------------------------------------------------------------------------------


def grpo(options) -> None:
    """A line a run: held-out accuracy of each split, and how far rollouts and training are apart."""
    runs = [load_run(path) for path in options.runs]
    for run in sorted(runs, key=lambda run: (run.config["fp8"], run.config["seed"])):
        scores = run.results.query("when == 'final' and metric == 'accuracy'")
        final = "  ".join(f"{split} {100 * value:.1f} %" for split, value in zip(scores["split"], scores["value"]))
        apart = run.metrics["sampling/sampling_logp_difference/mean"].mean()
        name = f"{name_of(run.config['fp8'])}, seed {run.config['seed']}"
        print(f"{name:<12} {final}  mean difference of logps {apart:.1e}")
    if options.picture:
        draw_grpo(runs, options.picture)


def name_of(is_fp8: bool) -> str:
    return "FP8" if is_fp8 else "fp32"


def draw_grpo(runs: list, path: str) -> None:
    """Training accuracy, averaged over ten steps, and the mismatch of rollouts and training."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for is_fp8, colour in ((False, "tab:blue"), (True, "tab:red")):
        for run in (run for run in runs if run.config["fp8"] == is_fp8):
            accuracy = 100 * run.metrics["rewards/countdown_reward/mean"].rolling(10, min_periods=1).mean()
            left.plot(run.metrics["step"], accuracy, color=colour, linewidth=1, alpha=0.8)
            apart = run.metrics["sampling/sampling_logp_difference/mean"]
            right.semilogy(run.metrics["step"], apart, color=colour, linewidth=1, alpha=0.8)
        left.plot([], [], color=colour, label=name_of(is_fp8))
    left.set(xlabel="step", ylabel="right in training, %")
    right.set(xlabel="step", ylabel="mean |logp in training - in the rollout|, nats")
    left.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


# -- logps on the base ------------------------------------------------------------------------------------------------


@torch.no_grad()
def token_logps(policy: PolicyForCausalLM, batches: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(logps [tokens], whether the token was the likeliest) of what the base is trained to predict."""
    logps, hits = [], []
    for batch in batches:
        scores = policy(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        labels = batch["labels"][:, 1:]
        keep = labels >= 0
        logps.append(scores[keep].gather(1, labels[keep][:, None])[:, 0])
        hits.append(scores[keep].argmax(-1))
    return torch.cat(logps), torch.cat(hits)


def describe(name: str, ours: tuple, theirs: tuple) -> None:
    difference = (ours[0] - theirs[0]).abs()
    same = ""
    if len(ours) > 1:
        same = f"  same likeliest token {100 * (ours[1] == theirs[1]).float().mean():.2f} %"
    print(f"{name:<58} mean {difference.mean():.4f}  median {difference.median():.4f}  "
          f"99 % {difference.quantile(0.99):.3f}  max {difference.max():.2f}{same}",
          flush=True)  # fmt: skip


def drift(options) -> None:
    """|difference| of logps in nats: FP8 against fp32, weights alone, and rollouts against the training pass."""
    policy, tokenizer = load_policy(str(BASE))
    batches, count = [], 0
    for batch in batches_of(HELD_OUT_SEED, 0.3, tokenizer, 2048):
        batches.append(batch)
        count += len(batch["input_ids"])
        if count >= options.num_documents:
            break
    truth = token_logps(policy, batches)
    enable_fp8(policy)
    fp8 = token_logps(policy, batches)
    rounded = copy.deepcopy(policy)
    with torch.no_grad():
        for module in rounded.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(computed_weight(module, name))
    disable_fp8(rounded)
    weights = token_logps(rounded, batches)
    print(f"{len(truth[0])} tokens of held-out documents; loss fp32 {-truth[0].mean():.4f}, FP8 {-fp8[0].mean():.4f} "
          f"({100 * (fp8[0].mean() / truth[0].mean() - 1):+.3f} %)")  # fmt: skip
    describe("FP8 against fp32", fp8, truth)
    describe("weights rounded alone, against fp32", weights, truth)
    prompts = [row[: int((row == tokenizer.convert_tokens_to_ids("Assistant")).nonzero()[0]) + 2].tolist()
               for batch in batches for row in batch["input_ids"]][: options.num_prompts]  # fmt: skip
    params = SamplingParams(n=2, max_tokens=48, seed=0)
    samplers = {"in FP8": policy, "of rounded weights": rounded, "of weights as they are": disabled_copy(policy)}
    for name, sampler in samplers.items():
        ours, theirs = [], []
        groups = RolloutEngine(sampler, eos_token_id=tokenizer.eos_token_id).generate(prompts, params)
        for prompt, group in zip(prompts, groups, strict=True):
            for completion in group:
                ids = torch.tensor([prompt + completion.token_ids])
                with torch.no_grad():
                    scores = policy(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                ours.append(scores.gather(1, ids[0, len(prompt) :, None])[:, 0])
                theirs.append(torch.tensor(completion.logps))
        describe(f"training pass in FP8 against rollouts {name}", (torch.cat(ours),), (torch.cat(theirs),))


def disabled_copy(policy: PolicyForCausalLM) -> PolicyForCausalLM:
    other = copy.deepcopy(policy)
    disable_fp8(other)
    return other


# -- memory -----------------------------------------------------------------------------------------------------------


def tensor_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in {*module.parameters(), *module.buffers()})


def saved_bytes(policy: PolicyForCausalLM, ids: torch.Tensor) -> int:
    """Bytes that a training pass keeps for the backward, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = policy(input_ids=ids, labels=ids).loss
    total = sum(kept.values())
    loss.backward()
    return total


def compare_bytes(name: str, high: float, low: float) -> None:
    print(f"{name:<66} {high:>12,.0f} {low:>12,.0f} {low / high:>6.3f}", flush=True)


def memory(options) -> None:
    policy, _ = load_policy(str(BASE))
    with tempfile.TemporaryDirectory() as directory:
        save_fp8_pretrained(policy, directory)
        kept = load_fp8_pretrained(directory, keep=True)
        files = [Path(folder, "model.safetensors").stat().st_size for folder in (BASE, directory)]
    print(f"{'bytes':<66} {'high':>12} {'FP8':>12} {'ratio':>6}")
    compare_bytes("base, weights in memory (fp32 / kept in FP8)", tensor_bytes(policy), tensor_bytes(kept))
    layers = [module.model.layers for module in (policy, kept)]
    compare_bytes("  its layers alone, without embedding and head", *map(tensor_bytes, layers))
    compare_bytes("base, model.safetensors", *files)
    stores = [ReferenceDecoder(read_weights(policy, 64), 4, 64, cache_dtype=kind) for kind in ("auto", "fp8")]
    compare_bytes("base, latent cache a token (fp32, 32 + 16 numbers a layer)", *(s.cache_bytes / 256 for s in stores))
    latent, key = torch.randn(256, 512), torch.randn(256, 64).bfloat16()
    q, scale = ops.quantize_tiles(latent, 1)
    high = latent.bfloat16().nbytes + key.nbytes
    compare_bytes("V3, latent cache a token and layer (bf16, 512 + 64)", high / 256,
                  (q.nbytes + scale.nbytes + key.nbytes) / 256)  # fmt: skip
    ids = torch.randint(3, 300, (8, 64), generator=torch.Generator().manual_seed(0))
    plain = saved_bytes(policy.train(), ids)
    enable_fp8(policy)
    compare_bytes("base, kept for the backward, 512 tokens", plain, saved_bytes(policy, ids))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pretrain")
    one.add_argument("--side", choices=SIDES, required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--output", required=True, help="a JSON file for losses, rewritten at each report")
    one.add_argument("--num_steps", type=int, default=PretrainConfig().num_steps)
    one.add_argument("--tokens_per_batch", type=int, default=PretrainConfig().tokens_per_batch)
    one.add_argument("--init_from", help="a checkpoint to go on from, in place of fresh weights")
    one.add_argument("--learning_rate_share", type=float, default=1.0, help="of the recipe's learning rates")
    one.add_argument("--report_steps", type=int, default=50)
    one.add_argument("--num_held_out", type=int, default=8, help="held-out batches of 2,048 tokens")
    several = commands.add_parser("compare")
    several.add_argument("runs", nargs="+", help="JSON files of pretrain, fp32 runs among them")
    several.add_argument("--picture", help="a PNG of the errors over the steps")
    curves = commands.add_parser("grpo")
    curves.add_argument("runs", nargs="+", help="run directories")
    curves.add_argument("--picture", help="a PNG of the curves")
    two = commands.add_parser("drift")
    two.add_argument("--num_documents", type=int, default=256)
    two.add_argument("--num_prompts", type=int, default=16)
    commands.add_parser("memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"pretrain": pretrain, "compare": compare, "grpo": grpo, "drift": drift, "memory": memory}[options.command](options)


if __name__ == "__main__":
    main()
