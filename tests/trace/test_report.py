"""The trace explorer's page: what is in it, what can not be in it, its size, and clear errors."""

import json
import re
from pathlib import Path

import pandas
import pytest
from report_runs import (
    AHA,
    HOSTILE,
    INVERSE,
    LUCKY,
    WRONG,
    build_group,
    read_data,
    write_run,
    write_tokenizer,
)

from r1lab.trace import write_completions
from r1lab.trace.__main__ import main
from r1lab.trace.report import write_report
from r1lab.trace.report.findings import find_first_aha, find_suspects
from r1lab.trace.report.groups import FLAGS
from r1lab.trace.report.html import _PAGE, _SCRIPTS
from r1lab.trace.report.sampling import find_neighbours, order_groups, spread
from r1lab.trace.report.series import build_panels
from r1lab.trace.report.shading import ALPHABET, encode_lengths, encode_levels, token_ends, utf16_positions
from r1lab.trace.report.source import read_source


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "seed0")


@pytest.fixture(scope="module")
def data(run_dir):
    return read_data(write_report(run_dir))


def decode_lengths(lengths):
    ends, position = [], 0
    for letter in lengths:
        position += ALPHABET.index(letter)
        if letter != "/":
            ends.append(position)
    return ends


# ----------------------------------------------------------------------------------------------------- what it shows


def test_groups_hold_every_completion(data):
    assert [(group["step"], group["index"]) for group in data["groups"]] == [
        (s, g) for s in range(1, 5) for g in (0, 1)
    ]
    group = data["groups"][0]
    assert group["texts"][0] == AHA and group["texts"][3] == INVERSE and group["prompt"] == "3 5 6 target 8"
    assert data["rewards"] == ["accuracy_reward", "format_reward"] and data["accuracy"] == "accuracy_reward"
    assert group["rewards"][:2] == [[1, 1], [0, 1]] and group["reward"][:2] == [1.2, 0.2]
    assert data["run"]["num_shown"] == data["run"]["num_completions"] == 32


def test_flags_and_marks(data):
    group = data["groups"][0]
    assert group["flags"] == ["cfa", "w", "c", "wfi"]
    spans = {kind: group["texts"][0][start:end] for start, end, kind in group["marks"][0]}
    assert spans == {"t": "3 + 6 = 9 off 1", "a": "wait"}
    assert [kind for _, _, kind in group["marks"][3]] == ["t", "i"]


def test_tokens_end_where_their_words_end(data):
    group = data["groups"][0]
    ends = decode_lengths(group["lengths"][0])
    assert [AHA[start:end].strip() for start, end in zip([0, *ends], ends)] == AHA.split()
    assert len(group["logp"][0]) == len(ends) and group["logp"][0][0] == "A" and group["logp"][0][-1] == "/"
    assert [shade["key"] for shade in data["shades"]] == ["logp"]


def test_curves_and_headline(data):
    lines = {line["name"]: line["points"] for panel in data["panels"] for line in panel["lines"]}
    assert lines["held-out n3"] == [[0, 0.1], [1, 0.2], [2, 0.4], [3, 0.6], [4, 0.8]]
    assert lines["reward"][-1] == [4, 0.4]
    assert data["headline"][0] == {
        "label": "right answers, held-out n3",
        "before": 0.1,
        "after": 0.8,
        "is_share": True,
    }


def test_shares_of_few_cases_are_not_drawn():
    name = "reflection/p_correct_wrong_first_reconsidered"
    metrics = pandas.DataFrame({"step": [1, 2], name: [1.0, 0.5], name.replace("p_correct", "num"): [2.0, 40.0]})
    assert build_panels(metrics)[0]["lines"][0]["points"] == [[2, 0.5]]


def test_first_aha_and_suspects(run_dir, data):
    assert find_first_aha(read_source(run_dir)) == (1, 0, 0)
    assert data["first_aha"] == [0, 0]
    worst = find_suspects(read_source(run_dir))[0]
    assert worst.place == (4, 1, 0) and LUCKY == data["groups"][7]["texts"][0]
    assert worst.reasons == [
        "its last try is off by 1, by its own check",
        "the answer does not occur in its working",
    ]


def test_neighbours_are_the_same_prompt_first(data):
    assert data["neighbours"][3] == {"first": 0, "last": 7}  # "target 8" at step 1 and at step 4


def test_neighbours_are_similar_prompts_otherwise():
    prompts = ["2 numbers a b", "3 numbers a b c", "other words", "3 numbers d e c", "2 numbers z b", "3 numbers f g c"]
    groups = [{"step": step, "prompt": prompt} for step, prompt in zip((1, 2, 3, 50, 98, 99), prompts, strict=True)]
    groups.append({"step": 100, "prompt": "nothing alike"})
    assert find_neighbours(groups)[3] == {"first": 1, "last": 5}


