"""The R1 recipe: its four stages, small, and what they are made of."""

import hashlib
import json
import re
import shutil
import sys
from collections import Counter

import pandas
import pytest
from datasets import Dataset
from processes import run_program
from recipe_runs import ROOT, recipe_environment
from transformers import AutoTokenizer, DeepseekV3ForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from r1lab.demonstrations import encode_demonstrations, load_demonstrations, to_template
from r1lab.loading import SYSTEM_PROMPT, LoadingError, load_policy
from r1lab.model import PolicyForCausalLM
from r1lab.reject import DUPLICATE, FILTERS, KEPT, SURPLUS, RejectConfig, count_verdicts, reject
from r1lab.stages import read_marker, run_stage
from r1lab.tasks import TASKS, encode_prompts, load_task
from r1lab.tasks.cold_start import COLD_START_TASKS, load_cold_start
from r1lab.tasks.countdown import Problem, split_of
from r1lab.types import Completion, Prompt
from rewards import countdown_reward, format_reward

BASE = ROOT / "data" / "base"
TINY = [
    "--max_steps", "2", "--final_max_steps", "2", "--generation_batch_size", "16", "--num_generations", "4",
    "--max_completion_length", "48", "--num_train_problems", "100", "--eval_steps", "0", "--final_num_problems", "3",
    "--final_num_samples", "2", "--save_steps", "1", "--num_cold_start", "12", "--sft_num_epochs", "1",
    "--sft_batch_size", "4", "--reject_num_problems", "24", "--reject_num_samples", "2",
]  # fmt: skip
STAGES = ("cold_start", "rl", "rejection", "final_rl")


def _r1(*arguments):
    """The recipe in this process, without the seconds that the imports take."""
    from r1 import main, parse_arguments
    from r1_zero import run_clearly

    run_clearly(lambda: main(*parse_arguments([str(argument) for argument in arguments])))


def _assert_clear_exit(arguments, message):
    with pytest.raises(SystemExit) as stop:
        _r1(*arguments)
    assert str(stop.value.code).startswith("error: ") and message in stop.value.code
    assert "\n" not in stop.value.code


def _weights(directory):
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def _finish_times(run_dir):
    return {stage: json.loads((run_dir / stage / "stage.json").read_text())["finished"] for stage in STAGES}


