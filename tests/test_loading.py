"""Names on the command line -> policy and prompts."""

import json
from types import SimpleNamespace

import numpy
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from r1lab.checkpoint import load_checkpoint, save_checkpoint
from r1lab.config import GRPOConfig
from r1lab.loading import SYSTEM_PROMPT, LoadingError, load_policy, load_prompts, load_rows
from r1lab.model import PolicyForCausalLM

QUESTION, ANSWER = "What is 1 + 1 ?", "1 + 1 = 2\n#### 2"


class NoTemplate:
    chat_template = None


class WithTemplate:
    chat_template = "{{ messages }}"


def script(**changes):
    fields = dict(
        dataset_name=None, dataset_config=None, dataset_train_split="train", prompt_column=None, solution_column=None,
        system_prompt=None, eval_dataset_name=None,
    )  # fmt: skip
    return SimpleNamespace(**(fields | changes))


def write_rows(directory, **columns):
    path = directory / "rows.jsonl"
    path.write_text(json.dumps(columns) + "\n")
    return str(path)


def write_model(directory, pad_token=None):
    """A tiny GPT-2: dropout on, learned positions, no chat template."""
    words = ["<eos>", *SYSTEM_PROMPT.split(), *QUESTION.split(), "User:", "Assistant:"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token=pad_token)
    fast.save_pretrained(directory)
    config = GPT2Config(vocab_size=len(vocabulary), n_embd=16, n_layer=1, n_head=2, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(directory)
    return str(directory)


# ----------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("problem", ["prompt", "question", "problem"])
@pytest.mark.parametrize("gold", ["solution", "answer"])
def test_the_usual_columns_are_found(tmp_path, problem, gold):
    path = write_rows(tmp_path, **{problem: QUESTION, gold: ANSWER, "level": 3})
    (row,) = load_rows(path, script(), NoTemplate)
    assert row == {"prompt": f"{SYSTEM_PROMPT} User: {QUESTION} Assistant:", "solution": ANSWER, "level": 3}


def test_the_solution_goes_before_the_answer_which_stays(tmp_path):
    (row,) = load_rows(write_rows(tmp_path, problem=QUESTION, solution=ANSWER, answer="2"), script(), NoTemplate)
    assert (row["solution"], row["answer"]) == (ANSWER, "2")


def test_named_columns_win(tmp_path):
    path = write_rows(tmp_path, question="no", task=QUESTION, answer="no", gold=ANSWER)
    (row,) = load_rows(path, script(prompt_column="task", solution_column="gold"), NoTemplate)
    assert QUESTION in row["prompt"] and row["solution"] == ANSWER


def test_parquet_reads_the_same(tmp_path):
    path = str(tmp_path / "rows.parquet")
    Dataset.from_list([{"question": QUESTION, "answer": ANSWER}]).to_parquet(path)
    (row,) = load_rows(path, script(), NoTemplate)
    assert QUESTION in row["prompt"] and row["solution"] == ANSWER


def test_chat_models_get_messages(tmp_path):
    path = write_rows(tmp_path, question=QUESTION)
    (row,) = load_rows(path, script(), WithTemplate)
    assert row["prompt"] == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": QUESTION},
    ]
    (row,) = load_rows(path, script(system_prompt="Be brief."), WithTemplate)
    assert row["prompt"][0]["content"] == "Be brief."


def test_messages_stay_as_they_are(tmp_path):
    messages = [{"role": "user", "content": QUESTION}]
    (row,) = load_rows(write_rows(tmp_path, prompt=messages, solution=ANSWER), script(), WithTemplate)
    assert row["prompt"] == messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "has no column 'prompt' or 'question' or 'problem', only text, gold; name it with --prompt_column"),
        ({"prompt_column": "task"}, "has no column 'task', only text, gold; name it with --prompt_column"),
        (
            {"prompt_column": "text", "solution_column": "label"},
            "has no column 'label', only gold; name it with --solution_column",
        ),
    ],
)
def test_a_missing_column_is_one_clear_line(tmp_path, changes, message):
    with pytest.raises(LoadingError) as caught:
        load_rows(write_rows(tmp_path, text=QUESTION, gold=ANSWER), script(**changes), NoTemplate)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no/such.jsonl", "no/such.parquet"])
def test_a_missing_dataset_file_is_one_clear_line(name):
    with pytest.raises(LoadingError, match=f"^dataset '{name}': no such file$"):
        load_rows(name, script(), NoTemplate)


def test_a_broken_dataset_file_is_one_clear_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": \n')
    with pytest.raises(LoadingError) as caught:
        load_rows(str(path), script(), NoTemplate)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- policy


