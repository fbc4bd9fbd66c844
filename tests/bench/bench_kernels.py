"""CPU kernels beside the PyTorch reference (per-expert F.linear, full logits): forward and backward, by hand.

    python tests/bench/bench_kernels.py [--tokens 4000 16000] [--rounds 9] [--threads 2] [--cpu_time]

Rounds alternate between the two, medians are printed. --cpu_time counts the process's CPU seconds instead of the wall
clock: on a busy machine, with --threads 1, that is the fairer number.
"""

import argparse
import time
from statistics import median

import torch

from r1lab.kernels import ops, reference
from r1lab.kernels.build import load_extension

HIDDEN, EXPERTS, INTERMEDIATE, TOP_K, VOCAB = 128, 8, 128, 2, 512


def build_cases(num_tokens):
    """Name -> (our function, the reference, arguments)."""

    def normal(*shape, scale=1.0):
        return (torch.randn(shape) * scale).requires_grad_()

    x, topk_weights = normal(num_tokens, HIDDEN), normal(num_tokens, TOP_K)
    topk_idx = torch.rand(num_tokens, EXPERTS).argsort(-1)[:, :TOP_K].contiguous()
    gate_up = normal(EXPERTS, 2 * INTERMEDIATE, HIDDEN, scale=HIDDEN**-0.5)
    down = normal(EXPERTS, HIDDEN, INTERMEDIATE, scale=INTERMEDIATE**-0.5)
    gate_args = (normal(num_tokens, EXPERTS), torch.zeros(EXPERTS), 1, 1, TOP_K, True, 1.0)
    head, targets = normal(VOCAB, HIDDEN, scale=HIDDEN**-0.5), torch.randint(VOCAB, (num_tokens,))
    arguments = {
        "moe_experts": (x, topk_idx, topk_weights, gate_up, down),
        "token_logps": (x, head, targets, 1.0),
        "rms_norm": (x, normal(HIDDEN), 1e-6),
        "moe_gate": gate_args,
    }
    return {name: (getattr(ops, name), getattr(reference, name), args) for name, args in arguments.items()}


def time_once(function, args, clock):
    """Milliseconds of one forward and of its backward."""
    start = clock()
    output = function(*args)
    forward = clock() - start
    outputs = output if isinstance(output, tuple) else (output,)
    output = next(out for out in outputs if out.requires_grad)
    grad = torch.ones_like(output)
    start = clock()
    output.backward(grad)
    return forward * 1e3, (clock() - start) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4000, 16000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu_time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not load_extension():
        raise SystemExit("no CPU kernels here: nothing to compare")
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"{options.threads} threads, ms {'of CPU' if options.cpu_time else 'wall'}, medians of {options.rounds}")
    print(f"{'op':<12} {'tokens':>6} {'ours fwd':>9} {'ref fwd':>9} {'x':>5} {'ours bwd':>9} {'ref bwd':>9} {'x':>5}")
    for num_tokens in options.tokens:
        for name, (ours, theirs, args) in build_cases(num_tokens).items():
            times = {ours: [], theirs: []}
            for _ in range(options.rounds + 1):  # the first round warms up
                for function in (ours, theirs):
                    times[function].append(time_once(function, args, clock))
            (mine_f, mine_b), (ref_f, ref_b) = (
                [median(column) for column in zip(*times[function][1:], strict=True)] for function in (ours, theirs)
            )
            print(
                f"{name:<12} {num_tokens:>6} {mine_f:>9.2f} {ref_f:>9.2f} {ref_f / mine_f:>5.2f} "
                f"{mine_b:>9.2f} {ref_b:>9.2f} {ref_b / mine_b:>5.2f}"
            )


if __name__ == "__main__":
    main()
