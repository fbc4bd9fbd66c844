"""Sampling completions: `RolloutEngine` for our policy, `HFRolloutEngine` for any transformers model."""

from r1lab.rollout.engine import RolloutEngine
from r1lab.rollout.hf import HFRolloutEngine
from r1lab.rollout.sampling import SamplingParams

__all__ = ["HFRolloutEngine", "RolloutEngine", "SamplingParams"]
