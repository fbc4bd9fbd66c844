"""FP8 switched on for a whole policy, and training with it."""

import copy

import pytest
import torch
from fp8_cases import IDS, make_config
from torch import nn
from transformers import DeepseekV3ForCausalLM

from r1lab.kernels import reference
from r1lab.model import PolicyForCausalLM, update_routing_bias
from r1lab.model.linear import PolicyLinear
from r1lab.model.moe import RoutedExperts, SwiGLU, TopkGate
from r1lab.precision import computed_weight, disable_fp8, enable_fp8, fp8_computation


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return PolicyForCausalLM(make_config()).train()


def loss_and_grads(policy):
    policy.zero_grad()
    loss = policy(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


def test_layers_change_and_sensitive_parts_stay(policy):
    names, keys = dict(policy.named_modules()), set(policy.state_dict())
    parameters = {name: id(parameter) for name, parameter in policy.named_parameters()}
    changed = enable_fp8(policy)
    layers = [name for name, module in names.items() if isinstance(module, (nn.Linear, SwiGLU, RoutedExperts))]
    assert sorted(changed) == sorted(name for name in layers if name != "lm_head")
    assert len(changed) == 2 * 5 + 4 + 1 + 4
    assert type(policy.lm_head) is PolicyLinear and type(policy.model.layers[1].mlp.gate) is TopkGate
    assert set(policy.state_dict()) == keys
    assert {name: id(parameter) for name, parameter in policy.named_parameters()} == parameters
    assert enable_fp8(policy) == []


def test_the_loss_is_near_and_switching_off_brings_it_back(policy):
    loss, grads = loss_and_grads(policy)
    with fp8_computation(policy):
        fp8_loss, fp8_grads = loss_and_grads(policy)
    assert loss_and_grads(policy)[0] == loss
    assert 0 < abs(fp8_loss - loss) / loss < 0.01
    cosines = {
        name: torch.cosine_similarity(grad.flatten(), fp8_grads[name].flatten(), 0) for name, grad in grads.items()
    }
    assert min(cosines.values()) > 0.75, cosines  # the gate's, some of whose choices flip
    difference = torch.cat([(fp8_grads[name] - grad).flatten() for name, grad in grads.items()]).norm()
    assert 0.01 < difference / torch.cat([grad.flatten() for grad in grads.values()]).norm() < 0.3


def test_a_context_inside_an_enabled_policy_leaves_it_enabled(policy):
    enable_fp8(policy)
    with fp8_computation(policy):
        pass
    assert len(disable_fp8(policy)) == 19 and disable_fp8(policy) == []


def test_a_copy_computes_in_fp8_too(policy):
    enable_fp8(policy)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(policy)(IDS).logits, policy(IDS).logits)


def test_padding_and_shared_prefixes_change_nothing(policy):
    """1x128 tiles belong to one token, so what else is in the batch must not matter in the forward."""
    enable_fp8(policy.eval())
    mask = torch.ones_like(IDS)
    mask[1, 12:] = 0
    with torch.no_grad():
        padded = policy(IDS, attention_mask=mask).logits[1, :12]
        alone = policy(IDS[1:2, :12]).logits[0]
    assert (padded - alone).abs().max() < 1e-4 * alone.abs().max()


def test_weights_as_the_products_see_them(policy):
    experts = policy.model.layers[1].mlp.experts
    linear = policy.model.layers[0].self_attn.o_proj
    assert torch.equal(computed_weight(linear), linear.weight)
    enable_fp8(policy)
    x = torch.eye(linear.in_features)
    with torch.no_grad():  # 0 and 1 are E4M3 numbers: the product reads the weight out
        assert torch.allclose(linear(x).T, computed_weight(linear), rtol=1e-6, atol=0)
    gate_up = computed_weight(experts, "gate_up_proj")
    for expert, half in ((0, 0), (3, 1)):
        rows = slice(48 * half, 48 * (half + 1))
        part = copy.copy(linear)
        part.weight = nn.Parameter(experts.gate_up_proj[expert, rows].detach())
        assert torch.equal(gate_up[expert, rows], computed_weight(part))


def test_training_follows_full_precision(policy):
    """Thirty steps on a batch: the same descent, losses within a few percent of the way down."""
    curves = []
    for is_fp8 in (False, True):
        learner = copy.deepcopy(policy)
        if is_fp8:
            enable_fp8(learner)
        optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
        losses = []
        for _ in range(30):
            losses.append(loss_and_grads(learner)[0])
            optimizer.step()
            update_routing_bias(learner, 1e-3)
        curves.append(torch.tensor(losses))
    full, fp8 = curves
    assert full[-1] < 0.5 * full[0]
    assert not torch.equal(full, fp8) and ((fp8 - full).abs() / full[0]).max() < 0.02


def test_other_models_are_refused():
    theirs = DeepseekV3ForCausalLM(make_config())
    for change in (enable_fp8, disable_fp8):
        with pytest.raises(ValueError, match="needs a PolicyForCausalLM .* not DeepseekV3ForCausalLM; leave FP8 off"):
            change(theirs)


def test_a_feed_forward_keeps_less_than_autograd_would(policy):
    """Activations in E4M3, beside the formula in PyTorch. (Our fp32 kernels keep their inputs alone.)"""
    mlp = policy.model.layers[0].mlp
    weights = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
    x = torch.randn(300, mlp.gate_proj.in_features, requires_grad=True)

    def kept(function):
        sizes, known = {}, {weight.untyped_storage().data_ptr() for weight in weights}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in known:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(x).sum().backward()
        return sum(sizes.values())

    plain = kept(lambda x: reference.swiglu(x, *weights))
    enable_fp8(policy)
    assert kept(mlp) < 0.25 * plain
