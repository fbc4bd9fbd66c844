"""The recipe on a model and a dataset of the user's own: a small Llama with tied embeddings, GSM8K's columns."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from processes import run_program
from recipe_runs import ROOT, recipe_command, recipe_environment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import TrlParser

from r1lab.config import GRPOConfig
from r1lab.run import RunConfig

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROWS = [
    {
        "question": f"Ann has {a} apples and buys {b} more. How many apples does Ann have?",
        "answer": f"Ann has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} apples.\n#### {a + b}",
    }
    for a in range(2, 6)
    for b in range(3, 7)
]
# A random model answers nothing right; without rewards that differ there would be nothing to train on.
REWARD_MODULE = """
def length_reward(completions, **columns):
    return [len(completion[0]["content"]) / 100 for completion in completions]
"""
SMALL_RUN = [
    "--reward_funcs", "accuracy", "length_rewards.length_reward", "--generation_batch_size", "8",
    "--num_generations", "4", "--max_completion_length", "12", "--max_steps", "2", "--learning_rate", "1e-3",
    "--warmup_steps", "0", "--save_steps", "1", "--final_num_problems", "2", "--final_num_samples", "2",
]  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a chat template and, as Llama's, without a pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["question"] + row["answer"] for row in ROWS), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, attention_dropout=0.2,
        initializer_range=0.2, bos_token_id=None, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """(run directory, the arguments that made it, environment)."""
    directory = tmp_path_factory.mktemp("any_model")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(directory / "model")
    make_model(len(tokenizer)).save_pretrained(directory / "model")
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / "length_rewards.py").write_text(REWARD_MODULE)
    arguments = [*SMALL_RUN, "--model_name_or_path", directory / "model", "--dataset_name", directory / "train.jsonl"]
    arguments += ["--eval_dataset_name", directory / "train.jsonl"]
    environment = recipe_environment(PYTHONPATH=f"{ROOT}:{directory}")
    _run([*arguments, "--output_dir", directory / "run"], environment)
    return directory / "run", arguments, environment


def _run(arguments, environment):
    process = run_program(recipe_command(*arguments), env=environment)
    assert process.returncode == 0, process.stderr[-3000:]


def _steps(run_dir: Path) -> list[dict]:
    return [row for row in map(json.loads, (run_dir / "metrics.jsonl").open()) if row["step"] > 0]


def _weights_hash(run_dir: Path, step: int) -> str:
    return hashlib.sha256((run_dir / f"checkpoints/step_{step:05d}/model.safetensors").read_bytes()).hexdigest()


def test_it_trains_on_what_it_sampled(finished_run):
    steps = _steps(finished_run[0])
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["skipped_updates"] == 0
        for name in ("loss", "grad_norm", "reward", "entropy", "rewards/accuracy_reward/mean"):
            assert math.isfinite(row[name]), name
        assert row["grad_norm"] > 0
        # Dropout, or another distribution than the sampled one, would show here.
        assert 0 < row["sampling/sampling_logp_difference/max"] < 1e-4


def test_its_results_have_the_reflection_ablation(finished_run):
    results = json.loads((finished_run[0] / "results.json").read_text())
    assert {"base", "final", "final_reflection_banned"} <= results.keys()


def test_its_checkpoint_loads_in_transformers_and_generates(finished_run):
    checkpoint = finished_run[0] / "checkpoints/step_00002"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    start = make_model(len(tokenizer)).model.embed_tokens.weight
    assert not torch.equal(start, model.model.embed_tokens.weight)
    messages = [{"role": "user", "content": ROWS[0]["question"]}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert output.shape[1] == inputs["input_ids"].shape[1] + 3


def test_resumed_it_ends_in_the_same_weights(finished_run, tmp_path):
    original, arguments, environment = finished_run
    run_dir = tmp_path / "run"
    shutil.copytree(original, run_dir)
    shutil.rmtree(run_dir / "checkpoints/step_00002")
    _run([*arguments, "--output_dir", run_dir, "--resume_from_checkpoint", "true"], environment)
    assert _weights_hash(run_dir, 2) == _weights_hash(original, 2) != _weights_hash(original, 1)


@pytest.mark.parametrize("name", ["qwen2.5_0.5b_gsm8k", "qwen2.5_1.5b_math"])
def test_the_configurations_for_other_models_parse(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")
    from r1_zero import ScriptArguments

    parser = TrlParser((ScriptArguments, RunConfig, GRPOConfig))
    script, run, grpo = parser.parse_args_and_config(["--config", str(ROOT / f"recipes/configs/{name}.yaml")])
    assert script.model_name_or_path.startswith("Qwen/Qwen2.5-") and script.dataset_name
    assert grpo.reward_funcs[0] == "accuracy" and grpo.learning_rate == 1e-6
    assert Path(run.output_dir).name == name
