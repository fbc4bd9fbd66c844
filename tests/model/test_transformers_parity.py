"""Against transformers' DeepseekV3ForCausalLM: logits, gradients, loss."""

import pytest
import torch
from model_cases import VARIANTS, make_ids, make_pair, right_mask

TOLERANCE = 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_equal_transformers(variant):
    ours, theirs = make_pair(**VARIANTS[variant])
    ids = make_ids(3, 40)  # beyond YaRN's original 16 positions
    expected = theirs(ids).logits
    assert expected.std() > 0.1
    assert (ours(ids).logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_padded_logits_equal_transformers(side, use_cache):
    ours, theirs = make_pair()
    ids, mask = make_ids(3, 12), right_mask([12, 7, 1], 12)
    if side == "left":
        mask = mask.flip(1)
    if side == "holes":
        mask[0, [2, 3, 8]] = 0
    expected = theirs(ids, attention_mask=mask).logits
    actual = ours(ids, attention_mask=mask, use_cache=use_cache).logits
    keep = mask.bool()
    assert (actual - expected)[keep].abs().max() < TOLERANCE
    assert actual.isfinite().all()
    assert (theirs(ids).logits - expected)[keep].abs().max() > 10 * TOLERANCE or side == "right"


@torch.no_grad()
def test_padding_content_changes_nothing():
    ours, _ = make_pair()
    ids, mask = make_ids(2, 9), right_mask([9, 4], 9)
    other = torch.where(mask.bool(), ids, (ids + 7) % 61)
    assert torch.equal(ours.hidden_states(ids, mask), ours.hidden_states(other, mask))


@torch.no_grad()
def test_given_positions_equal_transformers():
    ours, theirs = make_pair()
    ids, mask = make_ids(2, 9), right_mask([9, 4], 9).flip(1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    actual = ours(ids, attention_mask=mask, position_ids=positions).logits
    assert (actual - expected)[mask.bool()].abs().max() < TOLERANCE


@torch.no_grad()
def test_packed_sequences_are_kept_apart():
    ours, theirs = make_pair()
    ids = make_ids(1, 12)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4]])
    actual = ours(ids, position_ids=positions).logits
    expected = torch.cat([theirs(part).logits for part in ids.split([5, 2, 5], dim=1)], dim=1)
    assert (actual - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("variant", ["default", "no_q_lora", "groups", "attention_bias", "yarn", "not_interleaved"])
@pytest.mark.parametrize("is_padded", [False, True])
def test_loss_and_gradients_equal_transformers(variant, is_padded):
    ours, theirs = make_pair(**VARIANTS[variant])
    ids = make_ids(3, 14)
    mask = right_mask([14, 9, 5], 14) if is_padded else torch.ones_like(ids)
    labels = ids.masked_fill(mask == 0, -100)
    losses = []
    for model in (ours.train(), theirs.train()):
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        # an expert nobody chose has a zero gradient here and may have none there
        want = torch.zeros_like(parameter) if expected[name] is None else expected[name]
        assert (parameter.grad - want).abs().max() < 1e-5, name


def test_gradient_checkpointing_changes_no_gradient():
    ours, _ = make_pair()
    ids, mask = make_ids(2, 8), right_mask([8, 5], 8)
    gradients = []
    for use_checkpointing in (False, True):
        ours.train().zero_grad()
        if use_checkpointing:
            ours.gradient_checkpointing_enable()
        ours(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        gradients.append([p.grad.clone() for p in ours.parameters()])
    for a, b in zip(*gradients):
        assert torch.allclose(a, b, atol=1e-6)


@torch.no_grad()
def test_logits_to_keep_and_item_count():
    ours, theirs = make_pair()
    ids = make_ids(2, 8)
    full = ours(ids).logits
    assert torch.allclose(ours(ids, logits_to_keep=3).logits, full[:, -3:], atol=1e-6)
    loss = ours(ids, labels=ids, num_items_in_batch=5).loss
    assert loss.item() == pytest.approx(theirs(ids, labels=ids, num_items_in_batch=5).loss.item(), abs=1e-5)


def test_bad_input_is_named():
    ours, _ = make_pair()
    ids = make_ids(2, 8)
    with pytest.raises(ValueError, match=r"\(2, 7\)"):
        ours(ids, attention_mask=torch.ones(2, 7))
    with pytest.raises(ValueError, match="at least one token"):
        ours(ids, attention_mask=torch.zeros(2, 8))
    with pytest.raises(ValueError, match="exactly one"):
        ours()
    with pytest.raises(ValueError, match="gelu"):
        make_pair(hidden_act="gelu")
    with pytest.raises(ValueError, match="n_group=3"):
        make_pair(n_group=3)
