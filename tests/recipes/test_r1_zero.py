"""The recipe as a user runs it, in its own process."""

import hashlib
import json
import signal
import subprocess
import time
from pathlib import Path

import pandas
import pytest
from processes import run_program
from recipe_runs import TINY_RUN, recipe_command, recipe_environment
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

from r1lab.trace import load_run


def _weights_hash(run_dir: Path, step: int) -> str:
    return hashlib.sha256((run_dir / f"checkpoints/step_{step:05d}/model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "zero"
    process = run_program(recipe_command(*TINY_RUN, "--output_dir", run_dir), env=recipe_environment())
    assert process.returncode == 0, process.stderr[-3000:]
    return run_dir, process


def test_a_run_leaves_everything_it_promises(finished_run):
    run_dir, process = finished_run
    run = load_run(run_dir)
    assert list(run.metrics["step"]) == [0, 1, 2, 3, 4]
    trained = run.metrics[run.metrics["step"] > 0]
    for name in ("reward", "reward_std", "rewards/countdown_reward/mean", "rewards/format_reward/mean", "loss",
                 "completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std", "entropy", "grad_norm",
                 "sampling/sampling_logp_difference/max", "moe/max_vio", "moe/bias_norm", "reflection/rate",
                 "step_time",
                 "num_tokens", "learning_rate"):  # fmt: skip
        assert trained[name].notna().all(), name
    assert trained["sampling/sampling_logp_difference/max"].max() < 1e-4
    assert trained["eval/n3/accuracy"].notna().tolist() == [False, True, False, True]
    completions = pandas.read_parquet(run_dir / "completions/completions_00001.parquet")
    assert len(completions) == 16
    assert {"step", "prompt", "completion", "countdown_reward", "format_reward", "advantage"} <= set(
        completions.columns
    )
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run_dir / "config.yaml").exists()
    assert "<!doctype html>" in (run_dir / "report.html").read_text()[:100].lower()
    results = json.loads((run_dir / "results.json").read_text())
    for when in ("base", "final", "final_reflection_banned"):
        assert {"accuracy", "accuracy_se", "accuracy_blind", "greedy_accuracy", "maj@2", "pass@2"} <= set(
            results[when]["n3"]
        )
    assert "held-out n3" in process.stdout and str(run_dir) in process.stdout.replace("\n", "")
    assert results["final_reflection_banned"]["n3"]["reflection/rate"] == 0


def test_its_checkpoint_loads_in_transformers(finished_run):
    checkpoint = finished_run[0] / "checkpoints/step_00004"
    model = DeepseekV3ForCausalLM.from_pretrained(checkpoint)
    assert len(AutoTokenizer.from_pretrained(checkpoint)) <= model.config.vocab_size


def test_killed_at_any_moment_and_resumed_it_ends_in_the_same_weights(finished_run, tmp_path):
    run_dir = tmp_path / "zero"
    process = subprocess.Popen(
        recipe_command(*TINY_RUN, "--output_dir", run_dir),
        env=recipe_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (run_dir / "checkpoints/step_00002/manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    resumed = run_program(
        recipe_command(*TINY_RUN, "--output_dir", run_dir, "--resume_from_checkpoint", "true"),
        env=recipe_environment(),
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert _weights_hash(run_dir, 4) == _weights_hash(finished_run[0], 4)
    assert [row["step"] for row in map(json.loads, (run_dir / "metrics.jsonl").open())] == [0, 1, 2, 3, 4]


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    run_dir = tmp_path / "zero"
    arguments = [*TINY_RUN, "--max_steps", "1000", "--save_steps", "900", "--eval_steps", "0"]
    process = subprocess.Popen(
        recipe_command(*arguments, "--output_dir", run_dir),
        env=recipe_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = run_dir / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume_from_checkpoint true" in errors and "Traceback" not in errors
    assert len(list(run_dir.glob("checkpoints/step_*/manifest.json"))) == 1


def test_a_finished_run_is_not_overwritten(finished_run, run_recipe):
    process = run_recipe(*TINY_RUN, "--output_dir", finished_run[0])
    assert process.returncode == 1
    assert "already holds a run" in process.stderr and "Traceback" not in process.stderr
