"""What a step leaves on its rollouts for the traces: training logps, entropies, reasons."""

import pytest
import torch
from grpo_cases import make_groups, make_policy, make_trainer

from r1lab.grpo.score import RewardError, score_groups
from r1lab.types import Completion, Prompt, Rollout, RolloutGroup

ADVANTAGES = [[1.0, -1.0, 0.0], [0.0, 0.7, -0.2]]


def _expected(policy, prompt, rollout, temperature):
    """(logps, entropies) of one row alone, through plain log_softmax."""
    ids = torch.tensor([prompt.token_ids + rollout.completion.token_ids])
    with torch.no_grad():
        logits = policy(ids).logits[0, len(prompt.token_ids) - 1 : -1] / temperature
    log_probs = torch.log_softmax(logits, -1)
    logps = log_probs[torch.arange(len(log_probs)), torch.tensor(rollout.completion.token_ids)]
    return logps.tolist(), (-(log_probs.exp() * log_probs).sum(-1)).tolist()


@pytest.mark.parametrize(
    "changes", [{}, {"num_iterations": 2}, {"steps_per_generation": 2, "temperature": 0.7}, {"max_tokens_per_batch": 1}]
)
def test_trained_rollouts_keep_the_logps_and_entropies_from_before_the_update(changes):
    policy, groups = make_policy(), make_groups(ADVANTAGES)
    make_trainer(policy, **changes).updater.update(groups)
    for group in groups:
        for rollout in group.rollouts:
            if rollout.advantage == 0:
                assert rollout.train_logps is None and rollout.entropies is None
                continue
            logps, entropies = _expected(make_policy(), group.prompt, rollout, changes.get("temperature", 1.0))
            assert rollout.train_logps == pytest.approx(logps, abs=1e-5)
            assert rollout.entropies == pytest.approx(entropies, abs=1e-5)


def test_masked_completions_keep_none():
    groups = make_groups(ADVANTAGES, finish_reason="length")
    make_trainer(make_policy(), mask_truncated_completions=True, beta=0.1).updater.update(groups)
    assert all(rollout.train_logps is None for group in groups for rollout in group.rollouts)


def _groups():
    completion = Completion([1], [-0.1], "stop")
    return [RolloutGroup(Prompt("p", [5]), [Rollout(completion, text) for text in ("a", "bb")])]


def test_rewards_log_their_reasons():
    def judge(completions, log_extra, **columns):
        log_extra("judge_reason", [f"length {len(one)}" for one in completions])
        return [1.0] * len(completions)

    def silent(completions, **columns):
        return [0.0] * len(completions)

    groups = _groups()
    score_groups(groups, [judge, silent], [1.0, 1.0])
    assert [r.extras for r in groups[0].rollouts] == [{"judge_reason": "length 1"}, {"judge_reason": "length 2"}]


def test_a_reason_for_some_completions_only_is_a_mistake():
    def judge(completions, log_extra, **columns):
        log_extra("judge_reason", ["only one"])
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match="'judge' logged 1 values of 'judge_reason' for 2 completions"):
        score_groups(_groups(), [judge], [1.0])
