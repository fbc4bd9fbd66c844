import json

import pytest

from rewards.cli import main
from rewards.cli.score import CHUNK, chunks, load_rewards

ROWS = [
    {"problem": "2+2", "completion": "<think>2+2</think> <answer>4</answer>", "solution": "4", "level": 1},
    {"problem": "2+2", "completion": r"\boxed{5}", "solution": "4", "level": 1},
    {"problem": "3+3", "completion": [{"role": "assistant", "content": r"\boxed{6}"}], "solution": None},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rewards_and_reasons_are_added_to_the_rows(file, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert main(["score", str(file), "--reward", "accuracy", "format", "--output", str(output)]) == 0
    rows = read(output)
    assert [row["accuracy"] for row in rows] == [1.0, 0.0, None]
    assert [row["format_reason"] for row in rows] == ["good", "no <think>", "no <think>"]
    assert [row["problem"] for row in rows] == ["2+2", "2+2", "3+3"]
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "0.5" in shown and "2 no <think>" in shown and f"wrote {output}" in shown


def test_every_row_can_be_shown(file, capsys):
    assert main(["score", str(file), "--reward", "format", "--rows"]) == 0
    assert "format_reason" in capsys.readouterr().out


def test_parquet_in_and_out(file, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    first, second, back = tmp_path / "1.parquet", tmp_path / "2.parquet", tmp_path / "3.jsonl"
    assert main(["score", str(plain), "--reward", "tag_count", "--output", str(first)]) == 0
    assert main(["score", str(first), "--reward", "accuracy", "--output", str(second)]) == 0
    assert main(["score", str(second), "--reward", "format", "--output", str(back)]) == 0
    assert parquet.read_table(second).column("accuracy").to_pylist() == [1.0, 0.0]
    assert [(row["tag_count"], row["accuracy"], row["format"]) for row in read(back)] == [(1, 1, 1), (0, 0, 0)]


def test_options_and_columns(file, tmp_path):
    output = tmp_path / "out.jsonl"
    arguments = ["--option", "cosine.max_len=1", "cosine.min_value_correct=0.25", "--column", "answer=solution"]
    assert main(["score", str(file), "--reward", "cosine", *arguments, "--output", str(output)]) == 0
    assert [row["cosine"] for row in read(output)] == [0.25, -0.5, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "acuracy"], "'acuracy' is unknown"),
        (["--reward", "countdown"], "columns target; got solution, level"),
        (["--reward", "format", "--option", "cosine.max_len=1"], "write REWARD.OPTION=VALUE"),
        (["--reward", "format", "--option", "format.nothing=1"], "has no option 'nothing'"),
        (["--reward", "format", "--column", "completion=text"], "no column 'text'; it has problem, completion"),
        (["--reward", "format", "--output", "out.csv"], "out.csv: unknown kind of file"),
    ],
)
def test_mistakes_are_one_line(file, capsys, arguments, message):
    assert main(["score", str(file), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"completion": "a"}\n{', "a.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: a row must be a JSON object, not list"),
        ("a.jsonl", '{"reply": "a"}\n', "tried completion, response"),
        ("a.csv", "", "a.csv: unknown kind of file"),
    ],
)
def test_bad_files(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    assert main(["score", str(path), "--reward", "format"]) == 2
    assert message in capsys.readouterr().err


def test_a_lone_surrogate_survives(tmp_path):
    path, output = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text('{"completion": "\\ud800 \u4f60"}\n', encoding="utf-8")
    assert main(["score", str(path), "--reward", "format", "--output", str(output)]) == 0
    assert read(output)[0]["completion"] == "\ud800 \u4f60"


def test_a_missing_file(tmp_path, capsys):
    assert main(["score", str(tmp_path / "no.jsonl"), "--reward", "format"]) == 2
    assert "no.jsonl" in capsys.readouterr().err


def test_chunks_keep_a_prompts_neighbours_together():
    prompts = ["a"] * (CHUNK - 1) + ["b"] * 3 + ["c"] * 2
    assert list(chunks(prompts, len(prompts))) == [(0, CHUNK + 2), (CHUNK + 2, CHUNK + 4)]
    assert list(chunks(None, 2 * CHUNK + 1)) == [(0, CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, 2 * CHUNK + 1)]
    assert list(chunks(None, 0)) == []


def test_a_dotted_path_with_options():
    rewards = load_rewards(["rewards.format.format_reward"], ["rewards.format.format_reward.prefilled_think=true"])
    (reward,) = rewards.values()
    assert reward(completions=["a</think> <answer>4</answer>"]) == [1.0]
