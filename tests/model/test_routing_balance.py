"""Routing and load balancing (DeepSeek-V3 report, section 2.1.2)."""

import gc

import pytest
import torch
from gates import gates_of
from model_cases import make_config, make_ids, make_policy, right_mask

from r1lab.model import PolicyForCausalLM, sequence_aux_loss, update_routing_bias


def test_bias_moves_the_choice_and_not_the_weights():
    gate = gates_of(make_policy())[0]
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    gate.e_score_correction_bias.zero_()
    logits, before, _ = gate(x)
    gate.e_score_correction_bias[3] = 10.0
    same_logits, after, weights = gate(x)
    assert (after == 3).any(1).all() and not (before == 3).any(1).all()
    chosen = logits.sigmoid().gather(1, after)
    assert torch.allclose(weights, 2.5 * chosen / chosen.sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(logits, same_logits)


def test_load_counts_tokens_in_training_only_and_never_padding():
    model = make_policy()
    gate = gates_of(model)[0]
    ids, mask = make_ids(3, 8), right_mask([8, 5, 2], 8)
    model.hidden_states(ids, mask)
    assert gate.expert_load_E.sum() == 0
    model.train()
    model.hidden_states(ids, mask)
    assert gate.expert_load_E.sum() == 15 * 2
    once = gate.expert_load_E.clone()
    model.hidden_states(ids, mask.flip(1))
    assert gate.expert_load_E.sum() == 2 * 15 * 2
    gate.expert_load_E.zero_()
    model(ids, attention_mask=mask, use_cache=True)  # with a cache padding is computed, and still not counted
    assert torch.equal(gate.expert_load_E, once)


def test_update_is_a_centred_sign_step_and_resets():
    gate = gates_of(make_policy())[0]
    gate.e_score_correction_bias.zero_()
    gate.expert_load_E.copy_(torch.tensor([40, 10, 10, 10, 0, 10, 0, 0]))  # mean 10
    metrics = update_routing_bias(torch.nn.ModuleList([gate]), speed=0.1)
    sign = torch.tensor([-1.0, 0, 0, 0, 1, 0, 1, 1])
    expected = 0.1 * (sign - sign.mean())
    assert torch.allclose(gate.e_score_correction_bias, expected)
    assert metrics["moe/max_vio"] == pytest.approx(3.0)
    assert metrics["moe/bias_norm"] == pytest.approx(expected.square().mean().sqrt().item())
    assert gate.expert_load_E.sum() == 0
    assert update_routing_bias(torch.nn.ModuleList([gate]), speed=0.1) == {}  # no token seen: nothing moves
    assert torch.allclose(gate.e_score_correction_bias, expected)
    with pytest.raises(ValueError, match="-0.1"):
        update_routing_bias(torch.nn.ModuleList([gate]), speed=-0.1)


def test_balancing_a_skewed_stream_lowers_max_vio():
    torch.manual_seed(0)
    model = PolicyForCausalLM(make_config(num_hidden_layers=3)).train()
    frequency = 1.0 / torch.arange(1, 62)  # Zipf: a few tokens, and so a few experts, take most of the load
    generator = torch.Generator().manual_seed(1)
    history = []
    for _ in range(80):
        ids = torch.multinomial(frequency, 8 * 32, replacement=True, generator=generator).view(8, 32)
        with torch.no_grad():
            model.hidden_states(ids)
        history.append(update_routing_bias(model, speed=0.01)["moe/max_vio"])
    assert history[0] > 0.8
    assert sum(history[-10:]) / 10 < 0.5 * history[0]
    for gate in gates_of(model):
        assert abs(gate.e_score_correction_bias.mean().item()) < 1e-5
        assert not gate.e_score_correction_bias.requires_grad


def test_model_without_experts_has_nothing_to_balance():
    assert update_routing_bias(make_policy(first_k_dense_replace=2), speed=0.1) == {}


def by_hand_aux_loss(logits, topk_idx, alpha, mask):
    """Eq. 17-20, one number at a time."""
    (B, T, E), K = logits.shape, topk_idx.shape[-1]
    total = 0.0
    for b in range(B):
        tokens = [t for t in range(T) if mask[b, t]]
        for i in range(E):
            f = E / (K * len(tokens)) * sum(1 for t in tokens if i in topk_idx[b, t].tolist())
            p = 0.0
            for t in tokens:
                scores = logits[b, t].sigmoid()
                p += scores[i].item() / scores.sum().item() / len(tokens)
            total += alpha * f * p
    return total / B


@pytest.mark.parametrize("is_padded", [False, True])
def test_sequence_aux_loss_equals_the_sum_by_hand(is_padded):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 8, generator=generator)
    topk_idx = logits.topk(2).indices
    mask = right_mask([6, 4, 1], 6).bool() if is_padded else torch.ones(3, 6, dtype=torch.bool)
    actual = sequence_aux_loss(logits, topk_idx, 0.3, mask if is_padded else None)
    assert actual.item() == pytest.approx(by_hand_aux_loss(logits, topk_idx, 0.3, mask), rel=1e-5)


