"""CPU kernels beside PyTorch (per-expert F.linear, full logits, padded SDPA): forward and backward, by hand.

    python tests/bench/bench_kernels.py [--tokens 4000 16000] [--rounds 9] [--threads 2] [--cpu_time]

Rounds alternate between the two, medians are printed. --cpu_time counts the process's CPU seconds instead of the wall
clock: on a busy machine, with --threads 1, that is the fairer number.
"""

import argparse
import time
from statistics import median

import torch
import torch.nn.functional as F

from r1lab.kernels import ops, reference
from r1lab.kernels.build import load_extension

HIDDEN, EXPERTS, INTERMEDIATE, TOP_K, VOCAB = 128, 8, 128, 2, 512
HEADS, NOPE, ROPE, VALUE = 4, 32, 16, 32


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
    cases = {name: (getattr(ops, name), getattr(reference, name), args) for name, args in arguments.items()}
    return cases | {"mla_attention": attention_case(num_tokens)}


def attention_case(num_tokens):
    """Sequences of 20 to 180 tokens; the peer pads them to one length and calls scaled_dot_product_attention."""
    lengths = [20 + 37 * i % 161 for i in range(num_tokens // 100)]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    longest, total = max(lengths), sum(lengths)
    slots = torch.cat([torch.arange(length) + i * longest for i, length in enumerate(lengths)])

    def leaf(*shape):
        return torch.randn(total, *shape, requires_grad=True)

    inputs = leaf(HEADS, NOPE), leaf(HEADS, ROPE), leaf(HEADS, NOPE), leaf(ROPE), leaf(HEADS, VALUE)

    def fused(*inputs):
        return ops.mla_attention(*inputs, bounds, longest, 0.2)

    def padded(q_nope, q_pe, k_nope, k_pe, v):
        q = torch.cat([q_nope, q_pe], -1)
        k = torch.cat([k_nope, k_pe[:, None].expand(-1, HEADS, -1)], -1)
        rows = (
            x.new_zeros(len(lengths) * longest, *x.shape[1:]).index_copy(0, slots, x).unflatten(0, (-1, longest))
            for x in (q, k, v)
        )
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in rows), is_causal=True, scale=0.2)
        return out.transpose(1, 2).flatten(0, 1)[slots]

    return fused, padded, inputs


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
    print(f"{'op':<13} {'tokens':>6} {'ours fwd':>9} {'ref fwd':>9} {'x':>5} {'ours bwd':>9} {'ref bwd':>9} {'x':>5}")
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
                f"{name:<13} {num_tokens:>6} {mine_f:>9.2f} {ref_f:>9.2f} {ref_f / mine_f:>5.2f} "
                f"{mine_b:>9.2f} {ref_b:>9.2f} {ref_b / mine_b:>5.2f}"
            )


if __name__ == "__main__":
    main()
