"""recipes/evaluate.py as a program."""

import json
import sys

from processes import run_program
from recipe_runs import ROOT, recipe_environment

SMALL = ["--num_problems", "4", "--num_samples", "2", "--max_completion_length", "48"]


def _evaluate(*arguments):
    return run_program([sys.executable, ROOT / "recipes/evaluate.py", *arguments], env=recipe_environment())


def test_the_embedded_base_by_both_protocols(tmp_path):
    results = {}
    for protocol in ("plain", "r1"):
        output = tmp_path / f"{protocol}.json"
        process = _evaluate(*SMALL, "--protocol", protocol, "--output_file", output)
        assert process.returncode == 0, process.stderr[-3000:]
        assert "held-out n5: 4 problems" in process.stdout
        results[protocol] = json.loads(output.read_text())
    assert (results["r1"]["settings"]["temperature"], results["r1"]["settings"]["top_p"]) == (0.6, 0.95)
    splits = results["plain"]["results"]
    assert set(splits) == {"n3", "n4", "n5"} and {"accuracy", "pass@2", "format"} <= set(splits["n3"])
    assert splits["n3"]["greedy_accuracy"] == results["r1"]["results"]["n3"]["greedy_accuracy"]


def test_problems_from_a_file(tmp_path):
    rows = [{"question": "what is 3 + 4 ?", "answer": "7"}, {"question": "what is 2 + 2 ?", "answer": "4"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "results.json"
    process = _evaluate(
        *SMALL, "--eval_dataset_name", tmp_path / "test.jsonl", "--reward", "accuracy", "--output_file", output
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads(output.read_text())["results"]["test"]["num_problems"] == 2


def test_mistakes_are_one_line():
    process = _evaluate("--protocol", "best")
    assert process.returncode == 1 and "protocol='best': use one of plain, r1" in process.stderr
    assert "Traceback" not in process.stderr
