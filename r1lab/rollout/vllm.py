"""Rollouts by vLLM, through TRL's client: a server of its own, or an engine inside each training process.

vLLM computes with kernels and a precision of its own: its logps are not exactly training's, and `r1lab.grpo.mismatch`
corrects for that.
"""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from r1lab.config import GRPOConfig
from r1lab.rollout.sampling import SamplingParams, as_token_ids, check_no_recording, check_prompts
from r1lab.rollout.vllm_requests import plan_requests, to_completions
from r1lab.rollout.vllm_server import VLLMServer
from r1lab.types import Completion


class VLLMRolloutEngine:
    """Samples with vLLM, which keeps a copy of the policy's weights. After `weights_changed` the copy is renewed, once,
    before the next completions.

    Logps are of the distribution that was drawn from: at the sampling temperature, after top-k, top-p and bans
    (temperature 0: at temperature 1). The same seeds give the same random numbers, but vLLM's arithmetic may depend on
    what else it is computing.
    """

    def __init__(self, backend: Any, policy: nn.Module, eos_token_id: int | list[int] | None, accelerator: Accelerator):
        """backend: a `VLLMServer`, a `ColocatedVLLM`, or None on a process that another one samples for."""
        eos = policy.generation_config.eos_token_id if eos_token_id is None else eos_token_id
        self.backend, self.model, self.accelerator = backend, policy, accelerator
        self.eos_token_ids = as_token_ids(eos)
        self.pad_token_id = self.eos_token_ids[0] if self.eos_token_ids else 0
        self.vocab_size = policy.get_input_embeddings().num_embeddings
        self.is_stale = True

    def weights_changed(self) -> None:
        """To be called when the policy's weights have changed."""
        self.is_stale = True

    def generate(
        self, prompt_ids: list[list[int]], params: SamplingParams, seeds: list[list[int]] | None = None
    ) -> list[list[Completion]]:
        """Sample `params.n` completions of each prompt: a list per prompt, in order. Not with a server on any process
        but the main one.

        seeds: optional explicit seed of each completion, [prompts][n], in place of (params.seed, prompt, completion).
        A completion also ends, with "length", where prompt + completion reach the longest that vLLM takes.

        Raises ValueError on an empty or too long prompt, a token id outside the vocabulary, seeds of another shape, a
        ban on every token or `record_routing`; ConnectionError when the server fails.
        """
        check_no_recording(params, "VLLMRolloutEngine")
        if self.backend is None:
            raise RuntimeError("the main process alone talks to the vLLM server: use generate_together")
        context = self.backend.context or getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        check_prompts(prompt_ids, self.vocab_size, context)
        if len(set(params.banned_token_ids)) >= self.vocab_size:
            raise ValueError(f"banned_token_ids bans all {self.vocab_size} tokens: leave at least one")
        plans = plan_requests(prompt_ids, params, seeds, self.eos_token_ids, context)
        if not plans:
            return []
        if self.is_stale:
            self.backend.push(self.model)
        self.is_stale = self.backend.forgets_weights
        answers = iter(self.backend.sample([request for plan in plans for request in plan]))
        by_prompt = [[sample for _ in plan for sample in next(answers)] for plan in plans]
        return [to_completions(samples, params, self.eos_token_ids) for samples in by_prompt]

    def generate_together(
        self, prompt_ids: list[list[int]], params: SamplingParams, seeds: list[list[int]]
    ) -> list[list[Completion]]:
        """`generate`, called by all processes at once, each with prompts of its own or none. With a server the main
        process asks for all of them. What goes wrong there is raised everywhere."""
        if self.accelerator.num_processes == 1 or (self.backend is not None and not self.backend.is_shared):
            return self.generate(prompt_ids, params, seeds)
        parts = gather_object([(prompt_ids, seeds)])
        all_ids, all_seeds = ([row for part in parts for row in part[i]] for i in (0, 1))
        answers = _on_main(self.accelerator, lambda: self.generate(all_ids, params, all_seeds))
        start = sum(len(ids) for ids, _ in parts[: self.accelerator.process_index])
        return answers[start : start + len(prompt_ids)]


def build_vllm_engine(
    policy: nn.Module, tokenizer: Any, config: GRPOConfig, accelerator: Accelerator
) -> VLLMRolloutEngine:
    """The engine that `vllm_mode` names; to be called by all processes.

    Raises ValueError when vLLM or TRL's part is missing or the processes share the policy's weights out, and what
    `VLLMServer` and `ColocatedVLLM` raise.
    """
    _check_packages()
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"use_vllm needs the whole policy on each process, and {accelerator.distributed_type.value} shares it out: "
            "launch with --multi_gpu"
        )
    if config.vllm_mode == "colocate":
        from r1lab.rollout.vllm_colocated import ColocatedVLLM

        backend = ColocatedVLLM(config, policy, tokenizer, accelerator)
        return VLLMRolloutEngine(backend, policy, tokenizer.eos_token_id, accelerator)
    engine = VLLMRolloutEngine(None, policy, tokenizer.eos_token_id, accelerator)

    def connect() -> None:
        engine.backend = VLLMServer(config, policy.name_or_path or "MODEL", accelerator.device)

    _on_main(accelerator, connect)
    return engine


def _check_packages() -> None:
    import trl
    from trl.import_utils import is_vllm_available

    try:
        import trl.generation.vllm_client
        import trl.generation.vllm_generation  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"use_vllm=true needs TRL 1.16's vLLM client, and TRL {trl.__version__} is installed: "
            "pip install 'trl[vllm]>=1.16'"
        ) from error
    if not is_vllm_available():
        raise ValueError(
            "use_vllm=true needs vLLM, which is not installed: pip install 'trl[vllm]' (Linux with an NVIDIA GPU), or "
            "leave use_vllm out"
        )


def _on_main(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """What the main process's action returned, on every process; its errors are raised on all, so that none waits."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except (OSError, ValueError) as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