@pytest.mark.parametrize("lengths", [[6, 6, 6], [6, 4, 1]])
def test_aux_loss_joins_the_loss_in_training(lengths):
    model = make_policy(seq_aux_loss_alpha=0.5)
    plain = make_policy()
    ids, mask = make_ids(3, 6), right_mask(lengths, 6)
    labels = ids.masked_fill(mask == 0, -100)
    assert model(ids, attention_mask=mask, labels=labels).aux_loss is None
    routed = {}
    gate = gates_of(model)[0]
    hook = gate.register_forward_hook(lambda module, args, output: routed.update(logits=output[0], idx=output[1]))
    output = model.train()(ids, attention_mask=mask, labels=labels)
    hook.remove()
    logits, idx = torch.zeros(3, 6, 8), torch.zeros(3, 6, 2, dtype=torch.int64)
    keep = mask.bool()
    logits[keep], idx[keep] = routed["logits"].detach(), routed["idx"]
    assert output.aux_loss.item() == pytest.approx(by_hand_aux_loss(logits, idx, 0.5, keep), rel=1e-4)
    base_loss = plain(ids, attention_mask=mask, labels=labels).loss.item()
    assert output.loss.item() == pytest.approx(base_loss + output.aux_loss.item(), abs=1e-5)
    output.aux_loss.backward()
    assert gate.weight.grad.abs().max() > 0


def _two_process_worker(rank, init_file, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = PolicyForCausalLM(make_config()).train()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    for step in range(2):  # two forwards before the update, as gradient accumulation does
        ids = make_ids(2 + rank, 6, seed=10 * rank + step)
        wrapped(ids, labels=ids).loss.backward()
    gate = gates_of(model)[0]
    load = gate.expert_load_E.clone()
    metrics = update_routing_bias(model, speed=0.1)
    torch.save((load, gate.e_score_correction_bias, metrics), f"{results}/{rank}.pt")
    # DDP goes first. As the last owner of the process group, its destructor would wait for gloo's threads with the
    # interpreter's lock held, and they may need that lock to let go of the tensors they reduced.
    del wrapped
    gc.collect()
    torch.distributed.destroy_process_group()


def test_loads_are_summed_over_processes(tmp_path):
    torch.multiprocessing.spawn(_two_process_worker, (tmp_path / "init", tmp_path), nprocs=2)
    (load_0, bias_0, metrics_0), (load_1, bias_1, metrics_1) = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    assert load_0.sum() == 2 * 2 * 6 * 2 and load_1.sum() == 2 * 3 * 6 * 2  # DDP left each process its own counts
    total = (load_0 + load_1).double()
    sign = (total.mean() - total).sign()
    assert torch.allclose(bias_0, (0.1 * (sign - sign.mean())).float())
    assert torch.equal(bias_0, bias_1) and metrics_0 == metrics_1
    assert metrics_0["moe/max_vio"] == pytest.approx((total.max() / total.mean() - 1).item())
