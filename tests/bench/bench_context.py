"""The compiled decoder against length and batch: CPU time a token beside the least it could take, and cache memory.

    python tests/bench/bench_context.py [--size medium] [--batch 1 16 128] [--length 128 ... 4096] [--core 1] [--write]

Every sequence already holds `length` tokens and samples `--steps` more; one thread. The ideal line is the larger of two
times: a token's multiply-adds (`models.decode_flops`) at the rate of `fma_peak.cpp`, and what a step has to read, every
weight that some row uses once and every sequence's latents, at the rate of a sum over an array that no cache holds.
Both rates are measured in the same rounds. What L3 holds is read faster than that: such a share may be above 1.
"""

import argparse

import numpy as np
import torch
from bench_rollout import build_fma_peak
from models import decode_bytes, decode_flops, load_policy_of_size
from sides import add_options, interleave, pin, report, row, timed

from r1lab.kernels.cpu.decode_step import LANES, CpuDecoder
from r1lab.kernels.reference.decode_step import DecodeRequests, DecodeSampling
from r1lab.rollout.policy_weights import read_weights

STREAM_FLOATS = 1 << 26


def build_requests(batch: int, length: int, steps: int) -> DecodeRequests:
    """One sequence a slot, at position `length`."""
    return DecodeRequests(
        slot=np.arange(batch, dtype=np.int32), token=np.full(batch, 5, np.int32),
        position=np.full(batch, length, np.int32), stream=np.arange(batch, dtype=np.uint64),
        limit=np.full(batch, steps + 1, np.int32), count=np.zeros(batch, np.int32), status=np.zeros(batch, np.int32),
        token_ids=np.zeros((batch, steps + 1), np.int32), logps=np.zeros((batch, steps + 1), np.float32),
        drafted=np.zeros(batch, np.int32), accepted=np.zeros(batch, np.int32),
    )  # fmt: skip


def compare(policy, size: str, batch: int, length: int, options) -> list[dict]:
    """The row of one length and batch."""
    config, steps = policy.config, max(options.steps, options.steps * 4 // batch)
    decoder = CpuDecoder(read_weights(policy, length + steps + 1), batch, length + steps + 1, 1)
    nothing = torch.zeros(config.vocab_size, dtype=torch.bool)
    sampling = DecodeSampling(1.0, 1.0, 0, nothing, nothing)
    peak, flops = build_fma_peak()
    stream = torch.ones(STREAM_FLOATS)

    def decode():
        requests = build_requests(batch, length, steps)
        seconds = timed(lambda: decoder.decode(requests, np.arange(batch, dtype=np.int32), steps, sampling))
        assert (requests.count == steps).all()
        return {"cpu": seconds["cpu"] / (batch * steps)}

    sides = {"ours": decode, "fma": lambda: timed(peak), "stream": lambda: timed(stream.sum)}
    seconds = {name: result["cpu"] for name, result in interleave(sides, options.rounds).items()}
    arithmetic = decode_flops(config, length) / (flops / seconds["fma"])
    reading = decode_bytes(config, batch, length) / batch / (stream.nbytes / seconds["stream"])
    ideal = max(arithmetic, reading)
    print(f"{size}, B={batch}, {length} tokens: arithmetic {arithmetic * 1e6:.1f} us a token, reading "
          f"{reading * 1e6:.1f}, ours {seconds['ours'] * 1e6:.1f}; cache {decoder.cache.nbytes / 1e6:.1f} MB",
          flush=True)  # fmt: skip
    return [row(f"decode vs the ideal line, {size}, B={batch}, {length} tokens in the cache", seconds["ours"] * 1e6,
                ideal * 1e6, 0, "us of CPU a token", is_less_better=True,
                bound="arithmetic" if ideal == arithmetic else "reading",
                cache_bytes_per_token=decoder.cache[:, 0, 0].nbytes // LANES)]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--size", choices=["tiny", "medium"], default="medium")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--length", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    policy = load_policy_of_size(options.size)
    for batch in options.batch:
        for length in options.length:
            report(compare(policy, options.size, batch, length, options), options.write)


if __name__ == "__main__":
    main()
