"""vLLM inside the training process, on its GPU: started and fed with weights by TRL."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from trl.generation.vllm_generation import VLLMGeneration, extract_logprobs

from r1lab.config import GRPOConfig
from r1lab.rollout.vllm_requests import VLLMRequest, VLLMSample, checkpoint_tensors, read_samples


class _Generation(VLLMGeneration):
    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        """TRL sends the parameters under the module's names; vLLM looks for a checkpoint's, routing bias included."""
        yield from checkpoint_tensors(self.model)


class ColocatedVLLM:
    """An engine of this process's own."""

    is_shared = False

    def __init__(self, config: GRPOConfig, policy: nn.Module, tokenizer: Any, accelerator: Accelerator):
        """Raises ValueError when the policy was not loaded from a checkpoint, which vLLM reads too."""
        if not policy.name_or_path:
            raise ValueError("vllm_mode=colocate loads the policy's checkpoint: give one as model_name_or_path")
        self.generation = _Generation(
            model=policy,
            accelerator=accelerator,
            processing_class=tokenizer,
            mode="colocate",
            gpu_memory_utilization=config.vllm_gpu_memory_utilization,
            max_model_length=config.vllm_max_model_length,
            max_num_seqs=config.generation_batch_size // accelerator.num_processes,
            enable_sleep_mode=config.vllm_enable_sleep_mode,
            model_impl=config.vllm_model_impl,
        )
        self.context = config.vllm_max_model_length
        self.forgets_weights = config.vllm_enable_sleep_mode
        """Whether the weights are gone after `sample`."""

    def push(self, policy: nn.Module) -> None:
        """The weights of the policy that this was built with."""
        self.generation.sync_weights()

    def sample(self, asked: list[VLLMRequest]) -> list[list[VLLMSample]]:
        """The samples of each request, in order."""
        from vllm import SamplingParams

        if not asked:
            return []
        llm = self.generation.llm
        if self.forgets_weights:
            llm.wake_up(tags=["kv_cache"])
        # Not TRL's `generate`, which has one seed for all prompts.
        outputs = llm.generate(
            [{"prompt_token_ids": request.prompt_ids} for request in asked],
            sampling_params=[SamplingParams(**request.sampling, logprobs=0, detokenize=False) for request in asked],
            use_tqdm=False,
        )
        if self.forgets_weights:
            llm.sleep(level=2)
        return [_read(request, output) for request, output in zip(asked, outputs, strict=True)]


def _read(request: VLLMRequest, output: Any) -> list[VLLMSample]:
    completion_ids = [list(one.token_ids) for one in output.outputs]
    return read_samples(request, completion_ids, *extract_logprobs([output]))
