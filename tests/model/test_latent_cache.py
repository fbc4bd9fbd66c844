"""The two attention paths, and the latent cache."""

import pytest
import torch
from model_cases import VARIANTS, make_ids, make_policy, right_mask
from transformers import DynamicCache

from r1lab.kernels.build import load_extension
from r1lab.model import LatentCache


def force_path(model, path):
    for layer in model.model.layers:
        layer.self_attn.path = path


@pytest.mark.parametrize("variant", ["default", "no_q_lora", "yarn", "odd_sizes", "not_interleaved"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_absorb_equals_naive(variant, padding):
    model = make_policy(**VARIANTS[variant])
    ids, mask = make_ids(3, 10), None
    if padding != "none":
        mask = right_mask([10, 6, 3], 10)
        mask = mask.flip(1) if padding == "left" else mask
    outputs, gradients = [], []
    for path in ("naive", "absorb"):
        force_path(model, path)
        model.zero_grad()
        hidden = model.hidden_states(ids, mask)
        hidden.square().sum().backward()
        outputs.append(hidden.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.model.layers[0].self_attn.parameters()]))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-4
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[0].abs().max()


def test_decoding_absorbs_and_so_does_training_where_rollouts_have_the_same_kernels(monkeypatch):
    model = make_policy()
    attention = model.model.layers[0].self_attn
    taken = []
    for name in ("_attend_naive", "_attend_absorb", "add_to"):
        method = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *a, n=name, m=method: taken.append(n) or m(*a))
    cache, ids = LatentCache(), make_ids(2, 20)
    model.hidden_states(ids[:, :19], cache=cache)
    model.hidden_states(ids[:, 19:], cache=cache)
    assert taken == ["_attend_naive", "_attend_absorb"]
    model.hidden_states(ids)
    assert taken.pop() == ("add_to" if load_extension() else "_attend_naive")
    monkeypatch.setattr(
        attention, "kv_lora_rank", 10_000
    )  # as in large models, whose latents are wider than their heads
    assert not attention.attends_as_rollouts_do(torch.zeros(1, 20, 4))


@pytest.mark.parametrize("cache_class", [LatentCache, DynamicCache])
@pytest.mark.parametrize("path", ["auto", "naive", "absorb"])
@pytest.mark.parametrize("is_padded", [False, True])
@torch.no_grad()
def test_cached_decode_equals_full_forward(cache_class, path, is_padded):
    model = make_policy()
    force_path(model, path)
    ids = make_ids(3, 90)  # more steps than the cache grows by
    mask = torch.ones_like(ids)
    if is_padded:
        mask[1, :4] = mask[2, :1] = 0
    full = model.hidden_states(ids, mask)
    cache, parts = cache_class(), []
    bounds = [0, 7, 12, *range(13, 91)]  # prefill, a chunk, then token by token
    for start, end in zip(bounds, bounds[1:]):
        parts.append(model.hidden_states(ids[:, start:end], mask[:, :end], cache=cache))
    assert cache.get_seq_length() == 90
    assert (torch.cat(parts, 1) - full)[mask.bool()].abs().max() < 1e-4


@torch.no_grad()
def test_fork_and_select_continue_each_row():
    model = make_policy()
    prompts, tails = make_ids(2, 6), make_ids(6, 5, seed=1)
    cache = LatentCache()
    model.hidden_states(prompts, cache=cache)
    forked = cache.fork(3)
    assert forked.batch_size == 6 and cache.batch_size == 2
    first = model.hidden_states(tails[:, :2], cache=forked)
    rows = torch.tensor([5, 0, 3])
    chosen = forked.select(rows)
    rest = model.hidden_states(tails[rows, 2:], cache=chosen)
    whole = model.hidden_states(torch.cat([prompts.repeat_interleave(3, 0), tails], 1))
    assert (first - whole[:, 6:8]).abs().max() < 1e-4
    assert (rest - whole[rows, 8:]).abs().max() < 1e-4
    assert cache.get_seq_length() == 6 and forked.get_seq_length() == 8 and chosen.get_seq_length() == 11
    by_mask = forked.select(torch.tensor([True, False, False, True, False, True]))
    assert torch.equal(by_mask.kv_cache[0], forked.kv_cache[0][[0, 3, 5]])


@torch.no_grad()
def test_cache_holds_only_latents():
    model = make_policy()
    cache = LatentCache()
    model.hidden_states(make_ids(2, 6), cache=cache)
    assert len(cache) == 2
    assert cache.kv_cache[1].shape == (2, 6, 16) and cache.pe_cache[1].shape == (2, 6, 8)


@torch.no_grad()
def test_crop_forgets_the_tail():
    model = make_policy()
    ids = make_ids(2, 8)
    cache = LatentCache()
    model.hidden_states(ids, cache=cache)
    cache.crop(5)
    again = model.hidden_states(ids[:, 5:], cache=cache)
    assert (again - model.hidden_states(ids)[:, 5:]).abs().max() < 1e-4
    cache.crop(-2)
    assert cache.get_seq_length() == 6


def test_gradients_flow_through_the_cache():
    model = make_policy()
    ids = make_ids(2, 8)
    gradients = []
    for is_cached in (False, True):
        model.zero_grad()
        if is_cached:
            cache = LatentCache()
            parts = [model.hidden_states(part, cache=cache) for part in ids.split([4, 1, 1, 2], 1)]
            hidden = torch.cat(parts, 1)
        else:
            hidden = model.hidden_states(ids)
        hidden.square().sum().backward()
        gradients.append(model.model.layers[0].self_attn.kv_a_proj_with_mqa.weight.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4)


def test_misuse_is_named():
    cache = LatentCache()
    with pytest.raises(ValueError, match="in order"):
        cache.update(torch.zeros(1, 1, 4), torch.zeros(1, 1, 2), layer_idx=1)
    cache.update(torch.zeros(1, 1, 4), torch.zeros(1, 1, 2), layer_idx=0)
    with pytest.raises(ValueError, match="2 rows given, 1 cached"):
        cache.update(torch.zeros(2, 1, 4), torch.zeros(2, 1, 2), layer_idx=0)
    with pytest.raises(ValueError, match="at least 1"):
        cache.fork(0)
