"""The command: a table, formulas, JSON, errors in one line, a fast start."""

import json
import subprocess
import sys

import pytest

from r1lab.plan.__main__ import main
from r1lab.plan.figures import FUNCTIONS, compute, format_value

V3 = (
    "deepseek-v3 --gpu H800 --num_gpus 2048 --pp 16 --ep 64 --schedule dualpipe --precision fp8 --batch_size 15360 "
    "--num_tokens 14.8e12 --gpu_hours_per_trillion 180e3 --extra_gpu_hours 124e3"
).split()


def test_the_table(capsys):
    assert main(V3) == 0
    text = capsys.readouterr().out
    for shown in ("671.03 B parameters", "70.27 KB/token", "2.79 M h", "$ 5,576,000"):
        assert shown in text
    assert "=" not in text.split("Pipeline")[0]


SMALL_RL = "--rl --max_completion_length 512 --mean_completion_length 64 --precision fp32".split()


@pytest.mark.parametrize("arguments", [V3, ["qwen2.5-0.5b", "--rl"], ["embedded", *SMALL_RL]])
def test_json_holds_every_formula_and_it_gives_the_value(arguments, capsys):
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert isinstance(plan.pop("notes"), list)
    for section in plan.values():
        for figure in section.values():
            again = eval(figure["formula"], {"__builtins__": {}}, {**FUNCTIONS, **figure["inputs"]})
            assert again == figure["value"]


def test_explain_shows_formulas_and_inputs(capsys):
    assert main(["deepseek-v3", "--explain"]) == 0
    text = capsys.readouterr().out
    assert "= layers * (kv_lora_rank + qk_rope_head_dim) * cache_bytes" in text
    assert "with layers 61, kv_lora_rank 512, qk_rope_head_dim 64, cache_bytes 2" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "model='nowhere': no config.json there"),
        (["deepseek-v3", "--pp", "3"], "pp=3 x dp=2 x tp=1 = 6 is not num_gpus=8"),
        (["deepseek-v3", "--pp", "0"], "pp=0"),
        (["qwen2.5-7b", "--times", "1", "2", "3", "3"], "weight=3.0: must be shorter than backward=2.0"),
        (["qwen2.5-7b", "--rl", "--rollout_precision", "int4"], "rollout_precision='int4'"),
        (["embedded", "--rl"], "prompt_length + max_completion_length=4352"),
    ],
)
def test_errors_are_one_line_on_standard_error(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON"),
        ("[1]", "holds no config"),
        ("{}", "model_type=None"),
        ('{"model_type": "mamba"}', "model_type='mamba'"),
        ('{"model_type": "llama", "vocab_size": "many"}', "vocab_size='many'"),
        ('{"model_type": "qwen2", "vocab_size": 8, "hidden_size": -4}', "hidden_size=-4"),
    ],
)
def test_broken_configs_are_named(text, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_it_starts_without_torch():
    code = "import sys, r1lab.plan.__main__ as m; m.main(['embedded'])"
    code += "; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (70272, "B/token", "70.27 KB/token"), (671.03e9, "parameters", "671.03 B parameters"), (2.5e11, "FLOP/token",
        "250.00 GFLOP/token"), (0.0357, "s", "35.7 ms"), (1.4e-6, "s", "1.4 us"), (0.5, "%", "50.00 %"),
        (3, "nodes", "3 nodes"), (5576000, "$", "$ 5,576,000"), (12, "", "12"), (0, "B", "0 B"),
    ],
)  # fmt: skip
def test_values_read_well(value, unit, text):
    assert format_value(value, unit) == text


def test_a_formula_that_names_what_it_was_not_given_fails():
    with pytest.raises(NameError, match="layers"):
        compute("broken", "", "2 * layers", heads=3)
