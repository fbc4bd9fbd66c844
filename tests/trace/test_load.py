"""Runs read back: whole, killed, and what is no run."""

import json
import math
import os

import pytest

from r1lab.trace import MetricsLog, load_run, write_completions


def write_run(path, steps, groups=None):
    with MetricsLog(path / "metrics.jsonl") as log:
        for step in steps:
            log.append({"step": step, "reward": step / 10})
            if groups:
                write_completions(path, step, groups)
    return path


def test_load_run(tmp_path, groups):
    write_run(tmp_path, [1, 2], groups)
    (tmp_path / "config.yaml").write_text("learning_rate: 0.1\nseed: 3\n")
    run = load_run(str(tmp_path))
    assert run.config == {"learning_rate": 0.1, "seed": 3}
    assert run.metrics["step"].tolist() == [1, 2] and run.metrics["reward"].tolist() == [0.1, 0.2]
    assert len(run.completions) == 6 and run.notes == []
    assert math.isnan(run.completions["format"][1])


def test_completions_are_read_at_the_first_use(tmp_path, groups):
    write_run(tmp_path, [1], groups)
    run = load_run(tmp_path)
    write_completions(tmp_path, 2, groups)
    assert set(run.completions["step"]) == {1, 2}


def test_a_killed_run_loads_with_notes(tmp_path, groups):
    write_run(tmp_path, [1, 2], groups)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "rew')
    os.truncate(tmp_path / "completions" / "completions_00002.parquet", 100)
    (tmp_path / "completions" / ".tmp-completions_00003.parquet").write_bytes(b"PAR1")
    run = load_run(tmp_path)
    assert run.metrics["step"].tolist() == [1, 2]
    assert set(run.completions["step"]) == {1}
    assert len(run.notes) == 3
    for word, note in zip(("metrics.jsonl", "config.yaml", "completions_00002"), run.notes, strict=True):
        assert word in note


def test_runs_without_completions(tmp_path):
    frame = load_run(write_run(tmp_path, [1])).completions
    assert len(frame) == 0 and {"prompt", "completion", "reward"} <= set(frame.columns)


def test_what_is_no_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_run(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no metrics.jsonl$"):
        load_run(tmp_path)
    write_run(tmp_path / "seed1", [1])
    with pytest.raises(ValueError, match=r"did you mean .*seed1"):
        load_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "re')
    with pytest.raises(ValueError, match="no finished step"):
        load_run(tmp_path)
    write_run(tmp_path / "seed2", [1])
    (tmp_path / "seed2" / "config.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"config.yaml is not YAML"):
        load_run(tmp_path / "seed2")


def test_an_empty_directory_and_a_run_stopped_before_its_first_step(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is empty: no run has started"):
        load_run(tmp_path / "empty")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match=r"only config.yaml, empty: the run was stopped before its first step"):
        load_run(tmp_path)


@pytest.mark.parametrize("version", [99, "two"])
def test_other_formats(tmp_path, version):
    write_run(tmp_path, [1])
    (tmp_path / "config.yaml").write_text(f"run_format: {version}\n")
    with pytest.raises(ValueError, match="newer r1lab" if version == 99 else "run_format is 'two'"):
        load_run(tmp_path)


def write_evaluated_run(path, groups):
    with MetricsLog(path / "metrics.jsonl") as log:
        log.append({"step": 0, "eval/n3/accuracy": 0.1, "eval/n3/reflection/rate": 0.5})
        log.append({"step": 1, "reward": 0.2})
        log.append({"step": 2, "reward": 0.3, "eval/n3/accuracy": 0.4, "eval/n4/accuracy": float("nan")})
    write_completions(path, 2, groups)
    results = {"seconds": 3.0, "base": {"n3": {"accuracy": 0.1}}, "final": {"n3": {"accuracy": 0.4, "pass@2": 0.5}}}
    (path / "results.json").write_text(json.dumps(results))
    return load_run(path)


def test_evaluations_and_results_are_tidy(tmp_path, groups):
    run = write_evaluated_run(tmp_path, groups)
    assert run.evaluations.to_dict("records") == [
        {"step": 0, "split": "n3", "metric": "accuracy", "value": 0.1},
        {"step": 0, "split": "n3", "metric": "reflection/rate", "value": 0.5},
        {"step": 2, "split": "n3", "metric": "accuracy", "value": 0.4},
    ]
    assert list(run.results.itertuples(index=False, name=None)) == [
        ("base", "n3", "accuracy", 0.1),
        ("final", "n3", "accuracy", 0.4),
        ("final", "n3", "pass@2", 0.5),
    ]


def test_datasets(tmp_path, groups):
    datasets = write_evaluated_run(tmp_path, groups).to_datasets()
    assert {name: len(one) for name, one in datasets.items()} == {
        "metrics": 3, "evaluations": 3, "completions": 3, "results": 3,
    }  # fmt: skip
    assert datasets["completions"][0]["completion"] == "3 + 5 = 8 off 0"
    assert datasets["completions"][0]["token_ids"] == [5, 6, 7]


def test_an_unfinished_run_has_no_results_yet(tmp_path):
    run = load_run(write_run(tmp_path, [1]))
    assert len(run.results) == 0 and len(run.evaluations) == 0
    assert any("results.json is missing" in note for note in run.notes)
    assert set(run.to_datasets()) == {"metrics"}
    (tmp_path / "results.json").write_text('{"base": {"n3"')
    run = load_run(tmp_path)
    assert len(run.results) == 0 and any("results.json: left out" in note for note in run.notes)