# ---------------------------------------------------------------------------------------------------- the four stages


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run directory of all four stages, as a user runs them."""
    run_dir = tmp_path_factory.mktemp("r1") / "run"
    command = [sys.executable, ROOT / "recipes/r1.py", *TINY, "--output_dir", run_dir]
    process = run_program(command, env=recipe_environment(), timeout=1200)
    assert process.returncode == 0, process.stderr[-3000:]
    return run_dir


def test_each_stage_leaves_a_marker_and_a_model(finished):
    weights = {_weights(BASE)}
    for stage in STAGES:
        marker = read_marker(finished / stage)
        weights.add(_weights(finished / stage / marker["model"]))
    assert len(weights) == 5  # every stage changed something
    assert not (finished / "cold_start/checkpoints").exists()
    last = finished / "final_rl" / read_marker(finished / "final_rl")["model"]
    model = DeepseekV3ForCausalLM.from_pretrained(last)
    assert len(AutoTokenizer.from_pretrained(last)) <= model.config.vocab_size


def test_each_stage_starts_where_the_paper_has_it(finished):
    settings = {stage: read_marker(finished / stage)["settings"] for stage in STAGES}
    assert settings["cold_start"]["starts_from"] == settings["rejection"]["starts_from"] == str(BASE)
    assert settings["rl"]["starts_from"].startswith("cold_start, ")
    assert settings["rejection"]["sampled_from"].startswith("rl, ")
    assert settings["final_rl"]["starts_from"].startswith("rejection, ")
    assert settings["rl"]["seed"] != settings["final_rl"]["seed"]
    steps = [json.loads(line) for line in (finished / "rl/metrics.jsonl").open()]
    assert {f"rewards/{name}_reward/mean" for name in ("countdown", "format", "language_consistency")} <= set(steps[1])


def test_its_results_evaluate_every_model(finished):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["evaluations"]) == list(STAGES)
    for evaluation in results["evaluations"].values():
        assert set(evaluation) == {"n3", "n4", "n5"} and {"accuracy", "format"} <= set(evaluation["n3"])


def test_the_filters_are_counted_and_the_kept_traces_written(finished):
    counts = read_marker(finished / "rejection")["filters"]
    assert list(counts) == ["sampled", *FILTERS, DUPLICATE, SURPLUS, KEPT]
    assert counts["sampled"] == 48 == sum(counts.values()) - counts["sampled"]
    samples = pandas.read_parquet(finished / "rejection/samples/samples.parquet")
    assert {name: count for name, count in counts.items() if count and name != "sampled"} == Counter(samples["verdict"])
    traces = [json.loads(line) for line in (finished / "rejection/samples/traces.jsonl").open()]
    assert len(traces) == counts[KEPT] == read_marker(finished / "rejection")["num_traces"] > 0
    columns = {name: [trace[name] for trace in traces] for name in ("numbers", "target", "num_used")}
    completions = [trace["completion"] for trace in traces]
    assert countdown_reward(completions=completions, **columns) == [1.0] * len(traces)
    assert len({trace["prompt"] for trace in traces}) == len(traces)
    for trace in traces:
        assert split_of(f"pick_two {sorted(trace['numbers'])} {trace['target']}") == "train"


def test_run_again_it_does_nothing(finished, capsys):
    before = _finish_times(finished)
    _r1(*TINY, "--output_dir", finished, "--resume_from_checkpoint", "true")
    assert _finish_times(finished) == before
    assert capsys.readouterr().out.count("was done") == 4


def test_cut_in_two_stages_it_ends_in_the_same_weights(finished, tmp_path):
    """After the cold start, and in the final RL after its first step."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    marker = read_marker(run_dir / "final_rl")
    (run_dir / "final_rl/stage.json").write_text(json.dumps({"finished": None, "settings": marker["settings"]}))
    shutil.rmtree(run_dir / "final_rl/checkpoints/step_00002")
    _r1(*TINY, "--output_dir", run_dir)
    before, after = _finish_times(finished), _finish_times(run_dir)
    assert [before[stage] == after[stage] for stage in STAGES] == [True, True, True, False]
    model = f"final_rl/{marker['model']}"
    assert _weights(run_dir / model) == _weights(finished / model)

    shutil.rmtree(run_dir / "rl")
    with pytest.raises(SystemExit, match="rejection was finished with sampled_from='rl, finished"):
        _r1(*TINY, "--output_dir", run_dir)
    rl = f"rl/{read_marker(finished / 'rl')['model']}"
    assert _weights(run_dir / rl) == _weights(finished / rl)


def test_stages_can_be_left_out(tmp_path):
    run_dir = tmp_path / "run"
    _r1(*TINY, "--output_dir", run_dir, "--stages", "rl")
    assert sorted(path.name for path in run_dir.iterdir()) == ["results.json", "rl"]
    assert read_marker(run_dir / "rl")["settings"]["starts_from"] == str(BASE)
    assert list(json.loads((run_dir / "results.json").read_text())["evaluations"]) == ["base", "rl"]


