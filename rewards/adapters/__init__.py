"""The rewards in the signatures of other trainers and evaluators. Importing this needs none of them.

TRL                         the functions themselves, plain and chat; `async_reward(function)` runs one off-thread
verl                        `verl_compute_score`, keyword, positional and batch
verifiers                   `VerifiersReward(function)`
reasoning-gym               `ReasoningGymTask(name)`: rows to train on, and their scorer
"""

from rewards.adapters.reasoning_gym import ReasoningGymTask
from rewards.adapters.trl import AsyncReward, async_reward
from rewards.adapters.verifiers import VerifiersReward
from rewards.adapters.verl import verl_compute_score

__all__ = [
    "AsyncReward",
    "ReasoningGymTask",
    "VerifiersReward",
    "async_reward",
    "verl_compute_score",
]
