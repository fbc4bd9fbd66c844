"""Distillation, small: a student, the teacher's traces, imitation and RL."""

import json

import pytest
from recipe_runs import ROOT
from transformers import LlamaForCausalLM

from r1lab.stages import read_marker
from r1lab.tasks.tokenizer import build_tokenizer

BASE = ROOT / "data" / "base"
TINY = [
    "--teacher", str(BASE), "--max_steps", "1", "--generation_batch_size", "8", "--num_generations", "4",
    "--max_completion_length", "24", "--num_train_problems", "50", "--eval_steps", "0", "--final_num_problems", "2",
    "--final_num_samples", "2", "--save_steps", "1", "--sft_num_epochs", "3", "--sft_batch_size", "1",
    "--reject_num_problems", "24", "--reject_num_samples", "2", "--student_num_steps", "2",
    "--student_tokens_per_batch", "512",
]  # fmt: skip


def _distill(*arguments):
    from distill import main, parse_arguments
    from r1_zero import run_clearly

    run_clearly(lambda: main(*parse_arguments([str(argument) for argument in arguments])))


def _assert_clear_exit(arguments, message):
    with pytest.raises(SystemExit) as stop:
        _distill(*arguments)
    assert str(stop.value.code).startswith("error: ") and message in stop.value.code


def test_a_student_learns_by_imitation_and_by_rl(tmp_path, capsys):
    run_dir = tmp_path / "run"
    _distill(*TINY, "--output_dir", run_dir)
    markers = {stage: read_marker(run_dir / stage) for stage in ("student", "traces", "distill", "rl")}
    assert markers["traces"]["filters"]["sampled"] == 48
    assert markers["distill"]["num_traces"] == markers["traces"]["filters"]["kept"] > 0
    for stage in ("distill", "rl"):
        assert markers[stage]["settings"]["starts_from"] == f"student, finished {markers['student']['finished']}"
    student = LlamaForCausalLM.from_pretrained(run_dir / "student/model")
    distilled = LlamaForCausalLM.from_pretrained(run_dir / "distill/model")
    assert 0.5e6 < student.num_parameters() < 1e6
    assert not student.lm_head.weight.equal(distilled.lm_head.weight)
    results = json.loads((run_dir / "results.json").read_text())
    assert list(results["evaluations"]) == ["student", "rl", "distill"]
    for split in ("n3", "n4", "n5"):
        assert 0 <= results["evaluations"]["distill"][split]["language_consistency"] <= 1

    from compare_r1 import read_distilled

    models = read_distilled(str(run_dir))["models"]
    assert {name: model["rl_steps"] for name, model in models.items()} == {"student": 0, "rl": 1, "distill": 0}
    assert all(0 <= model["language_consistency"] <= 1 for model in models.values())

    capsys.readouterr()
    times = [marker["finished"] for marker in markers.values()]
    _distill(*TINY, "--output_dir", run_dir)
    assert [read_marker(run_dir / stage)["finished"] for stage in markers] == times


def test_the_student_reads_the_corpus_words():
    from distill import build_student_config

    tokenizer = build_tokenizer()
    config = build_student_config(tokenizer)
    assert len(tokenizer) <= config.vocab_size and config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "teach"], "unknown stage 'teach'; use some of student, traces, distill, rl"),
        (["--student_num_steps", "0"], "student_num_steps=0"),
        (["--stages", "distill", "--student_name_or_path", str(BASE)], "has no finished traces to learn from"),
        (["--stages", "rl"], "has no finished student; add student to --stages"),
        (["--stages", "traces", "--teacher", "/no/such/model"], "no such directory"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    config = ["--config", ROOT / "recipes/configs/r1_distill.yaml"]
    _assert_clear_exit([*config, *TINY, "--output_dir", tmp_path / "run", *arguments], message)


def test_a_teacher_that_has_not_finished_is_named(tmp_path):
    from distill import find_teacher

    (tmp_path / "r1" / "rl").mkdir(parents=True)
    with pytest.raises(ValueError, match="the run's last stage, final_rl, has not finished"):
        find_teacher(str(tmp_path / "r1"))
    stage = tmp_path / "r1" / "final_rl"
    stage.mkdir()
    (stage / "stage.json").write_text(
        json.dumps({"finished": "now", "settings": {}, "model": "checkpoints/step_00002"})
    )
    assert find_teacher(str(tmp_path / "r1")) == (
        str(stage / "checkpoints/step_00002"), f"{tmp_path / 'r1'}, finished now",
    )  # fmt: skip
    assert find_teacher("hub/model") == ("hub/model", "hub/model")