def test_other_settings_do_not_mix_with_a_finished_stage(finished):
    arguments = [*TINY, "--output_dir", finished]
    _assert_clear_exit([*arguments, "--learning_rate", "1e-4"], "rl was finished with learning_rate=0.0007, and now")
    _assert_clear_exit([*arguments, "--num_cold_start", "9"], "traces='12 of pick_two', and now traces='9 of pick_two'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "cold_start", "warm_start"], "unknown stage 'warm_start'; use some of cold_start, rl"),
        (["--num_cold_start", "0"], "num_cold_start=0"),
        (["--task", "arithmetic"], "task 'arithmetic' has no cold-start traces"),
        (["--dataset_name", "rows.jsonl"], "give some with --cold_start_dataset_name"),
        (["--cold_start_dataset_name", "no/such.jsonl"], "no such file"),
        (["--sft_max_length", "20"], "sft_max_length=20: every one of the 12 traces is longer"),
        (["--sft_learning_rate", "0"], "sft_learning_rate=0.0: must be positive"),
        (["--reject_language", "xx"], "reject_language='xx': use one of en"),
        (["--reject_max_repeated_share", "2"], "reject_max_repeated_share=2.0: a share is between 0 and 1"),
        (["--resume_from_checkpoint", "elsewhere"], "the stages of output_dir resume by themselves"),
        (["--model_name_or_path", "/no/such/model"], "no such directory"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    config = ["--config", ROOT / "recipes/configs/r1.yaml"]
    _assert_clear_exit([*config, *TINY, "--output_dir", tmp_path / "run", *arguments], message)


def test_a_run_of_zero_is_not_written_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    _assert_clear_exit([*TINY, "--output_dir", tmp_path], "holds a run of r1_zero.py")


def test_a_marker_that_is_not_one_is_named(tmp_path):
    for text in ("{", "[]", '{"settings": {}}'):
        (tmp_path / "stage.json").write_text(text)
        with pytest.raises(ValueError, match="is no marker of a stage; delete"):
            run_stage(tmp_path, {}, dict)


def test_a_stage_that_was_begun_keeps_its_settings(tmp_path):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "rl", {"learning_rate": 1}, fail)
    assert read_marker(tmp_path / "rl") is None
    with pytest.raises(ValueError, match="was begun with learning_rate=1, and now learning_rate=2"):
        run_stage(tmp_path / "rl", {"learning_rate": 2}, dict)
    marker, has_run = run_stage(tmp_path / "rl", {"learning_rate": 1}, lambda: {"model": "m"})
    assert has_run and marker["model"] == "m"
    assert run_stage(tmp_path / "rl", {"learning_rate": 1}, fail) == (marker, False)


# ------------------------------------------------------------------------------------------------------- comparison


def test_the_comparison_reads_the_runs(finished, tmp_path, capsys):
    from compare_r1 import CompareArguments, main

    # The first RL is a run of r1_zero.py in all but its start.
    main(CompareArguments([str(finished / "rl")] * 2, [str(finished)] * 2, output_dir=str(tmp_path)))
    printed = capsys.readouterr().out
    for label in ("R1-Zero", "cold start only", "rejection sampling + SFT", "R1 (all four stages)"):
        assert f"| {label} |" in printed
    results = json.loads((tmp_path / "r1.json").read_text())
    run = results["r1"][0]
    assert [run["models"][stage]["rl_steps"] for stage in STAGES] == [0, 2, 2, 4]
    assert run["curve"]["step"] == [0, 1, 2, 2, 3, 4]
    assert run["filters"]["sampled"] == 48
    rates = [row["rewards/format_reward/mean"] for row in map(json.loads, (finished / "rl/metrics.jsonl").open())
             if row["step"]]  # fmt: skip
    assert run["rl"]["rl"]["early_format"]["min"] == pytest.approx(min(rates))
    assert run["models"]["rl"]["mean"]["format"] == pytest.approx(
        sum(run["models"]["rl"][split]["format"] for split in ("n3", "n4", "n5")) / 3
    )
    assert (tmp_path / "r1.png").read_bytes().startswith(b"\x89PNG")


def test_steps_to_an_accuracy():
    from compare_r1 import steps_to

    accuracy = pandas.Series([0.1, None, 0.5, 0.4, 0.9], index=[0, 1, 2, 4, 8])
    assert [steps_to(accuracy, threshold) for threshold in (0.05, 0.5, 0.6, 0.95)] == [0, 2, 8, None]


def test_an_unfinished_run_is_named(tmp_path):
    from compare_r1 import read_results

    with pytest.raises(ValueError, match="results.json does not exist: the run has not finished"):
        read_results(tmp_path)


# ------------------------------------------------------------------------------------------------- cold-start traces


@pytest.mark.parametrize("task", COLD_START_TASKS)
def test_cold_start_traces_are_never_of_held_out_problems(task):
    rows = load_cold_start(task, 300, seed=0)
    held_out = {
        (tuple(sorted(row["numbers"])), row["target"])
        for difficulty in TASKS[task]
        for row in load_task(task, "test", 300, 1, difficulty)
    }
    problems = [(tuple(sorted(row["numbers"])), row["target"]) for row in rows]
    assert len(set(problems)) == 300 and not held_out & set(problems)
    assert {split_of(f"{task} {list(numbers)} {target}") for numbers, target in problems} == {"train"}


@pytest.mark.parametrize("task", COLD_START_TASKS)
def test_cold_start_traces_try_check_wait_and_end_right(task):
    rows = load_cold_start(task, 200, seed=1)
    completions = list(rows["completion"])
    columns = {name: rows[name] for name in ("target", "numbers", "num_used")}
    assert countdown_reward(completions=completions, **columns) == [1.0] * 200
    assert format_reward(completions=completions) == [1.0] * 200
    for row in rows:
        attempts = row["completion"].removeprefix("<think> ").partition(" yes </think>")[0].split(" wait ")
        offs = []
        for attempt in attempts:
            chain, _, off = attempt.removesuffix(" .").rpartition(" off ")
            steps = [step.split(" = ") for step in chain.split(" , ")]
            assert all(eval(step) == int(value) for step, value in steps)
            assert abs(int(steps[-1][1]) - row["target"]) == int(off)
            offs.append(int(off))
        assert len(attempts) >= 2 and offs[-1] == 0 and 0 not in offs[:-1]
        if task == "pick_two" or row["difficulty"] == 3:  # a guess, then the reading order
            problem = Problem(task, tuple(row["numbers"]), row["target"], solution=0)
            in_order = [problem.write_attempt(candidate) for candidate in problem.candidates()]
            assert attempts[1:] == in_order[: len(attempts) - 1]


def test_cold_start_traces_are_made_of_the_bases_words():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows = load_cold_start("pick_two", 100, seed=2)
    for row in rows:
        assert tokenizer.unk_token_id not in tokenizer(row["prompt"] + " " + row["completion"]).input_ids
    assert rows["completion"] == load_cold_start("pick_two", 100, seed=2)["completion"]
    assert rows["completion"] != load_cold_start("pick_two", 100, seed=3)["completion"]


def test_more_traces_than_problems_are_an_error(monkeypatch):
    monkeypatch.setattr("r1lab.tasks.cold_start.MAX_REPEATS", 3)
    with pytest.raises(ValueError, match="num_cold_start=100000: 'pick_two' has only about [0-9]+ problems to trace"):
        load_cold_start("pick_two", 100000, seed=0)


def test_the_command_writes_what_the_recipe_trains_on(tmp_path):
    output = tmp_path / "traces.jsonl"
    command = [sys.executable, ROOT / "data/cold_start/prepare.py", "--num_cold_start", "12", "--output_file", output]
    process = run_program(command, env=recipe_environment())
    assert process.returncode == 0, process.stderr[-2000:]
    assert output.read_text() == (ROOT / "data/cold_start/sample.jsonl").read_text()
    assert [json.loads(line) for line in output.open()] == load_cold_start("pick_two", 12, seed=0).to_list()


# ------------------------------------------------------------------------------------------------ public trace data


class Script:
    dataset_config, dataset_train_split, system_prompt = None, "train", None


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(BASE)


def _load(tmp_path, tokenizer, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_demonstrations(str(path), Script, tokenizer).to_list()


TEMPLATED = f"{SYSTEM_PROMPT} User: 1 + 1? Assistant:"


@pytest.mark.parametrize(
    ("row", "completion"),
    [
        ({"messages": [{"role": "user", "content": "1 + 1?"},
                       {"role": "assistant", "content": "<think>\nadd\n</think>\n\nIt is 2."}]},
         "<think>\nadd\n</think> <answer> It is 2. </answer>"),
        ({"conversations": [{"from": "user", "value": "1 + 1?"},
                            {"from": "assistant", "value": "<|begin_of_thought|> add <|end_of_thought|> "
                             "<|begin_of_solution|> 2 <|end_of_solution|>"}]},
         "<think> add </think> <answer> 2 </answer>"),
        ({"problem": "1 + 1?", "solution": "2", "generations": ["<think> 3 </think> 3", "<think> 2 </think> 2"],
          "correctness_math_verify": [False, True]},
         "<think> 2 </think> <answer> 2 </answer>"),
        ({"problem": "1 + 1?", "generations": ["add </think> 2"]}, "<think>add </think> <answer> 2 </answer>"),
        ({"question": "1 + 1?", "solution": "Add them.", "answer": "2"},
         "<think> Add them. </think> <answer> 2 </answer>"),
    ],
)  # fmt: skip
def test_public_layouts_become_the_template_of_rl(row, completion, tmp_path, tokenizer):
    assert _load(tmp_path, tokenizer, row) == [{"prompt": TEMPLATED, "completion": completion}]


def test_prompt_and_completion_are_taken_as_they_are(tmp_path, tokenizer):
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1 + 1?"}]
    rows = [
        {"prompt": chat, "completion": [{"role": "assistant", "content": "<think> a </think> <answer> 2 </answer>"}]}
    ]
    assert _load(tmp_path, tokenizer, *rows) == [
        {"prompt": chat, "completion": "<think> a </think> <answer> 2 </answer>"}
    ]


def test_rows_without_a_right_completion_are_left_out(tmp_path, tokenizer):
    wrong = {"problem": "1 + 1?", "generations": ["<think> 3 </think> 3"], "correctness_math_verify": [False]}
    right = {"problem": "1 + 1?", "generations": ["<think> 2 </think> 2"], "correctness_math_verify": [True]}
    assert len(_load(tmp_path, tokenizer, wrong, right)) == 1
    with pytest.raises(LoadingError, match="none of its 1 rows has a completion"):
        _load(tmp_path, tokenizer, wrong)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello"}, "row 0: cannot tell prompt from completion in the columns text"),
        ({"problem": "1 + 1?", "solution": "2"}, "cannot tell prompt from completion in the columns problem, solution"),
        ({"messages": [{"role": "user"}]}, "row 0: a turn without role and content"),
    ],
)
def test_other_layouts_are_named(row, message, tmp_path, tokenizer):
    with pytest.raises(LoadingError, match=re.escape(message)):
        _load(tmp_path, tokenizer, row)