def test_without_a_tokenizer_tokens_are_not_shaded(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "checkpoints" / "step_00002" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    plain = read_data(write_report(run))
    assert plain["shades"] == [] and plain["groups"][0]["lengths"] == [None] * 4
    assert any("tokenizer" in note for note in plain["run"]["notes"])
    assert read_data(write_report(run, tokenizer=tmp_path))["shades"]


# ------------------------------------------------------------------------------------------- what cannot get into it


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("hostile") / '<b onclick="x">&', hostile=True))


def test_hostile_completions_stay_data(hostile_page):
    text = hostile_page.read_text(encoding="utf-8")
    assert len(re.findall(r"<script", text, re.IGNORECASE)) == len(re.findall(r"</script", text, re.IGNORECASE)) == 2
    assert "<!--" not in text and "<img" not in text and "<b onclick" not in text
    data = read_data(hostile_page)
    group = next(group for group in data["groups"] if group["index"] == 2)
    assert group["texts"] == [text.replace("\ud800", "?") for text in HOSTILE]
    assert data["run"]["name"] == '<b onclick="x">&'


def test_hostile_metrics_stay_data(tmp_path):
    run = write_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 5, "eval/</script>/accuracy": 0.5}) + "\n")
    panels = read_data(write_report(run))["panels"]
    assert "held-out </script>" in [line["name"] for line in panels[0]["lines"]]


def test_positions_count_in_javascripts_units(hostile_page):
    group = next(group for group in read_data(hostile_page)["groups"] if group["index"] == 2)
    units = group["texts"][4].encode("utf-16-le")
    assert [units[2 * start : 2 * end].decode("utf-16-le") for start, end, _ in group["marks"][4]] == ["wait", "wait"]


def test_nothing_is_fetched(hostile_page):
    text = hostile_page.read_text(encoding="utf-8")
    start = text.index('id="data">')
    own = text[:start] + text[text.index("</script>", start) :]
    assert re.findall(r"https?://[^\"' ]+", own) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    assert not re.search(r"\bsrc=|<link|@import|url\(|fetch\(|XMLHttpRequest|import\(", own)
    assert "default-src 'none'" in own


def test_scripts_never_parse_markup():
    scripts = "".join((_PAGE / name).read_text() for name in _SCRIPTS)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", scripts)
    assert f'const ALPHABET = "{ALPHABET}"' in scripts


def test_scripts_know_the_flags():
    assert set(re.findall(r"^  (\w): \"", (_PAGE / "completion.js").read_text(), re.MULTILINE)) <= set(FLAGS)


# ------------------------------------------------------------------------------------------------------------- size


def test_size_is_bounded_and_the_sample_covers_the_run(tmp_path):
    run = write_run(tmp_path / "run", num_steps=30, extra=" so" * 1500)
    page = write_report(run, max_mb=0.5)
    assert page.stat().st_size < 0.5e6
    data = read_data(page)
    steps = [group["step"] for group in data["groups"]]
    assert data["run"]["num_shown"] < data["run"]["num_completions"] == 240
    assert steps[0] == 1 and steps[-1] == 30 and data["first_aha"] is not None
    with pytest.raises(ValueError, match="max_mb=0.1"):
        write_report(run, max_mb=0.1)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 33])
def test_spread_is_a_permutation(count):
    assert sorted(spread(count)) == list(range(count))


def test_every_step_comes_before_any_second_group():
    keys = [(step, group) for step in range(1, 6) for group in range(3)]
    order = order_groups(keys, pinned=[(2, 2)])
    assert order[:6] == [(2, 2), (1, 0), (5, 0), (3, 0), (2, 0), (4, 0)]
    assert sorted(order) == keys


# ---------------------------------------------------------------------------------------------------------- shading


def test_token_ends_of_byte_level_pieces():
    text = "caf\u00e9 \U0001f600 ok"
    assert token_ends(text, ["caf", "\u00e9", " ", "\ufffd", "\ufffd", " ok", ""]) == [3, 4, 4, 4, 4, 9, 9]
    assert token_ends(text, ["quite", "another", "text"]) is None
    assert token_ends("", []) == []


def test_lengths_and_levels():
    ends = [0, 5, 68, 200, 200]
    assert decode_lengths(encode_lengths(ends)) == ends
    assert encode_levels([0.0, 2.0, 8.0, 99.0, float("inf"), float("nan")], largest=8.0) == "Ag///A"
    assert [utf16_positions("a\U0001f600b")(position) for position in range(4)] == [0, 1, 3, 4]


