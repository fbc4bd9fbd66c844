"""Two evaluations of the same problems, and evaluations on disk."""

import json

import pytest
from evaluate_cases import evaluation, judged, outcome
from matplotlib.image import imread

from r1lab.evaluate import (
    SplitOutcome,
    compare_evaluations,
    load_evaluation,
    plot_pass_at_k,
    sign_flip_test,
    write_evaluation,
)
from r1lab.evaluate.store import summaries


def _by_metric(rows, split):
    return {row.metric: row for row in rows if row.split == split}


def test_differences_are_taken_problem_by_problem():
    first = evaluation(t__n3=outcome(["1100", "0000", "1000"]))
    second = evaluation(t__n3=outcome(["1110", "1000", "1000"]))
    rows = _by_metric(compare_evaluations(first, second), "t/n3")
    row = rows["accuracy"]
    assert (row.first, row.second) == (0.25, pytest.approx(5 / 12)) and row.num_problems == 3
    assert row.difference == pytest.approx(1 / 6)
    assert row.p_value == sign_flip_test([0.25, 0.25, 0.0]) == 0.5
    assert rows["pass@4"].difference == pytest.approx(1 / 3)
    assert rows["greedy_accuracy"].p_value == 1.0 and rows["greedy_accuracy"].difference == pytest.approx(1 / 3)
    assert "pass@1" not in rows


def test_pairing_makes_a_small_steady_gain_certain():
    """Problems differ by far more than the runs do; each problem gains a little."""
    patterns = ["1" * i + "0" * (16 - i) for i in range(15)] * 2
    better = [pattern.replace("0", "1", 1) for pattern in patterns]
    row = compare_evaluations(evaluation(t=outcome(patterns)), evaluation(t=outcome(better)))[0]
    assert row.low == row.high == pytest.approx(1 / 16) and row.p_value < 0.001


def test_only_shared_problems_count_and_a_repeated_prompt_is_two_problems():
    first = outcome(["10", "00", "11"])
    first.prompts = ["a", "a", "b"]
    second = outcome(["11", "11", "00"])
    second.prompts = ["c", "a", "a"]
    row = compare_evaluations(evaluation(t=first), evaluation(t=second))[0]
    assert row.num_problems == 2 and (row.first, row.second) == (0.25, 0.5)
    second.prompts = ["x", "y", "z"]
    with pytest.raises(ValueError, match=r"no problem in common: one has t \(3\), the other t \(3\)"):
        compare_evaluations(evaluation(t=first), evaluation(t=second))


def test_tasks_are_pooled_and_different_ks_share_what_they_can():
    first = evaluation(t__n3=outcome(["1111", "0000"]), t__n4=outcome(["0000"]), u=outcome(["1000"]))
    second = evaluation(t__n3=outcome(["11", "10"]), t__n4=outcome(["00"]), v=outcome(["11"]))
    rows = compare_evaluations(first, second)
    assert list(dict.fromkeys(row.split for row in rows)) == ["t/n3", "t/n4", "t"]
    pooled = _by_metric(rows, "t")
    assert pooled["accuracy"].num_problems == 3 and pooled["accuracy"].second == pytest.approx(0.5)
    assert "pass@2" in pooled and not {"pass@4", "maj@4", "maj@2"} & set(pooled)


def _written(path, one, **options):
    results, intervals = summaries(one)
    write_evaluation(path, one, results, intervals, **options)
    return path


def test_a_written_evaluation_reads_back(tmp_path):
    splits = {"t__n3": outcome(["10", "00"], text="hé\ud800"), "t__n4": outcome(["11"], answer=None)}
    splits["t__n4"].has_votes = False
    one = evaluation(**splits)
    path = _written(tmp_path / "new" / "a.json", one)
    back = load_evaluation(path)
    assert back.settings == {"model": "m"}
    for split, expected in one.splits.items():
        assert back.splits[split].scores() == expected.scores()
        assert back.splits[split].prompts == expected.prompts
        assert back.splits[split].sampled[0][0].text == ""
    data = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["results"]["t/n3"]["accuracy"] == 0.25 and data["intervals"]["t/n3"]["accuracy"] == [0.0, 0.5]
    assert data["results"]["t"]["num_problems"] == 3 and "maj@2" not in data["results"]["t/n4"]
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]
    kept = load_evaluation(_written(tmp_path / "b.json", one, keep_text=True))
    assert kept.splits["t/n3"].sampled[0][0].text == "hé\ud800"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not an evaluation"),
        ('{"settings": {}, "results": {}}', "is not an evaluation"),
        ('{"format": 99, "problems": {}}', "format 99, this r1lab reads up to 1: upgrade"),
        ('{"format": 1, "problems": {"t": [{"prompt": "p", "correct": [1]}]}}', "split 't' is damaged"),
    ],
)
def test_what_is_no_evaluation(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_evaluation(tmp_path / "a.json")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="--output_file"):
        load_evaluation(tmp_path / "a.json")


def test_the_picture_has_a_column_a_split(tmp_path):
    base = evaluation(t__n3=outcome(["1000", "0000"], blind=True), t__n4=outcome(["0000", "0010"]))
    final = evaluation(t__n3=outcome(["1110", "0100"]), t__n4=outcome(["0110", "0010"], num_tokens=90))
    path = plot_pass_at_k([base, final], ["base", "final"], tmp_path / "new" / "p.png", title="both")
    height, width, _ = imread(path).shape
    assert height > 800 and width > 1000
    with pytest.raises(ValueError, match="1 labels for 2"):
        plot_pass_at_k([base, final], ["base"], path)
    with pytest.raises(ValueError, match="no split in common"):
        plot_pass_at_k([base, evaluation(u=outcome(["1"]))], ["a", "b"], path)
    with pytest.raises(ValueError, match="0 evaluations"):
        plot_pass_at_k([], [], path)


def test_votes_for_one_number_written_twice_count_together():
    answers = ["0.5", "1/2", "2", "2", "1/2"]
    group = [judged(answer != "2", answer=answer) for answer in answers]
    assert SplitOutcome(["p"], [group], [group[0]]).scores()["maj@5"] == [1.0]
