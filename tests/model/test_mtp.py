"""The multi-token-prediction module: the formula, its gradients, and its place in checkpoints."""

import json

import pytest
import torch
import torch.nn.functional as F
from model_cases import VARIANTS, make_config, make_ids, make_policy, randomize, right_mask
from safetensors import safe_open
from transformers import DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from r1lab.model import PolicyForCausalLM, add_mtp, mtp_hidden_states, mtp_loss

LAYER = "model.layers.2."


def mtp_policy(seed: int = 0, **changes) -> PolicyForCausalLM:
    torch.manual_seed(seed)
    return randomize(PolicyForCausalLM(make_config(**changes), with_mtp=True), seed).eval()


def by_formula(policy, ids_T: torch.Tensor, hidden_TD: torch.Tensor) -> torch.Tensor:
    """Logits [T - 1, V] of one unpadded row: eq. 21-23 written out, with plain attention and a loop over experts."""
    config, mtp = policy.config, policy.mtp

    def norm(x, module):
        return module.weight * x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()

    def rotate(x, angles):  # [T, heads, P]: interleaved pairs
        first, second = x[..., 0::2], x[..., 1::2]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def swiglu(x, gate, up, down):
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    embeds = policy.model.embed_tokens.weight[ids_T[1:]]
    x = torch.cat([norm(embeds, mtp.enorm), norm(hidden_TD[:-1], mtp.hnorm)], -1) @ mtp.eh_proj.weight.T
    T, H, attention = len(x), config.num_attention_heads, mtp.self_attn
    P, N, W = config.qk_rope_head_dim, config.qk_nope_head_dim, config.v_head_dim
    angles = torch.arange(T)[:, None] * policy.model.rotary_emb.inv_freq
    y = norm(x, mtp.input_layernorm)
    q = (norm(y @ attention.q_a_proj.weight.T, attention.q_a_layernorm) @ attention.q_b_proj.weight.T).view(T, H, -1)
    kv, k_pe = (y @ attention.kv_a_proj_with_mqa.weight.T).split([config.kv_lora_rank, P], -1)
    kv = (norm(kv, attention.kv_a_layernorm) @ attention.kv_b_proj.weight.T).view(T, H, N + W)
    k = torch.cat([kv[..., :N], rotate(k_pe[:, None], angles).expand(T, H, P)], -1)
    q = torch.cat([q[..., :N], rotate(q[..., N:], angles)], -1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * (N + P) ** -0.5
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
    x = x + torch.einsum("hij,jhw->ihw", scores, kv[..., N:]).reshape(T, -1) @ attention.o_proj.weight.T
    y = norm(x, mtp.post_attention_layernorm)
    shared = mtp.mlp.shared_experts
    out = swiglu(y, shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
    affinity = (y @ mtp.mlp.gate.weight.T).sigmoid()
    chosen = (affinity + mtp.mlp.gate.e_score_correction_bias).topk(config.num_experts_per_tok, -1).indices
    weights = affinity.gather(-1, chosen)
    weights = weights / weights.sum(-1, keepdim=True) * config.routed_scaling_factor
    for t in range(T):
        for expert, weight in zip(chosen[t], weights[t]):
            gate, up = mtp.mlp.experts.gate_up_proj[expert].chunk(2)
            out[t] = out[t] + weight * swiglu(y[t], gate, up, mtp.mlp.experts.down_proj[expert])
    return norm(x + out, mtp.shared_head.norm) @ policy.lm_head.weight.T


def logits_of(policy, ids, hidden, **options):
    return policy.lm_head(mtp_hidden_states(policy, hidden, ids, **options)[0])


@pytest.mark.parametrize("length", [2, 3, 11])
def test_the_module_and_its_gradients_equal_the_formula(length):
    policy = mtp_policy()
    ids = make_ids(2, length)
    hidden = policy.hidden_states(ids).detach()
    results = []
    for function in (
        lambda h: logits_of(policy, ids, h),
        lambda h: torch.stack([by_formula(policy, row, h[i]) for i, row in enumerate(ids)]),
    ):
        policy.zero_grad()
        leaf = hidden.clone().requires_grad_()
        logits = function(leaf)
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        # An expert or a gate that no token of a short row reaches may have no gradient at all on one side.
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in policy.named_parameters()}
        results.append((logits.detach(), leaf.grad, gradients))
    (ours, our_grad, our_grads), (theirs, their_grad, their_grads) = results
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(our_grad, their_grad, atol=2e-5, rtol=1e-3)
    for name, gradient in their_grads.items():
        scale = gradient.abs().max().item()
        assert (our_grads[name] - gradient).abs().max().item() <= 2e-4 * scale + 1e-6, name
    moved = [name for name, gradient in their_grads.items() if gradient.any()]
    assert {name for name in moved if not name.startswith(LAYER)} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert f"{LAYER}eh_proj.weight" in moved and f"{LAYER}enorm.weight" in moved and f"{LAYER}hnorm.weight" in moved


@torch.no_grad()
def test_padding_on_either_side_and_packed_rows_change_nothing():
    policy = mtp_policy()
    lengths = [7, 4, 2]
    ids = make_ids(3, 7)
    alone = [logits_of(policy, ids[i : i + 1, :n], policy.hidden_states(ids[i : i + 1, :n]))[0]
             for i, n in enumerate(lengths)]  # fmt: skip
    mask = right_mask(lengths, 7)
    padded = logits_of(policy, ids, policy.hidden_states(ids, mask), attention_mask_BT=mask)
    for row, expected in zip(padded, alone):
        torch.testing.assert_close(row[: len(expected)], expected, atol=1e-5, rtol=1e-4)
    assert not padded[1, 3:].any()

    packed = torch.cat([ids[i, :n] for i, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    hidden = policy.model(packed, position_ids=positions).last_hidden_state
    together = logits_of(policy, packed, hidden, position_ids=positions)[0]
    for start, expected in zip([0, 7, 11], alone):
        torch.testing.assert_close(together[start : start + len(expected)], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_shared_prompts_are_computed_once_and_change_nothing():
    policy = mtp_policy()
    ids = make_ids(4, 9)
    ids[1:3, :4] = ids[0, :4]
    mask, shared = right_mask([9, 7, 8, 5], 9), torch.tensor([0, 4, 4, 0])
    apart = logits_of(policy, ids, policy.hidden_states(ids, mask), attention_mask_BT=mask)
    hidden = policy.hidden_states(ids, mask, shared_B=shared)
    together = logits_of(policy, ids, hidden, attention_mask_BT=mask, shared_B=shared)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert (together[0, 3] - together[1, 3]).abs().max() > 1e-3  # the prompt's last token has another one behind it


def test_the_loss_is_the_mean_over_second_next_tokens_and_joins_the_policys():
    policy = mtp_policy()
    ids = make_ids(3, 8)
    mask = right_mask([8, 5, 3], 8)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    logits = logits_of(policy, ids, policy.hidden_states(ids, mask), attention_mask_BT=mask).log_softmax(-1)
    terms = [-logits[i, t - 2, ids[i, t]] for i, n in enumerate([8, 5, 3]) for t in range(3, n)]
    expected = torch.stack(terms).mean()
    plain = policy(ids, mask, labels=labels)
    joint = policy(ids, mask, labels=labels, mtp_loss_weight=0.3)
    assert plain.mtp_loss is None
    torch.testing.assert_close(joint.mtp_loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joint.loss, plain.loss + 0.3 * expected, atol=1e-5, rtol=1e-5)
    nothing = policy(ids, mask, labels=torch.full_like(ids, -100), mtp_loss_weight=0.3)
    assert nothing.mtp_loss == 0.0


def test_packed_sequences_do_not_predict_each_others_tokens():
    policy = mtp_policy()
    ids, positions = make_ids(1, 9), torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    hidden = policy.model(ids, position_ids=positions).last_hidden_state
    together = mtp_loss(policy, hidden, ids, ids, position_ids=positions)
    apart = [mtp_loss(policy, policy.hidden_states(part), part, part) for part in (ids[:, :5], ids[:, 5:])]
    torch.testing.assert_close(together, (3 * apart[0] + 2 * apart[1]) / 5, atol=1e-5, rtol=1e-5)


def test_detached_only_the_module_learns():
    policy = mtp_policy()
    ids = make_ids(2, 6)
    states, _ = mtp_hidden_states(policy, policy.hidden_states(ids).detach(), ids, detach=True)
    states.square().sum().backward()
    moved = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert moved and all(name.startswith(LAYER) for name in moved)


def stored_keys(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("variant", ["default", "no_q_lora", "tied_embeddings", "two_shared_experts"])
@torch.no_grad()
def test_checkpoints_have_the_released_names_and_load_back(variant, tmp_path):
    policy = mtp_policy(**VARIANTS[variant])
    policy.save_pretrained(tmp_path)
    extra = {key.removeprefix(LAYER) for key in stored_keys(tmp_path) if key.startswith(LAYER)}
    # README_WEIGHTS.md of the release names these; the rest is the block's, as in any layer.
    assert {"embed_tokens.weight", "enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight",
            "shared_head.head.weight"} <= extra  # fmt: skip
    assert "mlp.experts.7.down_proj.weight" in extra and "self_attn.kv_b_proj.weight" in extra
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1

    again = PolicyForCausalLM.from_pretrained(tmp_path, with_mtp=True).eval()
    ids = make_ids(2, 7)
    hidden = policy.hidden_states(ids)
    assert torch.equal(again.hidden_states(ids), hidden)
    assert torch.equal(logits_of(again, ids, hidden), logits_of(policy, ids, hidden))


@torch.no_grad()
def test_the_module_can_be_ignored(tmp_path, caplog):
    policy = mtp_policy()
    policy.save_pretrained(tmp_path / "with")
    ids = make_ids(2, 7)
    trunk, info = PolicyForCausalLM.from_pretrained(tmp_path / "with", output_loading_info=True)
    assert trunk.mtp is None and not info["unexpected_keys"] and not info["missing_keys"]
    theirs = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "with").eval()
    for model in (trunk.eval(), theirs):
        assert (model(ids).logits - policy(ids).logits).abs().max() < 1e-4
    trunk.save_pretrained(tmp_path / "without")
    assert not any(key.startswith(LAYER) for key in stored_keys(tmp_path / "without"))
    assert json.loads((tmp_path / "without/config.json").read_text())["num_nextn_predict_layers"] == 0


@torch.no_grad()
def test_transformers_own_module_reads_the_checkpoint_and_agrees(tmp_path, monkeypatch):
    policy = mtp_policy()
    policy.save_pretrained(tmp_path)
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.2.*"])
    theirs = DeepseekV3ForCausalLM.from_pretrained(tmp_path).eval()
    module = MtpModel.from_pretrained(theirs).eval()
    ids = make_ids(1, 9)
    hidden = policy.hidden_states(ids)
    positions = torch.arange(1, 9)[None]
    _, logits, _ = module(ids[:, 1:], hidden[:, :-1], None, positions, None)
    torch.testing.assert_close(logits[:, -1], logits_of(policy, ids, hidden)[:, -1], atol=1e-4, rtol=1e-3)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="num_nextn_predict_layers=0.*train_mtp_only"):
        PolicyForCausalLM(make_config(num_mtp_layers=0), with_mtp=True)
    with pytest.raises(ValueError, match="num_nextn_predict_layers=2"):
        PolicyForCausalLM(make_config(num_mtp_layers=2), with_mtp=True)
    DeepseekV3ForCausalLM(make_config()).save_pretrained(tmp_path)  # its config says 1, its weights have none
    with pytest.raises(ValueError, match=r"no multi-token-prediction weights.*model\.layers\.2\..*leave with_mtp out"):
        PolicyForCausalLM.from_pretrained(tmp_path, with_mtp=True)
    assert PolicyForCausalLM.from_pretrained(tmp_path).mtp is None
    ids = make_ids(1, 4)
    with pytest.raises(ValueError, match="load it with_mtp=True"):
        make_policy()(ids, labels=ids, mtp_loss_weight=0.1)
    with pytest.raises(ValueError, match="at least 2"):
        mtp_hidden_states(mtp_policy(), torch.zeros(1, 1, 64), ids[:, :1])


def test_a_fresh_module_can_be_added_to_a_policy(tmp_path):
    policy = make_policy()
    ids = make_ids(2, 5)
    before = policy(ids).logits
    add_mtp(policy)
    module = policy.mtp
    add_mtp(policy)
    assert policy.mtp is module and torch.equal(policy(ids).logits, before)
    assert module.eh_proj.weight.std().item() == pytest.approx(0.1, rel=0.2)
    policy.save_pretrained(tmp_path)
    assert PolicyForCausalLM.from_pretrained(tmp_path, with_mtp=True).mtp is not None
