"""Group Relative Policy Optimization: score -> advantage -> batch -> logps -> loss -> update."""

from r1lab.config import GRPOConfig
from r1lab.grpo.advantage import group_advantages
from r1lab.grpo.loss import policy_loss
from r1lab.grpo.trainer import GRPOTrainer, StepOutput, TrainingDiverged

__all__ = ["GRPOConfig", "GRPOTrainer", "StepOutput", "TrainingDiverged", "group_advantages", "policy_loss"]
