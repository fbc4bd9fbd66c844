"""The native rollout engine: prefill once per prompt, fork the latent cache for its completions, retire, refill.

Sampling runs in the compiled CPU decoder when the policy is fp32 on the CPU and a compiler was found, else in its plain
PyTorch twin (any device, any dtype). Both do the same arithmetic, so a rollout's logps equal the training forward's.
"""

import numpy as np
import torch

from r1lab.kernels.cpu.decode_step import CpuDecoder, is_cpu_decoder_available
from r1lab.kernels.reference.decode_step import (
    STATUS_NOT_FINITE,
    STATUS_RUNNING,
    STATUS_STOP,
    DecodeRequests,
    DecodeSampling,
    ReferenceDecoder,
)
from r1lab.rollout.policy_weights import read_weights
from r1lab.rollout.sampling import SamplingParams, as_token_ids, check_prompts, request_streams
from r1lab.rollout.speculative import Drafting, check_drafting
from r1lab.types import Completion

STEPS_PER_CALL = 32
"""Tokens sampled per row between two looks at the queue; a row that ends earlier costs nothing meanwhile."""
STEPS_PER_CALL_QUEUED = 8
"""The same while requests wait for a slot."""


class RolloutEngine:
    """Samples completions from a DeepSeek-V3 policy (`r1lab.model.PolicyForCausalLM`, or transformers'
    `DeepseekV3ForCausalLM`: the names are the same).

    The weights are read anew at each `generate`, so it always samples from the policy as it stands.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        backend: str = "auto",
        max_batch: int = 512,
        num_threads: int | None = None,
        cache_dtype: str = "auto",
        num_speculative_tokens: int = 0,
    ):
        """eos_token_id: token(s) that end a completion (None: the config's). pad_token_id: never needed to sample, kept
        for callers that pad. backend: "cpu" (compiled, fp32), "reference" (plain PyTorch) or "auto" (cpu where it
        applies; the environment variable R1LAB_KERNELS=reference rules it out). max_batch: the most sequences sampled
        at once; their caches take layers * max_batch * length * (kv_lora_rank + qk_rope_head_dim) floats.
        num_threads: of the compiled decoder (None: torch's). cache_dtype: "auto", the policy's, or "fp8": latents in
        E4M3 with a scale for each 128 numbers, rotary keys as they are; the compiled decoder has no such cache.
        num_speculative_tokens: draft so many tokens at a time with the policy's multi-token-prediction module, where
        the batch is small enough for that to pay (`drafting` decides and counts); the completions are the same with and
        without.

        Raises ValueError on a bad backend, cache_dtype, max_batch or end token, a model the decoder cannot run, or
        drafts without a module.
        """
        self.model = model
        self.config = model.config
        self.eos_token_ids = self._check_eos(self.config.eos_token_id if eos_token_id is None else eos_token_id)
        self.pad_token_id = self.eos_token_ids[0] if pad_token_id is None and self.eos_token_ids else pad_token_id
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch}: allow at least 1 sequence")
        self.max_batch = max_batch
        self.num_threads = num_threads
        if cache_dtype not in ("auto", "fp8"):
            raise ValueError(f"cache_dtype={cache_dtype!r}: use 'auto' or 'fp8'")
        self.cache_dtype = cache_dtype
        self.backend = self._choose_backend(backend)
        check_drafting(model, num_speculative_tokens)
        self.drafting = Drafting(num_speculative_tokens)

    def generate(
        self, prompt_ids: list[list[int]], params: SamplingParams, seeds: list[list[int]] | None = None
    ) -> list[list[Completion]]:
        """Sample `params.n` completions of each prompt: a list per prompt, in order.

        seeds: optional explicit seed of each request, [prompts][n], in place of (params.seed, prompt, completion); use
        it to make a completion independent of how prompts are split over calls or processes.
        A completion also ends, with "length", where prompt + completion reach `max_position_embeddings`.

        With `params.record_routing` completions carry the experts chosen for their tokens, with and without drafts.

        Raises ValueError on an empty or too long prompt, a token id outside the vocabulary, seeds of another shape, or
        routing to record of a policy without MoE layers; FloatingPointError when the policy's logits are not finite.
        """
        room = self.config.max_position_embeddings
        check_prompts(prompt_ids, self.config.vocab_size, room, f"max_position_embeddings={room}")
        sampling = self._sampling(params)
        if not prompt_ids:
            return []
        streams = request_streams(params.seed, len(prompt_ids), params.n, seeds)
        run = _Run(self, prompt_ids, params, streams)
        run.sample(sampling)
        return run.completions()

    def _choose_backend(self, backend: str) -> str:
        if backend not in ("auto", "cpu", "reference"):
            raise ValueError(f"backend={backend!r}: use 'auto', 'cpu' or 'reference'")
        if self.cache_dtype == "fp8" and backend == "cpu":
            raise ValueError("cache_dtype='fp8' is not in the compiled decoder; use backend='auto' or 'reference'")
        if backend == "reference" or self.cache_dtype == "fp8":
            return "reference"
        weight = self.model.lm_head.weight
        fits = weight.device.type == "cpu" and weight.dtype == torch.float32
        if fits and is_cpu_decoder_available():
            return "cpu"
        if backend == "cpu":
            raise ValueError(
                f"backend='cpu' needs an fp32 policy on the CPU and a C++ compiler (policy: {weight.dtype} on "
                f"{weight.device}); use backend='auto'"
            )
        return "reference"

    def _check_eos(self, eos: int | list[int] | None) -> list[int]:
        eos_token_ids = as_token_ids(eos)
        for token in eos_token_ids:
            if not 0 <= token < self.config.vocab_size:
                raise ValueError(
                    f"eos_token_id={token} is outside the vocabulary [0, {self.config.vocab_size}): "
                    "pass the tokenizer's"
                )
        return eos_token_ids

    def _sampling(self, params: SamplingParams) -> DecodeSampling:
        vocab_size = self.config.vocab_size
        for token in params.banned_token_ids:
            if not 0 <= token < vocab_size:
                raise ValueError(f"banned_token_ids has {token}, outside the vocabulary [0, {vocab_size}): remove it")
        if len(set(params.banned_token_ids)) == vocab_size:
            raise ValueError(f"banned_token_ids bans all {vocab_size} tokens: leave at least one")
        banned_V = torch.zeros(vocab_size, dtype=torch.bool)
        banned_V[list(params.banned_token_ids)] = True
        stop_V = torch.zeros(vocab_size, dtype=torch.bool)
        stop_V[self.eos_token_ids] = True
        device = self.model.lm_head.weight.device
        return DecodeSampling(params.temperature, params.top_p, params.top_k, banned_V.to(device), stop_V.to(device))


class _Run:
    """One `generate` call: requests in order (completions of a prompt side by side), slots, and the decoder."""

    def __init__(self, engine: RolloutEngine, prompt_ids: list[list[int]], params: SamplingParams, streams: np.ndarray):
        self.prompt_ids, self.n = prompt_ids, params.n
        num_requests = len(prompt_ids) * params.n
        lengths = np.repeat([len(prompt) for prompt in prompt_ids], params.n)
        room = engine.config.max_position_embeddings - lengths
        limit = np.minimum(params.max_tokens, room).astype(np.int32)
        self.requests = DecodeRequests(
            slot=np.full(num_requests, -1, np.int32),
            token=np.repeat([prompt[-1] for prompt in prompt_ids], params.n).astype(np.int32),
            position=(lengths - 1).astype(np.int32),
            stream=streams.reshape(-1),
            limit=limit,
            count=np.zeros(num_requests, np.int32),
            status=np.full(num_requests, STATUS_RUNNING, np.int32),
            token_ids=np.zeros((num_requests, int(limit.max())), np.int32),
            logps=np.zeros((num_requests, int(limit.max())), np.float32),
            drafted=np.zeros(num_requests, np.int32),
            accepted=np.zeros(num_requests, np.int32),
        )
        self.drafting = engine.drafting
        self.next_request = 0
        self.active = np.zeros(0, np.int32)
        num_slots = min(engine.max_batch, num_requests)
        self.free_slots = list(range(num_slots))[::-1]
        # One slot more keeps the prompt of the completions that did not fit yet.
        self.spare_slot, self.spare_prompt = num_slots, -1
        capacity = int((lengths + limit).max())
        weights = read_weights(engine.model, capacity, with_mtp=self.drafting.num_tokens > 0)
        arguments = weights, num_slots + 1, capacity, engine.num_threads
        if engine.backend == "cpu":
            self.decoder = CpuDecoder(*arguments, record_routing=params.record_routing)
        else:
            self.decoder = ReferenceDecoder(*arguments, engine.cache_dtype, params.record_routing)
        self.routing: list[torch.Tensor | None] = [None] * num_requests
        self.prompt_routing: list[torch.Tensor | None] = [None] * len(prompt_ids)

    @torch.no_grad()
    def sample(self, sampling: DecodeSampling) -> None:
        """Until every request has ended."""
        num_requests = len(self.requests.slot)
        while self.next_request < num_requests or len(self.active):
            self._admit()
            num_steps = STEPS_PER_CALL if self.next_request == num_requests else STEPS_PER_CALL_QUEUED
            with self.drafting.chosen(self.requests, self.active) as num_drafts:
                self.decoder.decode(self.requests, self.active, num_steps, sampling, num_drafts)
            self._retire()

    def completions(self) -> list[list[Completion]]:
        """What was sampled, [prompts][n]."""
        flat = []
        for index, count in enumerate(self.requests.count.tolist()):
            reason = "stop" if self.requests.status[index] == STATUS_STOP else "length"
            token_ids, logps = self.requests.token_ids[index, :count], self.requests.logps[index, :count]
            routing = self.routing[index], self.prompt_routing[index // self.n]
            flat.append(Completion(token_ids.tolist(), logps.tolist(), reason, *routing))
        return [flat[start : start + self.n] for start in range(0, len(flat), self.n)]

    def _admit(self) -> None:
        """Give free slots to waiting requests; a prompt's caches are computed once and copied to its completions."""
        first, last = self.next_request, min(self.next_request + len(self.free_slots), len(self.requests.slot))
        if first == last:
            return
        admitted = np.arange(first, last, dtype=np.int32)
        for index in admitted:
            self.requests.slot[index] = self.free_slots.pop()
        self.next_request = last
        self.active = np.concatenate([self.active, admitted])
        prompts = admitted // self.n
        new_prompts = [p for p in np.unique(prompts).tolist() if p != self.spare_prompt]
        slots_of = {p: self.requests.slot[admitted[prompts == p]].tolist() for p in np.unique(prompts).tolist()}
        self._prefill(new_prompts, slots_of)
        if self.decoder.routing is not None:
            self._record_prompts(new_prompts, slots_of)
        for p, slots in slots_of.items():
            source = self.spare_slot if p == self.spare_prompt else slots[0]
            self._fork(p, source, [slot for slot in slots if slot != source])
        unfinished = int(prompts[-1])
        if last < (unfinished + 1) * self.n and unfinished != self.spare_prompt:
            self._fork(unfinished, slots_of[unfinished][0], [self.spare_slot])
            self.spare_prompt = unfinished

    def _prefill(self, prompts: list[int], slots_of: dict[int, list[int]]) -> None:
        """All tokens but the last, which each completion feeds itself to get its first logits."""
        bodies = [(slots_of[p][0], self.prompt_ids[p][:-1]) for p in prompts]
        if not any(body for _, body in bodies):
            return
        self.decoder.prefill(
            np.concatenate([np.full(len(body), slot, np.int32) for slot, body in bodies]),
            np.concatenate([np.asarray(body, np.int32) for _, body in bodies]),
            np.concatenate([np.arange(len(body), dtype=np.int32) for _, body in bodies]),
        )

    def _record_prompts(self, prompts: list[int], slots_of: dict[int, list[int]]) -> None:
        for p in prompts:
            self.prompt_routing[p] = self._recorded(slots_of[p][0], 0, len(self.prompt_ids[p]) - 1)

    def _record(self, requests: np.ndarray) -> None:
        """Of requests that have ended, before others get their slots."""
        for index in requests.tolist():
            first = len(self.prompt_ids[index // self.n]) - 1
            self.routing[index] = self._recorded(self.requests.slot[index], first, int(self.requests.count[index]))

    def _recorded(self, slot: int, first: int, count: int) -> torch.Tensor:
        return self.decoder.routing[slot, first : first + count].to("cpu", copy=True)

    def _fork(self, prompt: int, source: int, slots: list[int]) -> None:
        length = len(self.prompt_ids[prompt]) - 1
        if slots and length:
            self.decoder.fork(source, slots, length)

    def _retire(self) -> None:
        status = self.requests.status[self.active]
        if (status == STATUS_NOT_FINITE).any():
            index = int(self.active[status == STATUS_NOT_FINITE][0])
            raise FloatingPointError(
                f"the policy's logits are not finite for prompt {index // self.n} at completion token "
                f"{self.requests.count[index]}: the weights hold NaN or overflow; lower the learning "
                "rate or clip gradients"
            )
        ended = self.active[status != STATUS_RUNNING]
        if self.decoder.routing is not None:
            self._record(ended)
        self.free_slots.extend(self.requests.slot[ended].tolist())
        self.active = self.active[status == STATUS_RUNNING]
