"""Completions on disk."""

import json
import os
import struct

import pyarrow.parquet
import pytest

from r1lab.trace import read_completions, remove_completions_after, write_completions
from r1lab.types import Prompt, RolloutGroup


def test_columns_and_values(tmp_path, groups):
    path = write_completions(tmp_path, 12, groups)
    assert path == tmp_path / "completions" / "completions_00012.parquet"
    assert os.listdir(path.parent) == [path.name]
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == [
        "step", "prompt", "completion", "accuracy", "format", "advantage",  # TRL's
        "group", "reward", "finish_reason", "num_tokens", "token_ids", "logps", "train_logps", "entropies", "reflects",
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


def test_what_the_training_pass_found(tmp_path, groups):
    rollout = groups[0].rollouts[0]
    rollout.train_logps, rollout.entropies = [-0.5, -0.25, -0.125], [1.0, 0.5, 0.25]
    columns = pyarrow.parquet.read_table(write_completions(tmp_path, 1, groups)).to_pydict()
    assert columns["train_logps"] == [[-0.5, -0.25, -0.125], None, None]
    assert columns["entropies"] == [[1.0, 0.5, 0.25], None, None]


def test_reasons_are_text_and_shadow_nothing(tmp_path, groups):
    first, second = groups[0].rollouts
    first.extras = {"accuracy_reason": "match", "parts": {"a": 1}, "step": "not a step", "accuracy": "no reward"}
    second.extras = {"accuracy_reason": "\ud800", "score": 0.5}
    table = pyarrow.parquet.read_table(write_completions(tmp_path, 1, groups))
    columns = table.to_pydict()
    assert columns["accuracy_reason"] == ["match", "?", None] and columns["score"] == [None, "0.5", None]
    assert columns["parts"] == ['{"a": 1}', None, None]
    assert columns["step"] == [1, 1, 1] and columns["accuracy"] == [1.0, 0.0, None]
    assert table.column_names.index("accuracy_reason") > table.column_names.index("reflects")


@pytest.mark.parametrize(
    ("max_groups", "kept"), [(None, [0, 1, 2, 3, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (2, [0, 2]), (1, [0])]
)
def test_sampling_keeps_whole_groups_under_their_numbers(tmp_path, groups, max_groups, kept):
    five = [RolloutGroup(Prompt(f"p{i}", [1]), groups[0].rollouts) for i in range(5)]
    write_completions(tmp_path, 1, five, max_groups=max_groups)
    frame = read_completions(tmp_path)
    assert frame["group"].tolist() == [index for index in kept for _ in range(2)]
    assert frame["prompt"].tolist() == [f"p{index}" for index in kept for _ in range(2)]
    write_completions(tmp_path, 2, [], max_groups=3)


def test_sampling_nothing_is_refused(tmp_path, groups):
    with pytest.raises(ValueError, match="max_groups=0"):
        write_completions(tmp_path, 1, groups, max_groups=0)


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
