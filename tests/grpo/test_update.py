import math
from dataclasses import replace

import pytest
import torch
from grpo_cases import EOS, are_equal, largest_difference, make_groups, make_policy, make_trainer, weights_of

from r1lab.grpo import update as update_module
from r1lab.grpo.batch import build_batches
from r1lab.grpo.trainer import TrainingDiverged
from r1lab.rollout import RolloutEngine, SamplingParams
from r1lab.types import Prompt, Rollout, RolloutGroup

MIXED = [[1.0, -1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0], [0.7, -0.2, -0.5, 0.0], [-1.5, 0.5, 0.5, 0.5]]


def _updated(groups, loss_type="dapo", temperature=1.0, **changes):
    """(weights after one update of a fresh policy, metrics)."""
    policy = make_policy()
    trainer = make_trainer(policy, loss_type=loss_type, temperature=temperature, **changes)
    metrics = trainer.updater.update(groups)
    return weights_of(policy), metrics


def _by_hand(groups, loss_type, temperature):
    """Row by row, unpadded, through plain log_softmax and AdamW. The ratio of a first update is 1 with gradient."""
    policy = make_policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    rollouts = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    num_tokens = sum(len(rollout.completion.token_ids) for _, rollout in rollouts)
    loss = 0.0
    for prompt, rollout in rollouts:
        ids = torch.tensor([prompt.token_ids + rollout.completion.token_ids])
        sampled = torch.tensor(rollout.completion.token_ids)
        logits = policy(ids).logits[0, len(prompt.token_ids) - 1 : -1] / temperature
        logps = torch.log_softmax(logits, -1)[torch.arange(len(sampled)), sampled]
        objective = rollout.advantage * torch.exp(logps - logps.detach())
        divisor = {
            "dapo": num_tokens,
            "grpo": len(sampled) * len(rollouts),
            "dr_grpo": len(rollouts) * 10,
        }[loss_type]
        loss = loss - objective.sum() / divisor
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return weights_of(policy), loss.item()


@pytest.mark.parametrize(("loss_type", "temperature"), [("dapo", 1.0), ("grpo", 1.0), ("dr_grpo", 0.7)])
@pytest.mark.parametrize("max_tokens_per_batch", [1, 30, 10_000])
def test_an_update_equals_one_written_by_hand(loss_type, temperature, max_tokens_per_batch):
    groups = make_groups(MIXED)
    expected, loss = _by_hand(groups, loss_type, temperature)
    weights, metrics = _updated(
        groups, loss_type, temperature, max_tokens_per_batch=max_tokens_per_batch, routing_bias_speed=0.0
    )
    assert largest_difference(weights, expected) < 1e-5
    assert largest_difference(weights, weights_of(make_policy())) > 5e-4, "nothing moved"
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert metrics["ratio/min"] == metrics["ratio/max"] == 1.0


@pytest.mark.parametrize("advantages", [MIXED, [[0.0] * 4] * 3])
def test_skipping_idle_rows_changes_neither_the_update_nor_the_experts_load(monkeypatch, advantages):
    groups = make_groups(advantages)
    weights, metrics = _updated(groups)
    monkeypatch.setattr(update_module, "_has_routed_experts", lambda policy: False)
    monkeypatch.setattr(
        update_module,
        "build_batches",
        lambda groups, **kw: build_batches(groups, **kw | {"skip_zero_advantage": False}),
    )
    unskipped, unskipped_metrics = _updated(groups)
    assert largest_difference(weights, unskipped) < 1e-5
    # The biases move by the signs of the loads: equal loads or not at all.
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(weights[bias], unskipped[bias]) and weights[bias].any()
    assert metrics["moe/max_vio"] == unskipped_metrics["moe/max_vio"]


