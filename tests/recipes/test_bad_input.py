"""Each mistake gives one clear line and an exit code that is not 0."""

import json
from types import SimpleNamespace

import pytest
from r1_zero import build_sampler, run_command
from recipe_runs import TINY_RUN
from transformers import DeepseekV3Config

from r1lab.config import GRPOConfig
from r1lab.model import PolicyForCausalLM
from r1lab.run import RunConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type='ppo': use one of grpo"),
        ({"generation_batch_size": 100, "num_generations": 16}, "100 is not divisible by num_generations=16"),
        ({"num_generations": 1, "generation_batch_size": 4}, "num_generations=1: a group needs at least 2"),
        ({"temperature": 0.0}, "temperature=0.0: must be positive"),
        ({"scale_rewards": "std"}, "scale_rewards='std'"),
        ({"reward_weights": [1.0]}, "reward_weights has 1 entries for 2 reward_funcs"),
        ({"max_steps": 0}, "max_steps=0: must be at least 1"),
        ({"vllm_mode": "remote"}, "vllm_mode='remote': use one of colocate, server"),
        (
            {"vllm_importance_sampling_mode": "token"},
            "vllm_importance_sampling_mode='token': use one of token_truncate",
        ),
        (
            {"vllm_importance_sampling_clip_min": 3.0},
            "clip_min=3.0: must be below vllm_importance_sampling_clip_max=3.0",
        ),
        (
            {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": None},
            "'token_truncate' needs a bound",
        ),
        ({"vllm_server_base_url": "localhost:8000"}, "'localhost:8000': begin it with http://"),
        ({"vllm_server_timeout": -1.0}, "vllm_server_timeout=-1.0"),
        ({"vllm_gpu_memory_utilization": 0.0}, "vllm_gpu_memory_utilization=0.0"),
        ({"vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size=2: only 1"),
        ({"use_vllm": True, "num_speculative_tokens": 1}, "num_speculative_tokens=1 drafts in the native engine only"),
        ({"use_vllm": True, "router_replay": True}, "router_replay=True needs rollouts that record their experts"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        GRPOConfig(**settings)


def test_run_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="save_steps=0"):
        RunConfig(save_steps=0)


def _assert_clear_exit(arguments, message):
    """The same in this process, without the seconds that the imports take."""
    with pytest.raises(SystemExit) as stop:
        run_command([str(argument) for argument in arguments])
    assert str(stop.value.code).startswith("error: ") and message in stop.value.code
    assert "\n" not in stop.value.code


def _assert_one_clear_error(process, message):
    assert process.returncode not in (0, None)
    assert message in process.stderr, process.stderr[-2000:]
    assert "Traceback" not in process.stderr, process.stderr[-2000:]


def test_unknown_key_on_the_command_line(run_recipe):
    _assert_one_clear_error(run_recipe("--learning_rat", "1e-3"), "learning_rat")


def test_unknown_key_in_yaml(run_recipe, tmp_path):
    (tmp_path / "bad.yaml").write_text("learning_rat: 0.001\n")
    _assert_one_clear_error(run_recipe("--config", tmp_path / "bad.yaml"), "learning_rat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_name", "no/such.jsonl"], "no such file"),
        (["--model_name_or_path", "/no/such/model"], "no such directory"),
        (["--max_completion_length", "1020"], "leaves beside max_completion_length"),
        (["--max_completion_length", "5000"], "fills the model's context of 1024"),
        (["--task", "sudoku"], "unknown task 'sudoku'"),
        (["--reward_funcs", "applause", "format"], "applause"),
        (["--resume_from_checkpoint", "/no/such/run"], "no such directory"),
        (["--log_with", "paper"], "Unsupported logging capability: paper"),
        (["--use_vllm", "true"], "pip install 'trl[vllm]'"),
    ],
)
def test_bad_values_are_named(tmp_path, arguments, message):
    _assert_clear_exit([*TINY_RUN, "--output_dir", tmp_path / "run", *arguments], message)


@pytest.mark.parametrize("router_replay", [True, False])
def test_routing_is_recorded_where_it_is_replayed(router_replay):
    engine = SimpleNamespace(generate=lambda prompt_ids, params, seeds: params)
    sample = build_sampler(engine, GRPOConfig(router_replay=router_replay))
    assert sample([[1]], [[0]]).record_routing is router_replay


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *_: [])
    with pytest.warns(UserWarning, match="no supported trackers"):
        _assert_clear_exit([*TINY_RUN, "--output_dir", tmp_path, "--log_with", "wandb"], "pip install wandb")


def test_dataset_without_the_needed_column(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "hello"}) + "\n")
    arguments = [*TINY_RUN, "--output_dir", tmp_path / "run", "--dataset_name", tmp_path / "rows.jsonl"]
    _assert_clear_exit(arguments, "has no column 'prompt' or 'question' or 'problem', only text")


def test_gold_column_missing_for_the_reward(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "1 + 1 ?"}) + "\n")
    arguments = [*TINY_RUN, "--output_dir", tmp_path / "run", "--dataset_name", tmp_path / "rows.jsonl"]
    _assert_clear_exit([*arguments, "--reward_funcs", "accuracy", "format"], "solution")


def test_checkpoint_of_another_architecture(run_recipe, tmp_path):
    other = DeepseekV3Config(
        vocab_size=320, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=None, kv_lora_rank=8, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        first_k_dense_replace=1, max_position_embeddings=256,
    )  # fmt: skip
    model_dir = tmp_path / "other"
    PolicyForCausalLM(other).save_pretrained(model_dir)
    from r1lab.tasks.tokenizer import build_tokenizer

    build_tokenizer().save_pretrained(model_dir)
    arguments = [*TINY_RUN, "--output_dir", tmp_path / "run", "--max_steps", "1", "--eval_steps", "0"]
    process = run_recipe(*arguments, "--model_name_or_path", model_dir)
    assert process.returncode == 0, process.stderr[-2000:]
    process = run_recipe(*arguments, "--resume_from_checkpoint", "true")
    _assert_one_clear_error(process, "hidden_size")