def test_a_completion_in_the_template_is_left_alone():
    assert to_template("<think> a </think> <answer> 2 </answer>") == "<think> a </think> <answer> 2 </answer>"
    assert to_template("no thinking") == "no thinking"
    assert to_template("<think> cut </think> ") == "<think> cut </think>"


def test_only_completions_have_labels_and_prompts_are_those_of_rl(tokenizer):
    rows = load_cold_start("pick_two", 5, seed=0)
    encoded, num_too_long = encode_demonstrations(rows, tokenizer, max_length=512)
    prompts = encode_prompts(rows, tokenizer, max_length=512)
    assert num_too_long == 0 and len(encoded) == 5
    for row, prompt, one in zip(rows, prompts, encoded, strict=True):
        size = len(prompt.token_ids)
        assert one["input_ids"][:size] == prompt.token_ids and one["labels"][:size] == [-100] * size
        assert one["labels"][size:] == one["input_ids"][size:] and one["input_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(one["input_ids"][size:-1]) == row["completion"]
    lengths = sorted(len(ids) for ids in encoded["input_ids"])
    some, num_too_long = encode_demonstrations(rows, tokenizer, max_length=lengths[2])
    assert num_too_long == 5 - sum(length <= lengths[2] for length in lengths) > 0 and len(some) == 5 - num_too_long


# ------------------------------------------------------------------------------------------------------- fine-tuning


def _biases(directory):
    return {
        name: buffer.clone()
        for name, buffer in PolicyForCausalLM.from_pretrained(directory).named_buffers()
        if name.endswith("e_score_correction_bias")
    }


def test_fine_tuning_goes_on_balancing_the_experts(finished):
    before, after = _biases(BASE), _biases(finished / "cold_start/model")
    speed = read_marker(finished / "cold_start")["settings"]["routing_bias_speed"]
    moved = [float((after[name] - before[name]).abs().max()) for name in before]
    # Three steps, each of at most twice the speed (the step is centred).
    assert all(0 < one <= 3 * 2 * speed + 1e-6 for one in moved)


class Killed(BaseException):
    pass


def test_fine_tuning_that_was_cut_goes_on(tmp_path, monkeypatch):
    import sft

    args = sft.SFTArguments(sft_learning_rate=1e-3, sft_num_epochs=1, sft_batch_size=4, sft_save_steps=1)
    rows = load_cold_start("pick_two", 12, seed=0)
    options = {"seed": 0, "routing_bias_speed": 1e-3}
    whole = sft.fine_tune(str(BASE), rows, tmp_path / "whole", args, **options)
    heads = [load_policy(str(path))[0].lm_head.weight for path in (BASE, tmp_path / "whole/model")]
    assert whole["num_steps"] == 3 and not heads[0].equal(heads[1])

    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise Killed

    balance = sft.RoutingBalance
    monkeypatch.setattr(sft, "RoutingBalance", lambda *a: type("Both", (balance, Kill), {})(*a))
    with pytest.raises(Killed):
        sft.fine_tune(str(BASE), rows, tmp_path / "cut", args, **options)
    monkeypatch.setattr(sft, "RoutingBalance", balance)
    resumed = sft.fine_tune(str(BASE), rows, tmp_path / "cut", args, **options)
    assert resumed["num_steps"] == 3
    assert _weights(tmp_path / "cut/model") == _weights(tmp_path / "whole/model")


def test_a_speed_of_zero_leaves_the_routing_bias_alone(tmp_path):
    import sft

    args = sft.SFTArguments(sft_num_epochs=1, sft_batch_size=4)
    sft.fine_tune(str(BASE), load_cold_start("pick_two", 4, 0), tmp_path, args, seed=0, routing_bias_speed=0.0)
    before, after = _biases(BASE), _biases(tmp_path / "model")
    assert all(before[name].equal(after[name]) for name in before)


def test_fine_tuning_as_a_command(tmp_path):
    import sft

    traces = tmp_path / "traces.jsonl"
    traces.write_text("".join(json.dumps(row) + "\n" for row in load_cold_start("pick_two", 4, 0)))
    script = sft.ScriptArguments(dataset_name=str(traces))
    sft.main(script, sft.SFTArguments(sft_num_epochs=1), sft.OutputArguments(output_dir=str(tmp_path / "sft")))
    assert load_policy(str(tmp_path / "sft/model"))[0].config.model_type == "deepseek_v3"
    with pytest.raises(ValueError, match="name the traces with --dataset_name"):
        sft.main(sft.ScriptArguments(), sft.SFTArguments(), sft.OutputArguments())


# ------------------------------------------------------------------------------------------------ rejection sampling

PROBLEM = Prompt("make 3", [1], {"numbers": [1, 2, 9], "target": 3, "num_used": 2})
RIGHT = "<answer> 1 + 2 </answer>"
GOOD = f"<think> try 1 + 2 = 3 yes </think> {RIGHT}"
CASES = {
    GOOD: KEPT,
    f"<think> try 1 + 2 = 3 yes </think> {RIGHT} cut": "cut at the length limit",
    "<think> try 9 - 1 = 8 </think> <answer> 9 - 1 </answer>": "wrong",
    f"so <think> try 1 + 2 = 3 yes </think> {RIGHT}": "malformed",
    f"<think> try \u4e09 yes </think> {RIGHT}": "mixed languages, or no words",
    f"<think> 1 + 2 = 3 </think> {RIGHT}": "mixed languages, or no words",
    f"<think> run ```1 + 2``` yes </think> {RIGHT}": "code block in the reasoning",
    f"<think> try {'a long way ' * 30} yes </think> {RIGHT}": "long paragraph",
    f"<think> try 9 - 1 = 8 no wait try 9 - 1 = 8 no </think> {RIGHT}": "repeats itself",
}


def _verdicts(texts, **options):
    config = RejectConfig(reject_ngram_size=4, reject_max_repeated_share=0.0, reject_max_paragraph=200, **options)
    completions = [
        Completion([index], [0.0], "length" if text.endswith("cut") else "stop") for index, text in enumerate(texts)
    ]
    samples = reject([PROBLEM], [completions], lambda ids: texts[ids[0]], countdown_reward, config)
    return samples, [sample.verdict for sample in samples]


def test_each_filter_refuses_what_it_says_and_is_counted():
    texts = list(CASES)
    samples, verdicts = _verdicts(texts, reject_keep_per_problem=9)
    assert dict(zip(texts, verdicts, strict=True)) == CASES
    counts = count_verdicts(samples)
    assert counts == {"sampled": len(texts)} | {name: Counter(CASES.values())[name] for name in list(counts)[1:]}
    assert set(FILTERS) <= set(CASES.values())


def test_one_problem_is_kept_a_few_times_only():
    other = f"<think> maybe 2 + 1 = 3 yes </think> {RIGHT}"
    third = f"<think> i think 2 + 1 = 3 yes </think> {RIGHT}"
    assert _verdicts([GOOD, GOOD, other, third], reject_keep_per_problem=2)[1] == [KEPT, DUPLICATE, KEPT, SURPLUS]


def test_hostile_completions_are_refused_not_raised():
    texts = ["", "<answer>" * 500, "\x00", "</think>" * 3, "<think>" + "(" * 5000, "<answer> 1/0 </answer>"]
    assert KEPT not in _verdicts(texts)[1]


def test_nothing_kept_is_an_error_with_the_counts(tmp_path):
    arguments = [*TINY, "--output_dir", tmp_path / "run", "--stages", "rejection", "--reject_num_problems", "1",
                 "--max_completion_length", "1"]  # fmt: skip
    _assert_clear_exit(arguments, 'kept nothing: {"sampled": 2, "cut at the length limit": 2')


def test_datasets_of_chat_prompts_can_be_fine_tuned_on(tokenizer):
    """The columns that the files hold come back as they were written."""
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    with pytest.raises(ValueError, match="sft_max_length=2"):
        encode_demonstrations(rows, tokenizer, max_length=2)
