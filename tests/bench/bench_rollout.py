"""Rollouts end to end (prefill, decode, sampling with logps) beside transformers' `generate` and llama.cpp.

    python tests/bench/bench_rollout.py [--batch 1 16 128] [--rounds 3] [--core 1] [--llama_python PATH] [--write]

Everyone samples the same number of tokens at temperature 1 from the same weights in fp32, with one thread, no end
token. B = 16 and 128 are groups of 16 completions of one prompt, which is what GRPO samples; transformers gets the rows
apart, as it wants them. Its fastest setting is looked for first (cache, experts' implementation). Rates are tokens a
second of the process's CPU time, which a busy machine disturbs less than wall time; both are printed.
--llama_python: an interpreter with `cyllama` and `gguf` (pip install cyllama gguf): llama.cpp from PyPI's wheel, one
llama_decode a step for the whole batch, sampling not included. The share of FMA peak is that of the decode steps,
sampling included, without the packing of weights and the prefill before them: `models.decode_flops` by the CPU time
spent in them, against `fma_peak.cpp` in the same rounds.
"""

import argparse
import ctypes
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from llama_peer import LlamaPeer
from models import EXPERTS, decode_flops, load_pair, random_prompts
from sides import add_options, interleave, pin, report, row, timed
from transformers import GenerationConfig

from r1lab.kernels.cpu.decode_step import CpuDecoder
from r1lab.rollout import RolloutEngine, SamplingParams

MUST = {("tiny", 1): 50, ("tiny", 16): 15, ("tiny", 128): 10, ("medium", 128): 6}
MUST_LLAMA = {"tiny": 2.5, "medium": 1.5}
GROUP = 16
KERNELS = Path(__file__).resolve().parents[2] / "r1lab" / "kernels" / "cpu"


def split_batch(batch: int) -> tuple[int, int]:
    """(prompts, completions of each)."""
    return (1, batch) if batch < GROUP else (batch // GROUP, GROUP)


def our_side(policy, batch: int, prompt_length: int, new_tokens: int):
    """-> function that samples once."""
    num_prompts, n = split_batch(batch)
    prompts = random_prompts(num_prompts, prompt_length, policy.config.vocab_size)
    engine = RolloutEngine(policy, eos_token_id=[])
    return partial(engine.generate, prompts, SamplingParams(n=n, max_tokens=new_tokens))


def transformers_side(model, batch: int, prompt_length: int, new_tokens: int, experts: str, cache: str):
    model.set_experts_implementation(experts)
    model.generation_config = GenerationConfig()
    num_prompts, n = split_batch(batch)
    ids = torch.tensor(random_prompts(num_prompts, prompt_length, model.config.vocab_size)).repeat_interleave(n, 0)
    options = {"max_new_tokens": new_tokens, "do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}

    def run():
        model.set_experts_implementation(experts)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), cache_implementation=cache, disable_compile=True, **options
        )
        assert out.shape == (batch, prompt_length + new_tokens)

    return run


def fastest_setting(model, batch: int, prompt_length: int, probe_tokens: int = 6) -> tuple[str, str]:
    """(experts' implementation, cache) of transformers with the lowest CPU time on a short run."""
    times = {}
    for experts in EXPERTS:
        for cache in ("dynamic", "static"):
            run = transformers_side(model, batch, prompt_length, probe_tokens, experts, cache)
            run()
            times[experts, cache] = timed(run)["cpu"]
    print(f"  transformers B={batch}, CPU s of {probe_tokens} tokens: "
          + ", ".join(f"{'/'.join(key)} {value:.2f}" for key, value in times.items()), flush=True)  # fmt: skip
    return min(times, key=times.get)


def build_fma_peak():
    """-> function that runs operations that are nothing but fused multiply-adds on registers."""
    folder = tempfile.mkdtemp()
    library = Path(folder) / "fma_peak.so"
    source = Path(__file__).with_name("fma_peak.cpp")
    flags = ["-std=c++17", "-O3", "-march=native", "-Wno-psabi", "-shared", "-fPIC", f"-I{KERNELS}"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    peak = ctypes.CDLL(str(library))
    peak.fma_peak.argtypes, peak.fma_peak.restype = [ctypes.c_int64], ctypes.c_float
    peak.operations_of_iteration.restype = ctypes.c_int64
    return partial(peak.fma_peak, 1_000_000), 1_000_000 * peak.operations_of_iteration()


def timed_with_decode(run) -> dict[str, float]:
    """`timed`, and "decode": the CPU seconds of it that went into decode steps."""
    spent, decode = [], CpuDecoder.decode

    def timed_decode(*args, **kwargs):
        start = time.process_time()
        decode(*args, **kwargs)
        spent.append(time.process_time() - start)

    with mock.patch.object(CpuDecoder, "decode", timed_decode):
        return timed(run) | {"decode": sum(spent)}


def rates(seconds: dict[str, float], amount: float) -> dict[str, float]:
    """How much a second of each."""
    return {clock: amount / value for clock, value in seconds.items()}


def compare(size: str, batch: int, options) -> list[dict]:
    """The rows of one batch size."""
    ours, theirs = options.pair
    shape = (options.prompt_length, options.new_tokens)
    tokens = batch * options.new_tokens
    experts, cache = options.setting or fastest_setting(theirs, batch, options.prompt_length)
    mine = our_side(ours, batch, *shape)
    peer = transformers_side(theirs, batch, *shape, experts, cache)
    peak, flops = build_fma_peak()
    repeats = max(1, options.repeat_tokens // tokens)
    sides = {
        "ours": lambda: rates(timed_with_decode(lambda: [mine() for _ in range(repeats)]), tokens * repeats),
        "transformers": lambda: rates(timed(peer), tokens),
        "fma": lambda: rates(timed(peak), flops),
    }
    if options.llama is not None:
        sides["llama.cpp"] = lambda: options.llama.run(batch, *shape, group=split_batch(batch)[1])
    results = interleave(sides, options.rounds)
    rate = {name: result["cpu"] for name, result in results.items()}
    rows = [row(f"rollout vs transformers generate, {size}, B={batch}", rate["ours"], rate["transformers"],
                MUST.get((size, batch), 0), "tokens/s of CPU", setting=f"{experts}, {cache} cache")]  # fmt: skip
    if options.llama is not None:
        rows.append(row(f"rollout vs llama.cpp {options.llama.dtype}, {size}, B={batch}", rate["ours"],
                        rate["llama.cpp"], MUST_LLAMA[size] if batch > 1 else 0, "tokens/s of CPU"))  # fmt: skip
    done = results["ours"]["decode"] * decode_flops(ours.config, options.prompt_length + options.new_tokens / 2)
    rows.append(row(f"decode share of the measured FMA peak, {size}, B={batch}", done / 1e9, rate["fma"] / 1e9,
                    0.55 if batch > 1 else 0, "GFLOP/s of CPU"))  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--size", choices=["tiny", "medium"], default="tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--prompt_length", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--repeat_tokens", type=int, default=2000, help="ours repeats until it sampled about so many")
    parser.add_argument("--setting", nargs=2, metavar=("EXPERTS", "CACHE"), help="transformers', instead of looking")
    parser.add_argument("--llama_python", help="interpreter with cyllama and gguf")
    parser.add_argument("--llama_dtype", default="q8_0", choices=["f32", "f16", "q8_0"])
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    options.pair = load_pair(options.size)
    options.llama = None
    if options.llama_python:
        options.llama = LlamaPeer(options.llama_python, options.pair[0], options.llama_dtype)
    for batch in options.batch:
        report(compare(options.size, batch, options), options.write)


if __name__ == "__main__":
    main()
