"""FP8 by option: the policy that trains, the one it is compared with, and what samples."""

import pytest
import torch
from grpo_cases import make_policy, make_trainer
from transformers import DeepseekV3ForCausalLM

from r1lab.precision import disable_fp8


def test_grpo_trains_and_samples_in_fp8():
    policies = [make_policy(), make_policy()]
    steps = [make_trainer(policy, fp8=fp8).step() for policy, fp8 in zip(policies, (False, True))]
    assert len(disable_fp8(policies[0])) == 0
    assert not any("importance_sampling" in name for step in steps for name in step.metrics)
    changed = [(a - b).abs().max() for a, b in zip(policies[1].parameters(), make_policy().parameters())]
    assert all(change > 0 for change in changed) and steps[1].metrics["skipped_updates"] == 0


def test_rollouts_round_what_training_rounds(monkeypatch):
    name = "sampling/sampling_logp_difference/mean"
    alike = make_trainer(make_policy(), fp8=True).step().metrics[name]
    monkeypatch.setattr("r1lab.rollout.policy_weights.computes_in_fp8", lambda module: False)
    weights_alone = make_trainer(make_policy(), fp8=True).step().metrics[name]
    assert alike < 0.1 * weights_alone  # what is left are ties


def test_the_reference_policy_computes_in_fp8_too():
    """Else the KL of the first step would measure the rounding."""
    metrics = make_trainer(make_policy(), fp8=True, beta=0.1).step().metrics
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-9)


def test_another_model_is_refused():
    policy = DeepseekV3ForCausalLM(make_policy().config)
    with pytest.raises(ValueError, match="not DeepseekV3ForCausalLM; leave FP8 off"):
        make_trainer(policy, fp8=True)


def test_routing_is_still_balanced():
    policy = make_policy()
    metrics = make_trainer(policy, fp8=True).step().metrics
    biases = [module.e_score_correction_bias for module in policy.modules() if hasattr(module, "expert_load_E")]
    assert metrics["moe/max_vio"] >= 0 and torch.stack(biases).abs().max() > 0
