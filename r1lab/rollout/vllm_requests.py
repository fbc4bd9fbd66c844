"""What is asked of vLLM, in its own words, and what its answers must be: the same over HTTP and inside the process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from r1lab.rollout.sampling import SamplingParams, request_streams
from r1lab.types import Completion

SEED_BOUND = 1 << 62
"""Seeds are folded below this: vLLM takes int64 and counts up from it."""
NEVER = -100.0
"""The lowest bias vLLM puts on a logit."""


@dataclass(frozen=True, slots=True)
class VLLMRequest:
    """Some completions of one prompt."""

    prompt_ids: list[int]
    sampling: dict[str, Any]
    """Parameters under vLLM's names, for `/v1/completions` and `vllm.SamplingParams` alike."""


@dataclass(frozen=True, slots=True)
class VLLMSample:
    """One completion as vLLM gave it."""

    token_ids: list[int]
    logps: list[float]
    """Nats; NaN where vLLM had none."""


def plan_requests(
    prompt_ids: Sequence[list[int]],
    params: SamplingParams,
    seeds: list[list[int]] | None,
    eos_token_ids: list[int],
    context: int,
) -> list[list[VLLMRequest]]:
    """The requests of each prompt: one where vLLM can answer all of it at once, else one a completion.

    A request for n completions draws the i-th from `seed + i` (vLLM, `v1/engine/parallel_sampling.py`): seeds that
    count up, as the trainer's do, fit one request. Greedy decoding is asked for once, as vLLM demands. Only
    eos_token_ids end a completion, never the generation config's. context: most tokens of prompt + completion.

    Raises ValueError when seeds is not [prompts][n].
    """
    streams = request_streams(params.seed, len(prompt_ids), params.n, seeds)
    common = {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "stop_token_ids": eos_token_ids,
        "ignore_eos": True,
    }
    if params.banned_token_ids:
        common["logit_bias"] = {token: NEVER for token in params.banned_token_ids}
    plans = []
    for index, prompt in enumerate(prompt_ids):
        row = [int(streams[index, 0])] if seeds is None else seeds[index]
        limit = {"max_tokens": min(params.max_tokens, context - len(prompt))}
        runs = _runs(row, params)
        plans.append([VLLMRequest(prompt, common | limit | {"n": n, "seed": seed % SEED_BOUND}) for seed, n in runs])
    return plans


def _runs(row: list[int], params: SamplingParams) -> list[tuple[int, int]]:
    """(first seed, number of completions) of a prompt's requests."""
    if params.temperature == 0:
        return [(row[0], 1)]
    if all(seed == row[0] + i for i, seed in enumerate(row)):
        return [(row[0], params.n)]
    return [(seed, 1) for seed in row]


def read_samples(
    request: VLLMRequest, completion_ids: list, logprobs: list | None, logprob_token_ids: list | None
) -> list[VLLMSample]:
    """What TRL read from an answer -> the request's samples. [n][tokens], [n][tokens][1] twice.

    Raises ValueError when the answer is not what was asked for.
    """
    n = request.sampling["n"]
    if logprobs is None or logprob_token_ids is None:
        raise ValueError("no logprobs")
    if not len(completion_ids) == len(logprobs) == len(logprob_token_ids) == n:
        raise ValueError(f"{len(completion_ids)} completions with {len(logprobs)} lists of logprobs where {n} were due")
    return [
        VLLMSample(list(ids), _logps(ids, values, names))
        for ids, values, names in zip(completion_ids, logprobs, logprob_token_ids, strict=True)
    ]


def _logps(token_ids: list[int], values: list[list[float | None]], names: list[list[int]]) -> list[float]:
    if not len(token_ids) == len(values) == len(names):
        raise ValueError(f"{len(values)} logprobs for a completion of {len(token_ids)} tokens")
    logps = []
    for token, row, row_names in zip(token_ids, values, names, strict=True):
        if token not in row_names:
            raise ValueError(f"the logprobs of token {token} are of {row_names}")
        value = row[row_names.index(token)]
        logps.append(float("nan") if value is None else value)
    return logps


def to_completions(samples: list[VLLMSample], params: SamplingParams, eos_token_ids: list[int]) -> list[Completion]:
    """A prompt's n completions; a greedy one counts n times."""
    completions = [
        Completion(
            one.token_ids, one.logps, "stop" if one.token_ids[-1:] and one.token_ids[-1] in eos_token_ids else "length"
        )
        for one in samples
    ]
    return completions * params.n if len(completions) < params.n else completions


def checkpoint_tensors(policy: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) of all that vLLM loads, as a checkpoint of the policy would name it.

    transformers stacks the experts of a layer, files and vLLM keep them apart; the routing bias is a buffer, to vLLM a
    weight like any other. Left out: tied weights but the first, and the multi-token-prediction module.

    Raises ValueError when the experts are spread over processes.
    """
    if getattr(policy, "has_spread_experts", False):
        raise ValueError("use_vllm: this process holds a share of the experts only; train without expert parallelism")
    once = {name for name, _ in policy.named_parameters()}
    tied = {name for name, _ in policy.named_parameters(remove_duplicate=False)} - once
    state = {name: value for name, value in policy.state_dict().items() if name not in tied}
    if getattr(policy, "mtp", None) is not None:
        drafting = f"model.layers.{policy.config.num_hidden_layers}."
        state = {name: value for name, value in state.items() if not name.startswith(drafting)}
    return list(revert_weight_conversion(policy, state).items())
