"""TRL's GRPOTrainer trains with our rewards, plain and chat, sync and async."""

import asyncio
import functools
import pickle
import threading

import pytest

from rewards import REWARDS, Rubric, cosine_reward, load_reward
from rewards.adapters import async_reward

RIGHT, WRONG = r"\boxed{4}", r"\boxed{5}"


def thread_reward(completions, **columns):
    return [threading.get_ident()] * len(completions)


def test_async_gives_what_the_function_gives_off_the_callers_thread():
    reward = async_reward("accuracy")
    assert asyncio.run(reward(completions=[RIGHT, WRONG], solution=["4", None])) == [1.0, None]
    assert asyncio.run(async_reward(thread_reward)(completions=["a"])) != [threading.get_ident()]


def test_async_keeps_the_name_and_pickles():
    for reward in (async_reward("cosine", max_len=7), async_reward(functools.partial(cosine_reward, max_len=7))):
        assert pickle.loads(pickle.dumps(reward)).__name__ == "cosine_reward"
    with pytest.raises(TypeError, match="options max_len go with a name"):
        async_reward(cosine_reward, max_len=7)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = ["<pad>", "<eos>", "<unk>", "<think>", "</think>", "<answer>", "</answer>", *map(str, range(10))]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}",
    )


def tiny_model(vocab_size):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, pad_token_id=0, eos_token_id=1, **sizes))


def every_reward():
    """Each registered reward that needs no programs: half of them async, one a rubric, one configured."""
    others = ("code", "binary_code", "cosine", "soft_overlong_punishment")
    names = [name for name in REWARDS if name not in others]
    plain = [
        load_reward("cosine", max_len=8),
        load_reward("soft_overlong_punishment", max_completion_len=8, soft_punish_cache=4),
    ]
    return [
        *plain,
        *(async_reward(name) if position % 2 else REWARDS[name] for position, name in enumerate(names)),
        Rubric({"accuracy": 1.0, "tag_count": 0.5}),
        async_reward(Rubric({"format": 1.0}, name="async_rubric")),
    ]


@pytest.mark.parametrize("is_chat", [False, True], ids=["plain", "chat"])
def test_grpo_trainer_takes_two_steps(tmp_path, tokenizer, is_chat):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    prompts = ["1 + 3", "2 + 5"]
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}] if is_chat else prompt,
            "solution": solution,
            "target": target,
            "numbers": numbers,
        }
        for prompt, solution, target, numbers in zip(prompts, ["4", None], [4, 7], [[1, 3], [2, 5]], strict=True)
    ]
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=8,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        disable_tqdm=True,
    )
    functions = every_reward()
    trainer = trl.GRPOTrainer(
        model=tiny_model(len(tokenizer)),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        reward_funcs=functions,
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logs) == 2
    for function in functions:
        assert all(f"rewards/{function.__name__}/mean" in entry for entry in logs)
    # Half of the rows have no gold: the accuracy reward is a mean over the others, not NaN.
    assert all(0 <= entry["rewards/accuracy_reward/mean"] <= 1 for entry in logs)
