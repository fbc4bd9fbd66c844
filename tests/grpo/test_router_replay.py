"""The rollout's experts in the training pass (R3, arXiv:2510.11370)."""

import math

import pytest
import torch
from grpo_cases import largest_difference, make_groups, make_policy, make_qwen, make_trainer, weights_of
from transformers import DeepseekV3ForCausalLM

from r1lab.grpo.batch import build_batches
from r1lab.grpo.logps import LogpsModel, completion_logps

MIXED = [[1.0, -1.0, 0.0, 0.5], [0.7, -0.2, -0.5, 0.0]]


def record(groups, choose, num_layers=1):
    """Gives hand-made groups a routing: choose(group, rollout, token of the row) -> two experts, in all layers; rollout
    is 0 on prompts, whose experts are the same for all."""
    for g, group in enumerate(groups):
        before = len(group.prompt.token_ids) - 1
        prompt = torch.tensor([choose(g, 0, t) for t in range(before)]).short().view(before, 1, 2)
        for r, rollout in enumerate(group.rollouts):
            length = len(rollout.completion.token_ids)
            rows = (
                torch.tensor([choose(g, r if t else 0, before + t) for t in range(length)]).short().view(length, 1, 2)
            )
            rollout.completion.routing = rows.expand(-1, num_layers, -1)
            rollout.completion.prompt_routing = prompt.expand(-1, num_layers, -1)
    return groups


def spread_out(g, r, t):
    return [(g + r + t) % 4, (g + r + t + 1 + t % 3) % 4]


@pytest.mark.parametrize("share_prompts", [True, False])
def test_batches_hold_every_tokens_experts(share_prompts):
    groups = record(make_groups(MIXED), lambda g, r, t: [g, t], num_layers=2)
    options = {"pad_token_id": 0, "max_tokens_per_batch": 24, "share_prompts": share_prompts}
    batches, _ = build_batches(groups, **options, replay_routing=True)
    group_of = {id(rollout): g for g, group in enumerate(groups) for rollout in group.rollouts}
    assert len(batches) > 1
    for batch in batches:
        assert batch.routing.shape == (*batch.input_ids.shape, 2, 2)
        for row, rollout in enumerate(batch.rollouts):
            last = int(batch.attention_mask[row].sum()) - 1
            expected = torch.tensor([[group_of[id(rollout)], t] for t in range(last)])
            assert torch.equal(batch.routing[row, :last].long(), expected[:, None].expand(-1, 2, -1))
            assert (batch.routing[row, last:] == -1).all(), "the last token was never fed"
    assert all(batch.routing is None for batch in build_batches(groups, **options)[0])


def test_completions_without_their_experts_are_named():
    options = {"pad_token_id": 0, "max_tokens_per_batch": 40, "replay_routing": True}
    groups = make_groups(MIXED)
    with pytest.raises(ValueError, match=r"router_replay=True: a completion came without.*record_routing=True"):
        build_batches(groups, **options)
    record(groups, spread_out)
    groups[0].rollouts[0].completion.routing = groups[0].rollouts[0].completion.routing[:-1]
    with pytest.raises(ValueError, match="record one per token"):
        build_batches(groups, **options)


def test_logps_are_those_of_the_replayed_experts():
    policy = make_policy()
    groups = record(make_groups(MIXED), spread_out)
    (batch,), _ = build_batches(
        groups, pad_token_id=0, max_tokens_per_batch=10_000, share_prompts=True, replay_routing=True
    )
    logps, entropy, flips = completion_logps(LogpsModel(policy), batch, 0.7)
    assert logps.shape == entropy.shape == flips.shape == batch.completion_mask.shape
    assert not flips[~batch.completion_mask].any() and 0 < flips.mean() < 1
    for row in range(len(batch.input_ids)):
        ids = batch.input_ids[row : row + 1, : int(batch.attention_mask[row].sum())]
        routing = batch.routing[row : row + 1, : ids.shape[1]]
        hidden, row_flips = policy.hidden_states(ids, routing_BTLK=routing)
        guess = (policy.lm_head(hidden)[0, :-1] / 0.7).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        mask = batch.completion_mask[row, : ids.shape[1] - 1]
        torch.testing.assert_close(logps[row, : ids.shape[1] - 1][mask], guess[mask], atol=1e-5, rtol=0)
        assert torch.equal(flips[row, : ids.shape[1] - 1][mask], row_flips[0, :-1][mask])


def test_a_step_without_a_mismatch_is_the_step_without_replay():
    policies = [make_policy(num_hidden_layers=3), make_policy(num_hidden_layers=3)]
    steps = [make_trainer(policy, router_replay=on).step() for policy, on in zip(policies, (False, True))]
    assert steps[1].metrics["sampling/routing_flips"] == 0.0 and "sampling/routing_flips" not in steps[0].metrics
    assert largest_difference(*map(weights_of, policies)) < 1e-5
    assert steps[0].metrics["moe/max_vio"] == steps[1].metrics["moe/max_vio"]
    rollouts = [rollout for step in steps for group in step.groups for rollout in group.rollouts]
    assert all(rollout.completion.routing is rollout.completion.prompt_routing is None for rollout in rollouts)


