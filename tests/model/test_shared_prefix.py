import pytest
import torch
from model_cases import make_ids, make_policy, right_mask

RUNS = [0, 5, 5, 0, 0, 3, 3, 3]
LENGTHS = [9, 5, 12, 4, 10, 7, 12, 3]


def make_rows(seed=0):
    """ids [8, 12] whose rows begin as RUNS says, their mask, and the shared lengths."""
    ids = make_ids(len(RUNS), max(LENGTHS), seed)
    for row, shared in enumerate(RUNS):
        ids[row, :shared] = ids[row - 1, :shared]
    return ids, right_mask(LENGTHS, max(LENGTHS)), torch.tensor(RUNS)


def outputs_and_gradients(model, ids, mask, **how):
    """Hidden states, and all gradients of a fixed weighting of those of the second half of each row."""
    model.zero_grad()
    hidden = model.hidden_states(ids, mask, **how)
    weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    (hidden * weights).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs):
    assert (ours[0] - theirs[0]).abs().max() < 2e-5
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        limit = 2e-5 * max(1.0, theirs[1][name].abs().max().item())
        assert (gradient - theirs[1][name]).abs().max() < limit, name


@pytest.mark.parametrize("variant", [{}, {"q_lora_rank": None}, {"n_shared_experts": 2}])
@pytest.mark.parametrize("path", ["auto", "absorb"])
def test_sharing_changes_neither_hidden_states_nor_gradients(variant, path):
    model = make_policy(**variant)
    for layer in model.model.layers:
        layer.self_attn.path = path
    ids, mask, shared = make_rows()
    ours = outputs_and_gradients(model, ids, mask, shared_B=shared)
    assert_same(ours, outputs_and_gradients(model, ids, mask))
    assert (ours[0][mask == 0] == 0).all()


def test_the_way_without_kernels_gives_the_same(monkeypatch):
    model = make_policy()
    ids, mask, shared = make_rows()
    expected = outputs_and_gradients(model, ids, mask, shared_B=shared)
    monkeypatch.setattr("r1lab.kernels.ops._use_cpu_kernel", lambda *tensors: False)
    assert_same(outputs_and_gradients(model, ids, mask, shared_B=shared), expected)


def test_rows_may_be_padded_anywhere_and_need_no_mask():
    model = make_policy()
    ids, mask, shared = make_rows()
    order = (mask == 1).long().argsort(dim=1, stable=True)  # the padding moves to the left
    expected = model.hidden_states(ids, mask, shared_B=shared).gather(1, order[..., None].expand(-1, -1, 64))
    positions = (mask.gather(1, order).cumsum(1) - 1).clamp(min=0)
    left = model.hidden_states(ids.gather(1, order), mask.gather(1, order), positions, shared_B=shared)
    assert (left - expected).abs().max() < 2e-5
    full = model.hidden_states(ids)
    assert (model.hidden_states(ids, shared_B=shared) - full).abs().max() < 2e-5


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("is_masked", [True, False])
def test_at_returns_the_hidden_states_of_some_places_only(is_shared, is_masked):
    model = make_policy()
    ids, mask, shared = make_rows()
    mask = mask if is_masked else None
    at = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    at = at & (mask == 1) if is_masked else at
    ours = model.hidden_states(ids, mask, shared_B=shared if is_shared else None, at_BT=at)
    assert ours.shape == (int(at.sum()), 64)
    assert (ours - model.hidden_states(ids, mask)[at]).abs().max() < 2e-5
    assert model.hidden_states(ids, mask, at_BT=torch.zeros_like(at)).shape == (0, 64)


def test_a_shared_token_counts_for_the_experts_load_in_every_row_that_has_it():
    model = make_policy().train()
    ids, mask, shared = make_rows()
    loads = []
    for how in ({}, {"shared_B": shared}):
        model.hidden_states(ids, mask, **how)
        gates = [layer.mlp.gate for layer in model.model.layers if layer.is_moe]
        loads.append(torch.stack([gate.expert_load_E.clone() for gate in gates]))
        for gate in gates:
            gate.expert_load_E.zero_()
    assert torch.equal(*loads)
    assert loads[0].sum() == sum(LENGTHS) * 2


def test_the_balance_loss_sees_every_row_whole():
    model = make_policy(seq_aux_loss_alpha=0.1).train()
    ids, mask, shared = make_rows()
    ours = model.model(ids, mask, shared_B=shared).aux_loss.item()
    assert ours == pytest.approx(model.model(ids, mask).aux_loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ([5, 5, 5, 0, 0, 3, 3, 3], r"shared\[0\]=5 does not fit"),
        ([0, 5, 4, 0, 0, 3, 3, 3], r"shared\[2\]=4 does not fit: the rows above share 5 tokens"),
        ([0, 6, 6, 0, 0, 3, 3, 3], r"shared\[1\]=6 does not fit.*this one has 5"),
        ([0, -1, 0, 0, 0, 0, 0, 0], r"shared\[1\]=-1 does not fit"),
        ([0, 5, 5, 4, 0, 3, 3, 3], r"shared\[3\]=4 does not fit"),
        ([0, 5, 5, 0, 2, 0, 3, 3], "shared counts tokens that differ"),
    ],
)
def test_bad_shared_lengths_are_named(shared, message):
    ids, mask, _ = make_rows()
    with pytest.raises(ValueError, match=message):
        make_policy().hidden_states(ids, mask, shared_B=torch.tensor(shared))
