"""Runs in an interpreter with `cyllama`: python llama_worker.py policy.gguf VOCAB, one JSON request a line on stdin.

{"logits_of": [ids]} -> {"logits": [...]} of the token after them.
{"batch": B, "prompt_length": P, "new_tokens": T, "group": G} -> {"cpu": tokens a second, "wall": tokens a second}.
One thread; every sequence has a cache of its own, a prompt's is copied to its group. Tokens are fixed, not sampled.
"""

import json
import sys
import time

import cyllama.llama.llama_cpp as llama

VOCAB_USED = 300


class Model(llama.LlamaModel):
    """cyllama 0.2.18 reads the logits' size from an attribute that its model lacks."""

    n_vocab = 0


def build_context(model, num_sequences: int, length: int):
    params = llama.LlamaContextParams()
    params.n_seq_max = num_sequences
    params.n_ctx = num_sequences * (-(-length // 256) * 256)
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = 1
    params.kv_unified = False
    return llama.LlamaContext(model, params)


def logits_of(model, ids: list[int]) -> list[float]:
    context = build_context(model, 1, len(ids))
    batch = llama.LlamaBatch(n_tokens=512, embd=0, n_seq_max=1)
    for position, token in enumerate(ids):
        batch.add(token, position, [0], position == len(ids) - 1)
    context.decode(batch)
    return list(context.get_logits_ith(len(ids) - 1))


def generate(context, batch, request: dict) -> None:
    context.kv_cache_clear()
    for first in range(0, request["batch"], request["group"]):
        batch.reset()
        for position in range(request["prompt_length"]):
            batch.add(3 + position % VOCAB_USED, position, [first], position == request["prompt_length"] - 1)
        context.decode(batch)
        for other in range(first + 1, first + request["group"]):
            context.memory_seq_cp(first, other, -1, -1)
    for step in range(request["new_tokens"] - 1):  # the first token comes from the prompt's logits
        batch.reset()
        for sequence in range(request["batch"]):
            token = 3 + (sequence + step) % VOCAB_USED
            batch.add(token, request["prompt_length"] + step, [sequence], True)
        context.decode(batch)
    context.synchronize()


def timed(model, request: dict) -> dict[str, float]:
    context = build_context(model, request["batch"], request["prompt_length"] + request["new_tokens"])
    batch = llama.LlamaBatch(n_tokens=512, embd=0, n_seq_max=request["batch"])
    cpu, wall = time.process_time(), time.perf_counter()
    generate(context, batch, request)
    tokens = request["batch"] * request["new_tokens"]
    return {"cpu": tokens / (time.process_time() - cpu), "wall": tokens / (time.perf_counter() - wall)}


def main():
    llama.disable_logging()
    llama.llama_backend_init()
    model = Model(path_model=sys.argv[1], params=llama.LlamaModelParams(), verbose=False)
    model.n_vocab = int(sys.argv[2])
    for line in sys.stdin:
        request = json.loads(line)
        if "logits_of" in request:
            answer = {"logits": logits_of(model, request["logits_of"])}
        else:
            answer = timed(model, request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