def test_recorded_routing_saves_the_pass_over_idle_rows(monkeypatch):
    """The load is that of the pass, but for each row's last token, which the rollout does not feed."""
    policy = make_policy()
    prompts = [Prompt("", [3, 4, 5]), Prompt("", [6, 7])]
    params = SamplingParams(n=4, max_tokens=10, record_routing=True)
    completions = RolloutEngine(policy, eos_token_id=EOS).generate([prompt.token_ids for prompt in prompts], params)
    advantages = [[1.0, 0.0, -1.0, 0.0], [0.0] * 4]
    loads = []

    def keep_load(model, speed):
        loads.append(model.model.layers[1].mlp.gate.expert_load_E.clone())
        return {}

    monkeypatch.setattr(update_module, "update_routing_bias", keep_load)
    for is_recorded in (True, False):
        groups = []
        for prompt, group, row in zip(prompts, completions, advantages, strict=True):
            kept = [completion if is_recorded else replace(completion, routing=None) for completion in group]
            rollouts = [Rollout(one, "", advantage=advantage) for one, advantage in zip(kept, row, strict=True)]
            groups.append(RolloutGroup(prompt, rollouts))
        updater = make_trainer(make_policy()).updater
        assert any(batch.rollouts for batch in updater._build(groups).skipped) is not is_recorded
        updater.update(groups)
    missing = loads[1] - loads[0]
    assert (missing >= 0).all() and missing.sum() == 2 * 6, "two experts for the last token of each of six idle rows"


def test_rows_without_a_trained_token_still_count_for_the_load():
    cut = make_groups(MIXED, finish_reason="length")
    _, metrics = _updated(cut, mask_truncated_completions=True)
    _, unmasked = _updated(cut)
    assert metrics["moe/max_vio"] == unmasked["moe/max_vio"]
    assert metrics["grad_norm"] == 0.0 < unmasked["grad_norm"]


@pytest.mark.parametrize("passes", [{"num_iterations": 2}, {"steps_per_generation": 2}])
def test_later_updates_compare_with_the_policy_from_before_the_phase(passes):
    groups = make_groups(MIXED)
    policy = make_policy()
    trainer = make_trainer(policy, learning_rate=3e-2, **passes)
    recorded, inner = [], trainer.updater._update_once
    before = weights_of(policy)

    def record(self, minibatch, is_first):
        metrics = inner.__func__(self, minibatch, is_first)
        recorded.append((metrics, [(batch, batch.old_logps) for batch in minibatch.batches]))
        return metrics

    update_class = type(trainer.updater)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update_class, "_update_once", record)
        combined = trainer.updater.update(groups)
    (first, _), (second, old) = recorded
    assert first["ratio/min"] == pytest.approx(1, abs=1e-5) and first["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert second["ratio/max"] - second["ratio/min"] > 0.1
    assert first["clip_ratio/region_mean"] == 0.0 < second["clip_ratio/region_mean"]
    assert combined["clip_ratio/region_mean"] == pytest.approx(second["clip_ratio/region_mean"] / 2)
    assert not are_equal(before, weights_of(policy))
    policy.load_state_dict(before)
    for batch, old_logps in old:
        expected = update_module.completion_logps(policy.eval(), batch)[0]
        torch.testing.assert_close(old_logps, expected, atol=1e-5, rtol=0)


def test_one_update_makes_no_pass_for_old_logps(monkeypatch):
    calls, inner = [], update_module.completion_logps
    monkeypatch.setattr(update_module, "completion_logps", lambda *a: calls.append(1) or inner(*a))
    _updated(make_groups(MIXED), max_tokens_per_batch=10_000)
    assert len(calls) == 1


def test_beta_keeps_a_reference_and_trains_on_its_kl():
    groups = make_groups([[0.0] * 4] * 2)
    policy = make_policy()
    trainer = make_trainer(policy, beta=0.5)
    reference = trainer.updater.ref_model
    start = weights_of(reference)
    assert make_trainer(make_policy()).updater.ref_model is None
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    kls = [trainer.updater.update(groups)["kl"] for _ in range(8)]
    assert kls[0] > 1e-3
    assert kls[-1] < 0.8 * kls[0], "without a reward, the KL alone must pull the policy back"
    assert are_equal(start, weights_of(reference))


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_sync_moves_the_reference_towards_the_policy(alpha):
    policy = make_policy()
    trainer = make_trainer(
        policy,
        beta=0.01,
        sync_ref_model=True,
        ref_model_sync_steps=2,
        ref_model_mixup_alpha=alpha,
        routing_bias_speed=0.1,
    )
    start = weights_of(trainer.updater.ref_model)
    trainer.step()
    assert are_equal(start, weights_of(trainer.updater.ref_model))
    trainer.step()
    expected = {name: value.lerp(policy.state_dict()[name], alpha) for name, value in start.items()}
    assert largest_difference(weights_of(trainer.updater.ref_model), expected) < 1e-7
    assert largest_difference(start, expected) > 1e-4


def test_the_gradient_is_clipped_to_max_grad_norm():
    limit, norms = 1e-3, []
    trainer = make_trainer(make_policy(), max_grad_norm=limit)

    def record(*args, **kwargs):
        gradients = [p.grad for p in trainer.updater.model.parameters() if p.grad is not None]
        norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients)))

    trainer.updater.optimizer.register_step_pre_hook(record)
    metrics = trainer.updater.update(make_groups(MIXED))
    assert metrics["grad_norm"] > 10 * limit
    assert norms == [pytest.approx(limit, rel=1e-2)]
    trainer = make_trainer(make_policy(), max_grad_norm=0.0)
    trainer.updater.optimizer.register_step_pre_hook(record)
    assert norms[1:] == [] and trainer.updater.update(make_groups(MIXED))["grad_norm"] == pytest.approx(norms[1])


