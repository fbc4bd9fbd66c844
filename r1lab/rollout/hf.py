"""Rollouts from any transformers causal language model, with the same `generate` as `RolloutEngine`."""

import torch

from r1lab.rollout.sampling import SamplingParams
from r1lab.types import Completion


class HFRolloutEngine:
    """Samples with `model.generate` on left-padded prompts. Slower than `RolloutEngine`, and its seeds are per batch:
    the same seed gives the same completions only for the same prompts, batch size and device.
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
        self.eos_token_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        self.pad_token_id = pad if pad is not None else self.eos_token_ids[0] if self.eos_token_ids else 0
        self.max_batch = max_batch

    @torch.no_grad()
    def generate(
        self, prompt_ids: list[list[int]], params: SamplingParams, seeds: list[list[int]] | None = None
    ) -> list[list[Completion]]:
        """Sample `params.n` completions of each prompt: a list per prompt, in order. logps are of the softmax at the
        sampling temperature, before top-k, top-p and bans (temperature 0: at temperature 1).

        Raises ValueError on an empty prompt, a token id outside the vocabulary, or `seeds` (not supported here).
        """
        if seeds is not None:
            raise ValueError("HFRolloutEngine seeds per batch: set SamplingParams.seed and leave seeds=None")
        self._check_prompts(prompt_ids)
        requests = [prompt for prompt in prompt_ids for _ in range(params.n)]
        was_training = self.model.training
        self.model.eval()
        completions = []
        # transformers samples from torch's global generators: borrow them and give them back as they were.
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(params.seed % 2**63)
            for start in range(0, len(requests), self.max_batch):
                completions += self._generate_batch(requests[start : start + self.max_batch], params)
        self.model.train(was_training)
        return [completions[start : start + params.n] for start in range(0, len(completions), params.n)]

    def sync_weights(self) -> None:
        """Nothing to do: `generate` runs the model itself."""

    def _check_prompts(self, prompt_ids: list[list[int]]) -> None:
        vocab_size = self.model.get_input_embeddings().num_embeddings
        for index, prompt in enumerate(prompt_ids):
            if not len(prompt):
                raise ValueError(f"prompt {index} is empty: give at least one token (a BOS token will do)")
            for token in prompt:
                if not 0 <= token < vocab_size:
                    raise ValueError(
                        f"prompt {index} has token id {token}, outside the vocabulary [0, {vocab_size}): check that "
                        "the tokenizer belongs to the model"
                    )

    def _generate_batch(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        width = max(len(prompt) for prompt in prompts)
        input_ids = torch.full((len(prompts), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        device = self.model.device
        output = self.model.generate(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            return_dict_in_generate=True,
            output_logits=True,
            **self._generation_options(params),
        )
        temperature = params.temperature or 1.0
        tokens_BT = output.sequences[:, width:]
        # One step at a time: [B, V] logits, not [B, T, V].
        logps_BT = torch.stack(
            [
                (logits.float() / temperature).log_softmax(-1).gather(-1, tokens_BT[:, t, None].to(logits.device))[:, 0]
                for t, logits in enumerate(output.logits)
            ],
            dim=1,
        )
        return [self._completion(ids, logps) for ids, logps in zip(tokens_BT.tolist(), logps_BT.tolist())]

    def _generation_options(self, params: SamplingParams) -> dict:
        options = {
            "max_new_tokens": params.max_tokens,
            "do_sample": params.temperature > 0,
            "eos_token_id": self.eos_token_ids or None,
            "pad_token_id": self.pad_token_id,
        }
        if params.temperature > 0:
            options |= {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
        if params.banned_token_ids:
            options["suppress_tokens"] = list(params.banned_token_ids)
        return options

    def _completion(self, token_ids: list[int], logps: list[float]) -> Completion:
        """Cut after the first end token; what follows is padding."""
        ends = [index for index, token in enumerate(token_ids) if token in self.eos_token_ids]
        if not ends:
            return Completion(token_ids, logps, "length")
        return Completion(token_ids[: ends[0] + 1], logps[: ends[0] + 1], "stop")