def test_any_causal_model_loads_without_dropout(tmp_path):
    policy, tokenizer = load_policy(write_model(tmp_path))
    assert isinstance(policy, GPT2LMHeadModel) and next(policy.parameters()).dtype == torch.float32
    policy.train()
    ids = torch.tensor([tokenizer("What is 1").input_ids])
    assert torch.equal(policy(ids).logits, policy(ids).logits)


def test_a_base_model_reads_the_template_as_text(tmp_path):
    policy, tokenizer = load_policy(write_model(tmp_path))
    path = write_rows(tmp_path, question=QUESTION, answer=ANSWER)
    config = GRPOConfig(max_completion_length=8)
    (prompt,), held_out = load_prompts(script(dataset_name=path), tokenizer, policy.config, config, 4)
    assert tokenizer.decode(prompt.token_ids) == f"{SYSTEM_PROMPT} User: {QUESTION} Assistant:"
    assert prompt.columns == {"solution": ANSWER} and held_out == {}
    _, held_out = load_prompts(script(dataset_name=path, eval_dataset_name=path), tokenizer, policy.config, config, 4)
    assert len(held_out["test"]) == 1


def test_a_pad_token_without_an_embedding_is_replaced(tmp_path):
    policy, tokenizer = load_policy(write_model(tmp_path, pad_token="<pad>"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id < policy.get_input_embeddings().num_embeddings


def write_gguf(path):
    """A random one-layer Llama with tied embeddings, in fp32."""
    gguf = pytest.importorskip("gguf")
    characters = [*map(chr, range(33, 127)), "\u0120"]
    tokens = ["<|end|>", *characters, "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    shapes = {
        "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16), "attn_output": (16, 16), "ffn_gate": (24, 16),
        "ffn_up": (24, 16), "ffn_down": (16, 24), "attn_norm": (16,), "ffn_norm": (16,),
    }  # fmt: skip
    shapes = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    generator = numpy.random.default_rng(0)
    for name, shape in (shapes | {"token_embd.weight": (len(tokens), 16), "output_norm.weight": (16,)}).items():
        writer.add_tensor(name, generator.normal(size=shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_a_gguf_file_loads_and_its_checkpoint_is_an_ordinary_one(tmp_path):
    policy, tokenizer = load_policy(write_gguf(tmp_path / "model.gguf"))
    assert tokenizer.decode(tokenizer("abc").input_ids) == "abc" and tokenizer.chat_template
    state = {"counter": torch.tensor(1)}
    path = save_checkpoint(tmp_path / "run", step=1, policy=policy, tokenizer=tokenizer, state=state)
    again = AutoModelForCausalLM.from_pretrained(path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    with torch.no_grad():
        expected = {name: value.clone() for name, value in policy.state_dict().items()}
        for parameter in policy.parameters():
            parameter.zero_()
    load_checkpoint(path, policy=policy)
    for name, value in expected.items():
        assert torch.equal(policy.state_dict()[name], value) and torch.equal(again.state_dict()[name], value), name
    assert policy.lm_head.weight is policy.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no_such_model", "'./no_such_model': no such directory"),
        ("/no/such/model", "'/no/such/model': no such directory"),
        ("no_such.gguf", "'no_such.gguf': no such file"),
    ],
)
def test_a_missing_model_is_one_clear_line(name, message):
    with pytest.raises(LoadingError) as caught:
        load_policy(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_draft_module_is_loaded_where_there_is_one(tmp_path):
    name = write_model(tmp_path)
    assert not hasattr(load_policy(name, with_mtp="auto")[0], "mtp")
    with pytest.raises(LoadingError, match="'gpt2' has no multi-token-prediction module"):
        load_policy(name, with_mtp=True)
    config = DeepseekV3Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, n_routed_experts=2, num_experts_per_tok=1, n_group=1,
        topk_group=1, kv_lora_rank=8, q_lora_rank=None, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
    )  # fmt: skip
    for with_mtp in (True, False):
        PolicyForCausalLM(config, with_mtp=with_mtp).save_pretrained(tmp_path)
        assert load_policy(name)[0].mtp is None
        assert (load_policy(name, with_mtp="auto")[0].mtp is not None) == with_mtp
    with pytest.raises(LoadingError, match="num_nextn_predict_layers=0"):
        load_policy(name, with_mtp=True)


def test_what_is_not_a_model_is_one_clear_line(tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not a model")
    LlamaConfig().save_pretrained(tmp_path / "no_weights")
    for path in (gguf, tmp_path / "no_weights"):
        with pytest.raises(LoadingError) as caught:
            load_policy(str(path))
        message = str(caught.value)
        assert str(path) in message and "cannot be loaded" in message and "\n" not in message