def test_replay_brings_a_training_pass_in_fp8_nearer_to_rollouts_that_do_not_round(monkeypatch):
    monkeypatch.setattr("r1lab.rollout.policy_weights.computes_in_fp8", lambda module: False)
    runs = {}
    for on in (False, True):
        trainer = make_trainer(make_policy(num_hidden_layers=4), fp8=True, router_replay=on, generation_batch_size=64)
        runs[on] = trainer.step().metrics
    assert runs[True]["sampling/routing_flips"] > 0
    name = "sampling/sampling_logp_difference/mean"
    assert 0 < runs[True][name] < 0.8 * runs[False][name]


def test_flips_are_counted_over_the_trained_tokens():
    """One MoE layer: what it would have chosen does not depend on the replay."""
    policy, groups = make_policy(), make_groups([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]])
    trainer = make_trainer(policy, router_replay=True)
    record(groups, spread_out)
    counts = []
    for group in groups:
        for rollout in group.rollouts:
            ids = torch.tensor([group.prompt.token_ids + rollout.completion.token_ids])
            chosen = []
            gate = policy.model.layers[1].mlp.gate
            hook = gate.register_forward_hook(lambda gate, inputs, output, chosen=chosen: chosen.append(output[1]))
            policy.hidden_states(ids)
            hook.remove()
            own = chosen[0][len(group.prompt.token_ids) - 1 : -1]
            differs = (own.sort(-1).values != rollout.completion.routing[:, 0].long().sort(-1).values).any(-1)
            counts += differs.tolist() if rollout.advantage else []
    metrics = trainer.updater.update(groups)
    assert 0 < sum(counts) < len(counts)
    assert metrics["sampling/routing_flips"] == pytest.approx(sum(counts) / len(counts))


def test_the_logps_from_before_the_phase_are_replayed_too():
    groups = record(make_groups(MIXED), spread_out)
    updates = []
    for on in (True, False):
        trainer = make_trainer(make_policy(), router_replay=on, num_iterations=2, learning_rate=1e-9)
        updates.append(trainer.updater.update(groups))
    for metrics in updates:
        assert metrics["ratio/min"] == pytest.approx(1, abs=1e-4) == metrics["ratio/max"]
    # Their experts are not the policy's own: the logps differ from those without replay, or nothing was replayed.
    assert abs(updates[0]["entropy"] - updates[1]["entropy"]) > 1e-5


def test_the_reference_chooses_its_own_experts():
    kls = []
    for choose in (spread_out, lambda g, r, t: [0, 1]):
        trainer = make_trainer(make_policy(), router_replay=True, beta=0.1)
        own = make_trainer(make_policy(), beta=0.1)
        kls.append(trainer.updater.update(record(make_groups(MIXED), choose))["kl"])
        assert own.updater.update(make_groups(MIXED))["kl"] == pytest.approx(0.0, abs=1e-9)
    assert all(kl > 1e-4 for kl in kls) and not math.isclose(*kls)


@pytest.mark.parametrize("advantages", [MIXED, [[0.0] * 4] * 2])
def test_the_experts_load_is_that_of_the_rollout(advantages):
    """Idle rows too. All but each row's last token, which was never fed, went to experts 0 and 1 of four."""
    loads = []
    for on in (True, False):
        policy = make_policy()
        groups = make_groups(advantages)
        if on:
            record(groups, lambda g, r, t: [0, 1])
        loads.append(make_trainer(policy, router_replay=on).updater.update(groups)["moe/max_vio"])
    rows = [len(g.prompt.token_ids) + len(r.completion.token_ids) for g in groups for r in g.rollouts]
    share = 1 - len(rows) / sum(rows)
    assert loads[0] >= 4 / 2 * share - 1 > loads[1] and loads[0] <= 1


def test_drafts_and_replay_together():
    settings = {"mtp_loss_weight": 0.3, "num_speculative_tokens": 1, "router_replay": True}
    metrics = make_trainer(make_policy(with_mtp=True), **settings).step().metrics
    assert metrics["sampling/routing_flips"] == 0.0
    assert {"mtp/acceptance", "mtp/loss", "mtp/drafted_share"} <= set(metrics)
    plain = make_trainer(make_policy(with_mtp=True), **settings | {"router_replay": False}).step().metrics
    assert metrics["mtp/acceptance"] == pytest.approx(plain["mtp/acceptance"], abs=1e-5)


def test_policies_that_cannot_replay_are_named():
    theirs = DeepseekV3ForCausalLM(make_policy().config)
    for policy in (make_qwen(), theirs):
        with pytest.raises(ValueError, match=f"router_replay=True replays.*not of {type(policy).__name__}; leave"):
            make_trainer(policy, router_replay=True)
    with pytest.raises(ValueError, match="router_replay=True needs a policy with MoE layers"):
        make_trainer(make_policy(first_k_dense_replace=2), router_replay=True)
    groups = record(make_groups(MIXED), spread_out)
    (batch,), _ = build_batches(groups, pad_token_id=0, max_tokens_per_batch=10_000, replay_routing=True)
    with pytest.raises(ValueError, match="not of DeepseekV3ForCausalLM"):
        completion_logps(LogpsModel(theirs), batch)
