"""verifiers calls our rewards: by the parameters it looks for, and for real where it is installed."""

import asyncio
import inspect
import pickle
from importlib.util import find_spec

import pytest

from rewards.adapters import VerifiersReward

RIGHT = [{"role": "assistant", "content": r"so \boxed{4}"}]
WRONG = [{"role": "assistant", "content": r"so \boxed{5}"}]


def score(reward, **arguments):
    return asyncio.run(VerifiersReward(reward)(**arguments))


def test_a_rubric_function_takes_one_rollout():
    assert score("accuracy", prompt=[], completion=RIGHT, answer="4", state={}, info={}) == 1.0
    assert score("accuracy", completion=WRONG, answer="4") == 0.0
    assert score("accuracy", completion=r"\boxed{4}", info={"solution": "4"}) == 1.0
    assert score("accuracy", completion=RIGHT, answer="4", info={"solution": "worked out below"}) == 1.0


def test_none_becomes_zero():
    assert score("accuracy", completion=RIGHT, answer="") == 0.0


def test_it_is_no_group_function():
    # A rubric takes a function with one of these parameters, or that returns a list, for one over a whole group.
    signature = inspect.signature(VerifiersReward("accuracy"))
    assert not set(signature.parameters) & {"states", "prompts", "completions", "answers", "tasks", "infos"}
    assert signature.return_annotation is float


def test_name_options_and_pickle():
    reward = pickle.loads(pickle.dumps(VerifiersReward("language_consistency", language="zh")))
    assert reward.__name__ == "language_consistency_reward"
    assert asyncio.run(reward(completion="我们")) == 1.0


def test_missing_arguments():
    with pytest.raises(TypeError, match="completion of a rubric, or the trace of a task"):
        score("accuracy", answer="4")
    with pytest.raises(TypeError, match="solution, answer"):
        score("accuracy", completion=RIGHT)


@pytest.mark.skipif(find_spec("verifiers") is None, reason="verifiers is not installed")
class TestInstalled:
    @pytest.mark.parametrize(("reply", "total"), [(RIGHT, 2.25), (WRONG, 0.25)])
    def test_v1_task(self, reply, total):
        vf = pytest.importorskip("verifiers.v1")
        from verifiers.v1.trace import TraceTask

        class Data(vf.TaskData):
            answer: str

        class MathTask(vf.Task[Data]):
            correct = vf.reward(VerifiersReward("accuracy"), weight=2.0)
            shape = vf.reward(VerifiersReward("tag_count", prefilled_think=True))

        task = MathTask(Data(prompt="2 + 2?", answer="4"))
        trace = vf.Trace.model_construct(
            task=TraceTask(type="MathTask", data=task.data), root_reply=reply[0]["content"], rewards={}, metrics={}
        )
        asyncio.run(task.score(trace))
        assert set(trace.rewards) == {"accuracy_reward", "tag_count_reward"} and trace.reward == total

    def test_rubric(self):
        vf = pytest.importorskip("verifiers")
        if not hasattr(vf, "Rubric"):
            pytest.skip("this verifiers has tasks in place of rubrics")
        rubric = vf.Rubric(funcs=[VerifiersReward("accuracy"), VerifiersReward("tag_count")], weights=[1.0, 0.5])
        state = {"prompt": [], "completion": RIGHT, "answer": "4", "info": {}, "task": "math"}
        asyncio.run(rubric.score_rollout(state))
        assert state["reward"] == 1.0
        assert state["metrics"] == {"accuracy_reward": 1.0, "tag_count_reward": 0.0}
