"""Rollouts from any transformers causal language model, with the same `generate` as `RolloutEngine`."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, SuppressTokensLogitsProcessor

from r1lab.rollout.sampling import (
    SamplingParams,
    as_token_ids,
    check_no_recording,
    check_prompts,
    request_streams,
)
from r1lab.types import Completion


class HFRolloutEngine:
    """Samples with `model.generate` on left-padded prompts. Slower than `RolloutEngine`, and its randomness is per
    batch: the same seeds give the same completions only for the same prompts, batch size and device.

    The model's own generation defaults (a repetition penalty, a top-k, ...) play no part: completions come from the
    distribution that the loss differentiates.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        max_batch: int = 64,
    ):
        """eos_token_id: token(s) that end a completion (None: the generation config's). pad_token_id: fills the left of
        short prompts, masked (None: the config's, else the first end token, else 0). max_batch: the most sequences per
        `model.generate` call."""
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch}: allow at least 1 sequence")
        eos = model.generation_config.eos_token_id if eos_token_id is None else eos_token_id
        pad = model.generation_config.pad_token_id if pad_token_id is None else pad_token_id
        self.model = model
        self.vocab_size = model.get_input_embeddings().num_embeddings
        self.eos_token_ids = as_token_ids(eos)
        # Old configs write -1 for "none", and some tokenizers have a pad token that the model has no embedding for.
        is_usable = pad is not None and 0 <= pad < self.vocab_size
        self.pad_token_id = pad if is_usable else self.eos_token_ids[0] if self.eos_token_ids else 0
        self.max_batch = max_batch

    @torch.no_grad()
    def generate(
        self, prompt_ids: list[list[int]], params: SamplingParams, seeds: list[list[int]] | None = None
    ) -> list[list[Completion]]:
        """Sample `params.n` completions of each prompt: a list per prompt, in order. logps are of the softmax at the
        sampling temperature, before top-k, top-p and bans (temperature 0: at temperature 1).

        seeds: optional explicit seed of each request, [prompts][n], in place of (params.seed, prompt, completion). The
        requests of one `model.generate` call share a generator, seeded from all of theirs: a completion depends on the
        requests beside it, not on calls before. The global generators are left as they were.
        A completion also ends, with "length", where the longest prompt of its batch + completion reach
        `max_position_embeddings`.

        Raises ValueError on an empty or too long prompt, a token id outside the vocabulary, seeds of another shape, a
        ban on every token, or `record_routing`.
        """
        check_no_recording(params, "HFRolloutEngine")
        check_prompts(prompt_ids, self.vocab_size, self._context)
        if len(set(params.banned_token_ids)) >= self.vocab_size:
            raise ValueError(f"banned_token_ids bans all {self.vocab_size} tokens: leave at least one")
        requests = [prompt for prompt in prompt_ids for _ in range(params.n)]
        streams = request_streams(params.seed, len(prompt_ids), params.n, seeds).reshape(-1)
        completions = []
        with self._borrowed_model():
            for start in range(0, len(requests), self.max_batch):
                batch = slice(start, start + self.max_batch)
                torch.manual_seed(_batch_seed(streams[batch]))
                completions += self._generate_batch(requests[batch], params)
        return [completions[start : start + params.n] for start in range(0, len(completions), params.n)]

    @property
    def _context(self) -> int:
        return getattr(self.model.config, "max_position_embeddings", None) or 1 << 30

    @contextmanager
    def _borrowed_model(self) -> Iterator[None]:
        """In evaluation mode and without its generation defaults, which `generate` would fill in for what we leave
        out; transformers samples from torch's global generators. All are given back as they were."""
        was_training, defaults = self.model.training, self.model.generation_config
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self.model.eval()
            self.model.generation_config = GenerationConfig()
            try:
                yield
            finally:
                self.model.generation_config = defaults
                self.model.train(was_training)

    def _generate_batch(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        width = max(len(prompt) for prompt in prompts)
        input_ids = torch.full((len(prompts), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        device = self.model.device
        recorder = _LogpsRecorder(params.temperature or 1.0)
        processors = LogitsProcessorList([recorder])
        if params.banned_token_ids:
            processors.append(SuppressTokensLogitsProcessor(list(params.banned_token_ids), device=device))
        options = {
            "max_new_tokens": min(params.max_tokens, self._context - width),
            "do_sample": params.temperature > 0,
            "eos_token_id": self.eos_token_ids or None,
            "pad_token_id": self.pad_token_id,
        }
        if params.temperature > 0:
            options |= {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
        sequences = self.model.generate(
            input_ids=input_ids.to(device), attention_mask=mask.to(device), logits_processor=processors, **options
        )
        logps_BT = recorder.finish(sequences)
        rows = zip(sequences[:, width:].tolist(), logps_BT.tolist(), strict=True)
        return [self._completion(ids, logps) for ids, logps in rows]

    def _completion(self, token_ids: list[int], logps: list[float]) -> Completion:
        """Cut after the first end token; what follows is padding."""
        ends = [index for index, token in enumerate(token_ids) if token in self.eos_token_ids]
        if not ends:
            return Completion(token_ids, logps, "length")
        return Completion(token_ids[: ends[0] + 1], logps[: ends[0] + 1], "stop")


class _LogpsRecorder(LogitsProcessor):
    """Passes the logits on and keeps the logp of each token sampled from them.

    It stands before every other processor. One step's [B, V] is held at a time, where `output_logits` would hold all
    T of them: 40 GB for 64 x 1024 tokens of a vocabulary of 152k.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature
        self.logps: list[torch.Tensor] = []
        self._pending_BV: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._take(input_ids[:, -1])
        self._pending_BV = (scores.float() / self.temperature).log_softmax(-1)
        return scores

    def finish(self, sequences: torch.Tensor) -> torch.Tensor:
        """sequences [B, prompt + T] -> logps [B, T]."""
        self._take(sequences[:, -1])
        return torch.stack(self.logps, dim=1)

    def _take(self, tokens_B: torch.Tensor) -> None:
        if self._pending_BV is not None:
            self.logps.append(self._pending_BV.gather(-1, tokens_B[:, None])[:, 0])
            self._pending_BV = None


def _batch_seed(streams: np.ndarray) -> int:
    """uint64 streams of a batch's requests -> a seed for `torch.manual_seed`."""
    digest = hashlib.blake2b(streams.astype("<u8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
