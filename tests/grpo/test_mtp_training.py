"""The multi-token-prediction module through RL: kept trained, without a trace in the policy's own update."""

import math

import pytest
import torch
from grpo_cases import EOS, are_equal, largest_difference, make_groups, make_policy, make_trainer, weights_of

from r1lab.checkpoint import load_checkpoint, save_checkpoint
from r1lab.grpo.batch import build_batches
from r1lab.grpo.logps import LogpsModel, completion_logps
from r1lab.model import mtp_hidden_states

MIXED = [[1.0, -1.0, 0.0, 0.5], [0.7, -0.2, -0.5, 0.0], [-1.5, 0.5, 0.5, 0.5]]
LAYER = "model.layers.2."


def split(policy) -> tuple[dict, dict]:
    """(the policy's own weights, the module's)."""
    weights = weights_of(policy)
    return (
        {name: value for name, value in weights.items() if not name.startswith(LAYER)},
        {name: value for name, value in weights.items() if name.startswith(LAYER)},
    )


def updated(weight: float, with_mtp: bool = True, groups=None, **changes):
    policy = make_policy(with_mtp=with_mtp)
    policy.load_state_dict(weights_of(make_policy()), strict=False)
    trainer = make_trainer(policy, mtp_loss_weight=weight, **changes)
    metrics = trainer.updater.update(groups or make_groups(MIXED))
    return policy, metrics


@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 1e-3}, {"steps_per_generation": 2, "num_iterations": 2}])
def test_the_policys_update_is_the_same_with_the_module_trained_or_not(changes):
    plain, plain_metrics = updated(0.0, with_mtp=False, **changes)
    idle, idle_metrics = updated(0.0, **changes)
    trained, metrics = updated(0.5, **changes)
    start = weights_of(make_policy())
    assert largest_difference(split(plain)[0], start) > 1e-4
    for policy in (idle, trained):
        assert largest_difference(split(policy)[0], split(plain)[0]) < 2e-6
    assert are_equal(split(idle)[1], split(make_policy(with_mtp=True))[1])
    assert largest_difference(split(trained)[1], split(idle)[1]) > 1e-4
    assert "mtp/loss" not in plain_metrics
    assert 0 < idle_metrics["mtp/acceptance"] < 1 and metrics["mtp/loss"] > 0
    assert metrics["grad_norm"] == pytest.approx(plain_metrics["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("share", [False, True])
def test_draft_logps_are_the_modules_one_token_behind(share):
    policy = make_policy(with_mtp=True)
    groups = make_groups(MIXED)
    batches, _ = build_batches(groups, pad_token_id=EOS, max_tokens_per_batch=10_000, share_prompts=share)
    model, seen = LogpsModel(policy, with_drafts=True), 0
    for batch in batches:
        logps, entropy, drafts, acceptance = completion_logps(model, batch, 0.7)
        plain = completion_logps(policy, batch, 0.7)
        torch.testing.assert_close(logps, plain[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy, plain[1], atol=1e-5, rtol=0)
        for row, mask in enumerate(batch.completion_mask):
            ids = batch.input_ids[row : row + 1, : int(batch.attention_mask[row].sum())]
            hidden = policy.hidden_states(ids)
            states, _ = mtp_hidden_states(policy, hidden, ids)
            guess = (policy.lm_head(states)[0] / 0.7).log_softmax(-1)
            for column in mask.nonzero()[:, 0].tolist():
                expected = guess[column - 1, ids[0, column + 1]]
                torch.testing.assert_close(drafts[row, column], expected, atol=1e-4, rtol=0)
                seen += 1
        assert not drafts[~batch.completion_mask].any() and not acceptance[~batch.completion_mask].any()
        assert ((acceptance >= 0) & (acceptance <= 1 + 1e-6)).all()
    assert seen > 40


def test_the_modules_loss_falls_and_its_drafts_get_better():
    groups = make_groups([[1.0, 0.5, 0.7, 1.0]] * 3)
    policy = make_policy(with_mtp=True)
    trainer = make_trainer(policy, mtp_loss_weight=1.0, learning_rate=1e-2, max_steps=100)
    history = [trainer.updater.update(groups) for _ in range(25)]
    assert history[-1]["mtp/loss"] < 0.7 * history[0]["mtp/loss"]


def test_a_broken_module_skips_the_update_like_a_broken_policy():
    policy = make_policy(with_mtp=True)
    trainer = make_trainer(policy, mtp_loss_weight=1.0)
    policy.mtp.eh_proj.weight.register_hook(lambda gradient: gradient * math.inf)
    before = weights_of(policy)
    assert trainer.updater.update(make_groups(MIXED))["skipped_updates"] == 1
    assert are_equal(before, weights_of(policy))


def test_steps_draft_log_and_resume_bit_for_bit(tmp_path):
    settings = {"mtp_loss_weight": 0.3, "num_speculative_tokens": 1, "num_prompts": 16, "learning_rate": 5e-3}
    trainer = make_trainer(make_policy(with_mtp=True), **settings)
    first = trainer.step().metrics
    assert {"mtp/acceptance", "mtp/loss", "mtp/drafted_share"} <= set(first)
    path = save_checkpoint(tmp_path, step=1, policy=trainer.policy, state={"trainer": trainer.state_dict()})
    expected = trainer.step()

    again = make_trainer(make_policy(seed=5, with_mtp=True), **settings)
    again.load_state_dict(load_checkpoint(path, policy=again.policy).state["trainer"])
    output = again.step()
    assert are_equal(weights_of(again.policy), weights_of(trainer.policy))
    for name in ("mtp/acceptance", "mtp/loss", "loss", "grad_norm", "reward"):
        assert output.metrics[name] == expected.metrics[name]

    plain = make_trainer(make_policy(with_mtp=True), **settings | {"num_speculative_tokens": 0})
    for step in (first, expected.metrics):
        assert plain.step().metrics["reward"] == step["reward"], "drafting changed a completion"


def test_training_a_module_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"mtp_loss_weight=0\.3 needs.*with_mtp=True"):
        make_trainer(make_policy(), mtp_loss_weight=0.3)
