"""Sampling completions: `RolloutEngine` for our policy, `HFRolloutEngine` for any transformers model,
`VLLMRolloutEngine` for what vLLM serves."""

from r1lab.rollout.engine import RolloutEngine
from r1lab.rollout.hf import HFRolloutEngine
from r1lab.rollout.sampling import SamplingParams, generate_of
from r1lab.rollout.vllm import VLLMRolloutEngine, build_vllm_engine

__all__ = [
    "HFRolloutEngine", "RolloutEngine", "SamplingParams", "VLLMRolloutEngine", "build_vllm_engine", "generate_of",
]  # fmt: skip
