"""Rewards for verifiers: functions of its `Rubric` (up to 0.3) and reward hooks of its v1 tasks (0.4)."""

import asyncio
from collections.abc import Mapping
from typing import Any

from rewards.registry import RewardFunction, load_reward, reward_name


class VerifiersReward:
    """One of our reward functions, for one rollout at a time.

    `vf.Rubric(funcs=[VerifiersReward("accuracy"), ...])` calls it with prompt, completion, answer, info and state; a v1
    task with task and trace, where the class body says `correct = vf.reward(VerifiersReward("accuracy"))`.

    The reward's columns are `answer`, the entries of `info`, and in v1 the task data's own fields. Text is the last
    assistant message. A None of the reward becomes 0.0, since verifiers adds up numbers only. Async, so that verifiers
    goes on with other rollouts meanwhile; pickles; keeps the reward's `__name__`.
    """

    def __init__(self, reward: RewardFunction | str, **options: Any):
        self.function = load_reward(reward, **options) if isinstance(reward, str) else reward
        self.__name__ = reward_name(self.function)

    # The parameters are what verifiers looks for by name. A return annotation of list would make it a group function.
    async def __call__(
        self,
        prompt: Any = None,
        completion: Any = None,
        answer: Any = None,
        info: Any = None,
        state: Any = None,
        task: Any = None,
        trace: Any = None,
    ) -> float:
        """TypeError when neither a completion nor a trace is given."""
        columns = dict(info) if isinstance(info, Mapping) else {}
        if trace is not None:
            completion, prompt = trace.last_reply, task.prompt
            columns |= {name: value for name, value in task if name != "prompt"}
        elif completion is None:
            raise TypeError("a verifiers reward needs the completion of a rubric, or the trace of a task")
        if answer is not None:
            columns.pop("solution", None)  # It would be read first; the answer is the gold, whatever info tells of.
            columns["answer"] = answer
        return await asyncio.to_thread(self._score, prompt, completion, columns)

    def _score(self, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> float:
        lists = {name: [value] for name, value in columns.items() if value is not None}
        (value,) = self.function(prompts=[prompt], completions=[completion], **lists)
        return 0.0 if value is None else float(value)