@pytest.fixture
def break_policy(monkeypatch):
    """Makes a policy's training passes return NaN for as long as the returned list is not empty."""

    def install(policy):
        broken, inner = [True], policy.hidden_states
        monkeypatch.setattr(
            policy,
            "hidden_states",
            lambda *a, **kw: inner(*a, **kw) * (math.nan if broken and policy.training else 1.0),
        )
        return broken

    return install


def test_a_loss_that_is_not_finite_skips_the_update_and_the_run_goes_on(break_policy):
    policy = make_policy()
    trainer = make_trainer(policy)
    broken = break_policy(policy)
    before, schedule = weights_of(policy), trainer.updater.scheduler.state_dict()
    metrics = trainer.step().metrics
    assert are_equal(before, weights_of(policy)), "the skipped update changed a weight or a routing bias"
    assert metrics["skipped_updates"] == 1 and metrics["num_skipped_steps"] == 1
    assert trainer.updater.scheduler.state_dict() == schedule
    broken.clear()
    metrics = trainer.step().metrics
    assert metrics["skipped_updates"] == 0 and metrics["num_skipped_steps"] == 0
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
    assert not are_equal(before, weights_of(policy))
    assert all(value.isfinite().all() for value in weights_of(policy).values())


def test_a_gradient_that_is_not_finite_skips_the_update():
    policy = make_policy()
    trainer = make_trainer(policy)
    hook = policy.lm_head.weight.register_hook(lambda grad: grad * math.inf)
    before = weights_of(policy)
    metrics = trainer.updater.update(make_groups(MIXED))
    assert math.isfinite(metrics["loss"]) and metrics["skipped_updates"] == 1
    assert are_equal(before, weights_of(policy))
    hook.remove()
    assert trainer.updater.update(make_groups(MIXED))["skipped_updates"] == 0


def test_too_many_skipped_steps_in_a_row_stop_the_run(break_policy):
    policy = make_policy()
    trainer = make_trainer(policy, max_skipped_steps=2)
    broken = break_policy(policy)
    trainer.step()
    broken.clear()
    trainer.step()
    broken.append(True)
    trainer.step()
    with pytest.raises(TrainingDiverged, match="2 steps in a row"):
        trainer.step()
