"""recipes/evaluate.py: as a program once, else through its command line in this process."""

import json
import sys

import pytest
from evaluate import run_command
from processes import run_program
from recipe_runs import ROOT, recipe_environment

SMALL = ["--num_problems", "4", "--num_samples", "2", "--max_completion_length", "48"]


def _run(*arguments):
    run_command([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """The embedded base, evaluated by both protocols: (directory, {protocol: results})."""
    directory = tmp_path_factory.mktemp("evaluations")
    plain, r1 = directory / "plain.json", directory / "r1.json"
    command = [sys.executable, ROOT / "recipes/evaluate.py", *SMALL, "--output_file", plain]
    process = run_program(command, env=recipe_environment())
    assert process.returncode == 0, process.stderr[-3000:]
    assert "held-out pick_two/n5: 4 problems" in process.stdout
    _run(*SMALL, "--protocol", "r1", "--output_file", r1)
    data = {path.stem: json.loads(path.read_text()) for path in (plain, r1)}
    return directory, data


def test_the_embedded_base_by_both_protocols(evaluations):
    _, data = evaluations
    assert (data["r1"]["settings"]["temperature"], data["r1"]["settings"]["top_p"]) == (0.6, 0.95)
    splits = data["plain"]["results"]
    assert set(splits) == {"pick_two/n3", "pick_two/n4", "pick_two/n5", "pick_two"}
    assert {"accuracy", "pass@2", "format"} <= set(splits["pick_two/n3"])
    assert len(data["plain"]["intervals"]["pick_two/n3"]["accuracy"]) == 2
    for split in splits:  # greedy decoding knows no temperature
        assert splits[split]["greedy_accuracy"] == data["r1"]["results"][split]["greedy_accuracy"]


def test_two_evaluations_are_compared_and_drawn(evaluations, tmp_path, capsys):
    directory, _ = evaluations
    files = directory / "plain.json", directory / "r1.json"
    _run("compare", *files)
    printed = capsys.readouterr().out
    assert "pick_two/n4: 4 problems in both" in printed and "greedy accuracy" in printed
    _run("plot", *files, "--output", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_problems_from_files(tmp_path):
    rows = [{"question": "what is 3 + 4 ?", "answer": "7"}, {"question": "what is 2 + 2 ?", "answer": "4"}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = {
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    }
    (tmp_path / "programs.jsonl").write_text(json.dumps(program) + "\n")
    output = tmp_path / "results.json"
    _run(*SMALL, "--task", tmp_path / "sums.jsonl", tmp_path / "programs.jsonl", "--output_file", output)
    results = json.loads(output.read_text())["results"]
    assert {split: result["num_problems"] for split, result in results.items()} == {"sums": 2, "programs": 1}
    assert "maj@2" in results["sums"] and "maj@2" not in results["programs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "best"], "protocol='best': use one of plain, r1"),
        (["--task", "nowhere/rows.jsonl"], "no such file"),
        (["--max_completion_length", "5000"], "fills the model's context of 1024 tokens"),
        (["compare", "a.json", "b.json"], "a.json: no such evaluation"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(SystemExit) as stop:
        _run(*arguments)
    assert str(stop.value).startswith("error: ") and message in str(stop.value)
