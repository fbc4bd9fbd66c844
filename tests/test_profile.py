import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "grpo"))

from grpo_cases import are_equal, make_policy, make_trainer, weights_of  # noqa: E402

from r1lab.kernels.ops import FEWEST_ROWS
from r1lab.profile import _pairs, profile_step  # noqa: E402
from r1lab.run import Run, RunConfig  # noqa: E402
from r1lab.types import Completion, Prompt, Rollout, RolloutGroup  # noqa: E402

STAGES = ["rollout and rewards", "rollout", "rewards", "update", "batches", "forward", "backward", "optimizer"]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """(trainer, its step's output, the profile, the directory)."""
    trainer = make_trainer(make_policy())
    directory = tmp_path_factory.mktemp("profile")
    return trainer, *profile_step(trainer, directory), directory


def test_the_profiled_step_is_the_step_that_the_trainer_would_have_made(profiled):
    trainer, output, _, _ = profiled
    other = make_trainer(make_policy())
    metrics = other.step().metrics
    assert are_equal(weights_of(trainer.policy), weights_of(other.policy))
    assert output.metrics["loss"] == metrics["loss"]


def test_stages_lie_within_the_step_and_say_their_memory(profiled):
    _, _, result, _ = profiled
    stages = {stage.name: stage for stage in result.stages}
    assert set(STAGES) <= set(stages)
    assert stages["rollout"].seconds <= stages["rollout and rewards"].seconds <= result.seconds
    assert stages["forward"].seconds + stages["backward"].seconds <= stages["update"].seconds
    assert stages["forward"].calls == stages["backward"].calls >= 1
    assert stages["backward"].peak_bytes > 10_000
    assert stages["rollout"].flops > 0


def test_operations_of_our_kernels_are_those_of_the_step(profiled):
    trainer, output, result, _ = profiled
    ops = {op.name: op for op in result.ops}
    config = trainer.policy.config

    def num_tokens(trains):
        """Of the rows that train, or of those that only count for the load; either reads a group's prompt once."""
        chosen = [(g, [r for r in g.rollouts if (r.advantage != 0) == trains]) for g in output.groups]
        prompts = sum(len(g.prompt.token_ids) for g, rows in chosen if rows)
        return prompts + sum(len(r.completion.token_ids) for _, rows in chosen for r in rows)

    per_token = 6.0 * config.num_experts_per_tok * config.hidden_size * config.moe_intermediate_size
    trained, idle = num_tokens(True), num_tokens(False)
    num_moe = config.num_hidden_layers - config.first_k_dense_replace
    assert ops["r1lab::moe_experts"].flops == pytest.approx(per_token * (trained + idle))
    assert ops["r1lab::moe_experts_backward"].flops == pytest.approx(2 * per_token * trained)
    per_token = 6.0 * config.hidden_size * config.intermediate_size * config.first_k_dense_replace
    per_token += 6.0 * config.hidden_size * config.moe_intermediate_size * config.n_shared_experts * num_moe
    small = per_token * FEWEST_ROWS  # a micro-batch of so few tokens is left to torch
    assert per_token * (trained + idle) - small <= ops["r1lab::swiglu"].flops <= 1.001 * per_token * (trained + idle)
    assert 2 * (per_token * trained - small) <= ops["r1lab::swiglu_backward"].flops <= 2.001 * per_token * trained
    assert ops["r1lab::mla_block_backward"].flops > 2 * ops["r1lab::mla_block"].flops * trained / (trained + idle)
    assert sum(op.seconds for op in result.ops) <= 1.05 * result.seconds
    assert [op.seconds for op in result.ops] == sorted((op.seconds for op in result.ops), reverse=True)


def test_it_leaves_a_trace_and_both_tables(profiled):
    *_, result, directory = profiled
    events = json.loads((directory / "trace.json").read_text())["traceEvents"]
    assert any(event["name"] == "r1lab/backward" for event in events)
    text = (directory / "profile.txt").read_text()
    assert "of peak" in text and "MB at most" in text and "r1lab::moe_experts" in text
    assert result.peak_flops > 1e8


def test_pairs_count_a_prompt_once_a_pass():
    def rollout(length, advantage):
        return Rollout(Completion([5] * length, [0.0] * length, "stop"), "", advantage=advantage)

    group = RolloutGroup(Prompt("", [2, 3, 4]), [rollout(2, 1.0), rollout(4, -1.0), rollout(1, 0.0)])
    trained = 6 + (2 * 3 + 3) + (4 * 3 + 10)
    assert _pairs([group], False) == (trained + 6 + (3 + 1), trained)


def test_a_run_profiles_its_second_step_and_goes_on(tmp_path, monkeypatch):
    profiled_at = []

    def record(trainer, directory):
        profiled_at.append(trainer.step_index + 1)
        return profile_step(trainer, directory)

    monkeypatch.setattr("r1lab.run.profile_step", record)
    trainer = make_trainer(make_policy(), max_steps=3)
    config = RunConfig(output_dir=str(tmp_path), profile=True, eval_steps=0)
    Run(trainer, config, trainer.accelerator, None, {}, {"seed": 0}).train()
    assert profiled_at == [2] and trainer.step_index == 3
    assert (tmp_path / "profile" / "trace.json").exists() and (tmp_path / "profile" / "profile.txt").exists()
