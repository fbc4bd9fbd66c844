"""Completions on disk and runs read back."""

import json
import math
import os
import struct

import pyarrow.parquet
import pytest

from r1lab.trace import MetricsLog, load_run, read_completions, remove_completions_after, write_completions
from r1lab.types import Completion, Prompt, Rollout, RolloutGroup


def build_rollout(text, tokens, rewards, reward, advantage=0.0, finish_reason="stop"):
    logps = [-0.1 * (index + 1) for index in range(len(tokens))]
    return Rollout(Completion(tokens, logps, finish_reason), text, rewards, reward, advantage)


@pytest.fixture
def groups():
    chat = [{"role": "user", "content": "Was ist 3 × 4?"}]
    return [
        RolloutGroup(
            Prompt("3 5 target 8", [1, 2]),
            [
                build_rollout("3 + 5 = 8 off 0", [5, 6, 7], {"accuracy": 1.0, "format": 0.0}, 1.0, 0.5),
                build_rollout("wait", [5], {"accuracy": 0.0, "format": None}, 0.0, -0.5, "length"),
            ],
        ),
        RolloutGroup(Prompt(chat, [3]), [build_rollout("bad \ud800 surrogate", [], {"accuracy": None}, float("nan"))]),
    ]


def write_run(path, steps, groups=None):
    with MetricsLog(path / "metrics.jsonl") as log:
        for step in steps:
            log.append({"step": step, "reward": step / 10})
            if groups:
                write_completions(path, step, groups)
    return path


def test_columns_and_values(tmp_path, groups):
    path = write_completions(tmp_path, 12, groups)
    assert path == tmp_path / "completions" / "completions_00012.parquet"
    assert os.listdir(path.parent) == [path.name]
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == [
        "step", "prompt", "completion", "accuracy", "format", "advantage",  # TRL's
        "group", "reward", "finish_reason", "num_tokens", "token_ids", "logps", "reflects",
    ]  # fmt: skip
    columns = table.to_pydict()
    assert columns["step"] == [12, 12, 12] and columns["group"] == [0, 0, 1]
    assert columns["accuracy"] == [1.0, 0.0, None] and columns["format"] == [0.0, None, None]
    assert columns["reward"] == [1.0, 0.0, None] and columns["advantage"] == [0.5, -0.5, 0.0]
    assert columns["finish_reason"] == ["stop", "length", "stop"] and columns["num_tokens"] == [3, 1, 0]
    assert columns["token_ids"] == [[5, 6, 7], [5], []] and columns["reflects"] == [False, True, False]
    assert columns["completion"][2] == "bad ? surrogate"
    assert json.loads(columns["prompt"][2]) == groups[1].prompt.text


def test_logps_are_the_engines_fp32_bits(tmp_path, groups):
    values = [struct.unpack("f", struct.pack("f", value))[0] for value in (-1e-7, -3.3333333, -1e-42)]
    groups[0].rollouts[0].completion.logps = values
    table = pyarrow.parquet.read_table(write_completions(tmp_path, 1, groups))
    assert table["logps"].to_pylist()[0] == values


def test_a_reward_may_not_shadow_a_column(tmp_path, groups):
    groups[0].rollouts[0].rewards["group"] = 1.0
    with pytest.raises(ValueError, match=r"'group'.*rename"):
        write_completions(tmp_path, 1, groups)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, groups, monkeypatch):
    path = write_completions(tmp_path, 1, groups)
    before = path.read_bytes()

    def fail(table, where):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        write_completions(tmp_path, 1, groups)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_no_rollouts(tmp_path):
    write_completions(tmp_path, 1, [], reward_names=["accuracy"])
    assert len(read_completions(tmp_path)) == 0 and "accuracy" in read_completions(tmp_path)


def test_read_and_remove(tmp_path, groups):
    for step in (2, 10, 1):
        write_completions(tmp_path, step, groups)
    assert read_completions(tmp_path)["step"].tolist() == [1] * 3 + [2] * 3 + [10] * 3
    assert set(read_completions(tmp_path, [2, 99])["step"]) == {2}
    assert remove_completions_after(tmp_path, 2) == 1
    assert set(read_completions(tmp_path)["step"]) == {1, 2}


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