# ----------------------------------------------------------------------------------------------------------- errors


def run_main(capsys, *arguments: str | Path) -> tuple[int, str]:
    status = main(["report", *map(str, arguments)])
    return status, capsys.readouterr().err.strip()


def test_command_line_writes_the_report(run_dir, tmp_path, capsys):
    assert main(["report", str(run_dir), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert "page.html" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_missing_run(tmp_path, capsys):
    assert run_main(capsys, tmp_path / "nowhere") == (2, f"error: {tmp_path / 'nowhere'}: no such run directory")


def test_trained_completions_are_shaded_by_entropy_and_difference(tmp_path):
    run = write_run(tmp_path / "run", num_steps=1)
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json", [AHA, WRONG])
    group = build_group("3 5 6 target 8", [AHA, WRONG], [1, 0], tokenizer)
    trained = group.rollouts[0]
    trained.train_logps = [value - 0.25 for value in trained.completion.logps]
    trained.entropies = [0.5] * len(trained.train_logps)
    write_completions(run, 1, [group])
    data = read_data(write_report(run, tokenizer=tmp_path / "tokenizer.json"))
    assert [(shade["key"], shade["largest"]) for shade in data["shades"][1:]] == [
        ("difference", 0.25),
        ("entropy", 0.5),
    ]
    (shown,) = data["groups"]
    assert shown["entropy"][0] == "/" * len(trained.entropies) and shown["entropy"][1] is None


def test_a_rewarded_completion_whose_last_try_misses_is_a_suspect(tmp_path):
    run = write_run(tmp_path / "run", num_steps=1)
    text = "<think> 6 - 5 = 1 off 7 . no </think> <answer> 3 + 5 </answer>"
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json", [text, WRONG])
    write_completions(run, 1, [build_group("3 5 6 target 8", [text, WRONG], [1, 0], tokenizer)])
    (suspect,) = find_suspects(read_source(run))
    assert "its last try is off by 7, by its own check" in suspect.reasons


def test_empty_run(tmp_path, capsys):
    status, error = run_main(capsys, tmp_path)
    assert status == 2 and "is empty: no run has started in it" in error
    (tmp_path / "notes.txt").touch()
    status, error = run_main(capsys, tmp_path)
    assert status == 2 and "is not a run directory: it has no metrics.jsonl" in error


def test_run_stopped_before_its_first_step(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rew')
    status, error = run_main(capsys, tmp_path)
    assert status == 2 and "no finished step" in error


def test_newer_format(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("run_format: 99\n")
    status, error = run_main(capsys, run)
    assert status == 2 and "newer r1lab (run_format 99; this one reads up to 1): upgrade r1lab" in error
    assert not (run / "report.html").exists()


def test_foreign_completions(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    pandas.DataFrame({"step": [1], "prompt": ["p"], "completion": ["c"], "advantage": [0.0]}).to_parquet(
        run / "completions" / "completions_00001.parquet"
    )
    for step in (2, 3, 4):
        (run / "completions" / f"completions_0000{step}.parquet").unlink()
    status, error = run_main(capsys, run)
    assert status == 2 and "no column 'group'" in error


def test_half_written_run_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "rew')
    (run / "completions" / "completions_00005.parquet").write_bytes(b"PAR1 half")
    data = read_data(write_report(run))
    assert data["run"]["last_step"] == 4 and len(data["groups"]) == 8
    notes = " ".join(data["run"]["notes"])
    assert "half-written last line" in notes and "completions_00005.parquet: left out" in notes


def test_run_without_completions_shows_its_curves(tmp_path):
    run = write_run(tmp_path / "run")
    for file in (run / "completions").iterdir():
        file.unlink()
    data = read_data(write_report(run))
    assert data["groups"] == [] and data["panels"] and data["first_aha"] is None
    assert any("no completions were recorded" in note for note in data["run"]["notes"])


def test_wrong_tokenizer(run_dir, tmp_path, capsys):
    status, error = run_main(capsys, run_dir, "--tokenizer", tmp_path)
    assert status == 2 and "no such tokenizer file" in error
    (tmp_path / "tokenizer.json").write_text("[]")
    status, error = run_main(capsys, run_dir, "--tokenizer", tmp_path)
    assert status == 2 and "is not a tokenizer.json" in error


def test_an_error_leaves_the_old_report(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / "report.html").write_text("old")
    (run / "config.yaml").write_text("run_format: 99\n")
    run_main(capsys, run)
    assert (run / "report.html").read_text() == "old"
