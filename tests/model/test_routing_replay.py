"""Rollout Routing Replay: a forward with given experts."""

import pytest
import torch
from gates import gate_choices, gates_of
from model_cases import VARIANTS, make_ids, make_policy, right_mask
from test_shared_prefix import make_rows, outputs_and_gradients

from r1lab.model import LatentCache

THREE_MOE_LAYERS = {"num_hidden_layers": 4}


def replayed(model, ids, mask=None, routing=None, **how):
    """As `outputs_and_gradients`, and the flips."""
    flips, inner = [], model.hidden_states

    def hidden_states(*args, **options):
        hidden, flips_BT = inner(*args, **options, routing_BTLK=routing)
        flips.append(flips_BT)
        return hidden

    model.hidden_states = hidden_states
    try:
        return *outputs_and_gradients(model, ids, mask, **how), flips[0]
    finally:
        del model.hidden_states


def assert_same(ours, theirs, limit=1e-6):
    assert (ours[0] - theirs[0]).abs().max() < limit
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        bound = limit * max(1.0, theirs[1][name].abs().max().item())
        assert (gradient - theirs[1][name]).abs().max() < bound, name


def other_experts(routing: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Another set for every token and layer."""
    return (routing + 1 + torch.arange(routing.shape[2])[:, None].short()) % num_experts


def by_hand(model, routing: torch.Tensor) -> None:
    """Makes the gates choose `routing` [B, T, L, K], weighed token by token: V3's equations 13 and 15."""

    def forward(gate, choice_NK):
        def weigh(x_TD, replay=None):
            logits = x_TD @ gate.weight.t()
            rows = []
            for token, chosen in zip(logits, choice_NK.tolist(), strict=True):
                scores = [1 / (1 + torch.exp(-token[expert])) for expert in chosen]
                total = sum(scores) if gate.norm_topk_prob else 1.0
                rows.append(torch.stack([gate.routed_scaling_factor * score / total for score in scores]))
            return logits, choice_NK, torch.stack(rows)

        return weigh

    for layer, gate in enumerate(gates_of(model)):
        gate.forward = forward(gate, routing[:, :, layer].flatten(0, 1).long())


@pytest.mark.parametrize("variant", ["default", "groups", "raw_weights", "no_dense_layer"])
def test_replaying_the_policys_own_choice_changes_nothing(variant):
    model = make_policy(**{**THREE_MOE_LAYERS, **VARIANTS[variant]})
    ids = make_ids(3, 9)
    ours = replayed(model, ids, routing=gate_choices(model, ids).short())
    assert_same(ours, outputs_and_gradients(model, ids, None))
    assert ours[2].shape == ids.shape and not ours[2].any()


@pytest.mark.parametrize("variant", ["default", "raw_weights"])
def test_another_choice_is_computed_as_by_hand(variant):
    model = make_policy(**{**THREE_MOE_LAYERS, **VARIANTS[variant]})
    ids = make_ids(3, 9)
    routing = other_experts(gate_choices(model, ids).short(), model.config.n_routed_experts)
    plain = outputs_and_gradients(model, ids, None)
    ours = replayed(model, ids, routing=routing)
    by_hand(model, routing)
    expected = outputs_and_gradients(model, ids, None)
    assert_same(ours, expected, limit=1e-5)
    assert (expected[0] - plain[0]).abs().max() > 0.1, "the choice makes no difference here"
    gates = [name for name in expected[1] if name.endswith("mlp.gate.weight")]
    assert gates and all(ours[1][name].abs().max() > 0 for name in gates), "the gates learn too"


def test_flips_are_the_sets_that_differ():
    model = make_policy(**THREE_MOE_LAYERS)
    ids = make_ids(2, 6)
    routing = gate_choices(model, ids).short()
    routing[0, 3, 2] = other_experts(routing, 8)[0, 3, 2]  # of the last layer: no choice comes after it
    routing[1, 2] = routing[1, 2].flip(-1)  # another order is no other set
    flips = replayed(model, ids, routing=routing)[2]
    expected = torch.zeros(2, 6)
    expected[0, 3] = 1 / 3
    torch.testing.assert_close(flips, expected)


def test_shared_prompts_and_padding():
    model = make_policy(**THREE_MOE_LAYERS)
    ids, mask, shared = make_rows()
    routing = other_experts(gate_choices(model, ids).short(), 8).masked_fill((mask == 0)[..., None, None], -1)
    for row, count in enumerate(shared.tolist()):
        routing[row, :count] = routing[row - 1, :count]
    at = (mask == 1) & (torch.arange(ids.shape[1]) > 3)
    apart = replayed(model, ids, mask, routing=routing)
    together = replayed(model, ids, mask, routing=routing, shared_B=shared)
    assert_same(together, apart, limit=2e-5)
    assert torch.equal(together[2], apart[2])
    assert together[2][mask == 1].mean() > 0.5 and not together[2][mask == 0].any()
    picked, _ = model.hidden_states(ids, mask, shared_B=shared, at_BT=at, routing_BTLK=routing)
    assert (picked - apart[0][at]).abs().max() < 2e-5


def test_tokens_without_a_record_choose_for_themselves():
    model = make_policy(**THREE_MOE_LAYERS)
    ids = make_ids(2, 7)
    own = gate_choices(model, ids).short()
    ours = replayed(model, ids, routing=torch.full_like(own, -1))
    assert_same(ours, outputs_and_gradients(model, ids, None))
    assert not ours[2].any()
    partly = other_experts(own, 8)
    partly[:, :4] = -1
    hidden, flips = model.hidden_states(ids, routing_BTLK=partly)
    assert (hidden - ours[0])[:, :4].abs().max() < 1e-6 < (hidden - ours[0])[:, 4:].abs().max()
    assert not flips[:, :4].any() and flips[:, 4:].any()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_replays_too(use_reentrant):
    model = make_policy(**THREE_MOE_LAYERS).train()
    ids = make_ids(2, 6)
    routing = other_experts(gate_choices(model.eval(), ids).short(), 8)
    expected = replayed(model.train(), ids, routing=routing)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    ours = replayed(model, ids, routing=routing)
    assert_same(ours, expected)
    assert torch.equal(ours[2], expected[2]) and ours[2].any()


def test_the_load_is_that_of_the_replayed_choice():
    model = make_policy(**THREE_MOE_LAYERS)
    ids, mask, shared = make_rows()
    routing = torch.tensor([2, 5]).short().expand(*ids.shape, 3, 2)
    model.train().hidden_states(ids, mask, shared_B=shared, routing_BTLK=routing)
    expected = torch.zeros(8, dtype=torch.int64)
    expected[[2, 5]] = mask.sum()
    for gate in gates_of(model):
        assert torch.equal(gate.expert_load_E, expected)


def test_the_balance_loss_sees_the_replayed_choice():
    model = make_policy(seq_aux_loss_alpha=0.1).train()
    ids, mask = make_ids(2, 6), right_mask([6, 4], 6)
    losses = [
        model.model(ids, mask, routing_BTLK=torch.tensor(pair).short().expand(2, 6, 1, 2)).aux_loss.item()
        for pair in ([0, 1], [2, 3])
    ]
    assert abs(losses[0] - losses[1]) > 1e-5


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((2, 5, 3, 2), 0, r"shape \(2, 5, 3, 2\), expected \(2, 6, 3, 2\)"),
        ((2, 6, 2, 2), 0, "MoE layers"),
        ((2, 6, 3, 3), 0, "experts per token"),
        ((2, 6, 3, 2), 8, "experts 0 to 8, expected 0 to 7"),
        ((2, 6, 3, 2), -2, "experts -2 to 0"),
    ],
)
def test_routing_that_does_not_fit_is_named(shape, value, message):
    routing = torch.zeros(shape, dtype=torch.int16)
    routing[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=message):
        make_policy(**THREE_MOE_LAYERS).hidden_states(make_ids(2, 6), routing_BTLK=routing)


def test_dense_policies_and_caches_are_refused():
    routing = torch.zeros(1, 4, 1, 2, dtype=torch.int16)
    with pytest.raises(ValueError, match="has no MoE layers"):
        make_policy(**VARIANTS["all_dense"]).hidden_states(make_ids(1, 4), routing_BTLK=routing)
    with pytest.raises(ValueError, match="leave them out with past_key_values"):
        make_policy().hidden_states(make_ids(1, 4), cache=LatentCache(), routing_BTLK=routing)
