import copy

import pytest
import torch
from grpo_cases import are_equal, largest_difference, make_policy, make_trainer, weights_of

from r1lab.kernels.build import load_extension
from r1lab.types import Prompt


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_policy_learns_a_bandit(seed):
    trainer = make_trainer(
        make_policy(seed), seed=seed, learning_rate=5e-3, generation_batch_size=64, num_generations=8, max_steps=15
    )
    rewards = [trainer.step().metrics["reward"] for _ in range(15)]
    first, last = sum(rewards[:2]) / 2, sum(rewards[-2:]) / 2
    assert first < 0.35
    assert last > first + 0.3, rewards


SETTINGS = [
    {},
    {
        "beta": 0.05,
        "sync_ref_model": True,
        "ref_model_sync_steps": 2,
        "num_iterations": 2,
        "lr_scheduler_type": "cosine",
    },
    {"dynamic_sampling": True, "steps_per_generation": 2, "warmup_steps": 3},
    {"router_replay": True, "num_iterations": 2},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_same_seed_gives_the_same_weights_and_a_resume_continues_them(settings):
    straight = make_trainer(make_policy(), **settings)
    metrics = [straight.step().metrics for _ in range(4)]
    again_policy = make_policy()
    again = make_trainer(again_policy, **settings)
    for _ in range(2):
        again.step()
    saved, state = weights_of(again_policy), copy.deepcopy(again.state_dict())

    resumed_policy = make_policy(seed=5)
    resumed = make_trainer(resumed_policy, **settings)
    resumed_policy.load_state_dict(saved)
    resumed.load_state_dict(state)
    tail = [resumed.step().metrics for _ in range(2)]
    for _ in range(2):
        again.step()
    assert are_equal(weights_of(straight.policy), weights_of(again_policy))
    assert are_equal(weights_of(straight.policy), weights_of(resumed_policy))
    assert resumed.step_index == 4
    for expected, metric in zip(metrics[2:], tail, strict=True):
        for name in ("reward", "loss", "learning_rate", "num_tokens", "moe/max_vio", "completions/mean_length"):
            assert metric[name] == expected[name], name


def test_the_state_is_plain_data(tmp_path):
    trainer = make_trainer(make_policy())
    trainer.step()
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 1 and state["num_tokens"] > 0


def test_another_seed_gives_other_weights():
    weights = []
    for seed in (0, 1):
        trainer = make_trainer(make_policy(), seed=seed)
        trainer.step()
        weights.append(weights_of(trainer.policy))
    assert not are_equal(*weights)


def test_batch_scale_divides_by_the_deviation_of_all_rewards():
    by_scale = {}
    for scale in ("none", "batch", "group"):
        groups = make_trainer(make_policy(), scale_rewards=scale).step().groups
        by_scale[scale] = torch.tensor([[r.advantage for r in group.rollouts] for group in groups], dtype=torch.float64)
        rewards = torch.tensor([[r.reward for r in group.rollouts] for group in groups], dtype=torch.float64)
    assert rewards.std() > 0
    torch.testing.assert_close(by_scale["batch"], by_scale["none"] / (rewards.std() + 1e-4))
    torch.testing.assert_close(by_scale["group"], by_scale["none"] / (rewards.std(1, keepdim=True) + 1e-4))


def test_scale_rewards_reaches_the_update():
    weights = []
    for scale in ("none", "batch"):
        trainer = make_trainer(make_policy(), scale_rewards=scale, max_grad_norm=0.0)
        gradient_norm = trainer.step().metrics["grad_norm"]
        weights.append(gradient_norm)
    assert weights[1] > 2 * weights[0]


def test_training_logps_equal_the_recorded_ones():
    trainer = make_trainer(make_policy(), temperature=0.8)
    for _ in range(3):
        metrics = trainer.step().metrics
        is_exact = load_extension()  # the compiled kernels: the same bits
        assert 0 <= metrics["sampling/sampling_logp_difference/max"] <= (0 if is_exact else 1e-4)


def test_a_transformers_model_trains_to_the_same_weights():
    from transformers import DeepseekV3ForCausalLM

    ours = make_policy()
    theirs = DeepseekV3ForCausalLM(ours.config)
    theirs.load_state_dict(ours.state_dict())
    for policy in (ours, theirs):
        make_trainer(policy, routing_bias_speed=0.0).step()
    assert largest_difference(weights_of(ours), weights_of(theirs)) < 1e-4


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no prompts"):
        make_trainer(make_policy(), num_prompts=0)


def test_metrics_of_a_step():
    trainer = make_trainer(make_policy())
    output = trainer.step()
    rollouts = [rollout for group in output.groups for rollout in group.rollouts]
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    assert len(rollouts) == 16 and isinstance(output.groups[0].prompt, Prompt)
    assert output.metrics["reward"] == pytest.approx(sum(r.reward for r in rollouts) / 16)
    assert output.metrics["rewards/good_share/mean"] == pytest.approx(output.metrics["reward"])
    assert output.metrics["completions/mean_length"] == sum(lengths) / 16
    assert output.metrics["completions/max_length"] == max(lengths) <= 10
    prompts = sum(len(group.prompt.token_ids) for group in output.groups)
    assert output.metrics["num_tokens"] == sum(lengths) + prompts


def test_a_process_without_a_prompt_in_a_round_calls_no_reward_function():
    # Dynamic sampling asks for what is missing, which may be less than one prompt a process.
    collector = make_trainer(make_policy()).collector
    collector.rank, collector.world_size = 1, 2
    calls = []
    collector.reward_funcs = [lambda completions, **columns: calls.append(completions) or [0.0] * len(completions)]
    assert collector._sample_round(1) == [] and not calls
    assert len(collector._sample_round(2)) == 1 and len(calls) == 1
