"""TRL's trainers accept the policy as they accept any transformers model."""

import pytest
import torch
from datasets import Dataset
from model_cases import make_policy
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

trl = pytest.importorskip("trl")

WORDS = ["<pad>", "<eos>", "<unk>", *(str(i) for i in range(40))]


@pytest.fixture
def tokenizer():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def trainer_fields(tmp_path):
    return {
        "output_dir": str(tmp_path),
        "max_steps": 1,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_sft_trainer_takes_a_step(tmp_path, tokenizer):
    model = make_policy()
    before = weights_of(model)
    rows = Dataset.from_list([{"text": "1 2 3 4 5 6"}, {"text": "7 8 9"}])
    arguments = trl.SFTConfig(per_device_train_batch_size=2, max_length=16, **trainer_fields(tmp_path))
    trl.SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer).train()
    after = weights_of(model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(weight.isfinite().all() for weight in after.values())


def test_grpo_trainer_takes_a_step(tmp_path, tokenizer):
    model = make_policy()
    before = weights_of(model)
    rows = Dataset.from_list([{"prompt": "1 2 3"}, {"prompt": "4 5"}])

    def even_reward(completion_ids, **columns):
        return [sum(1.0 for token in ids if token % 2 == 0) / len(ids) for ids in completion_ids]

    arguments = trl.GRPOConfig(
        per_device_train_batch_size=4, num_generations=4, max_completion_length=8, **trainer_fields(tmp_path)
    )
    trainer = trl.GRPOTrainer(
        model=model, args=arguments, train_dataset=rows, reward_funcs=even_reward, processing_class=tokenizer
    )
    trainer.train()
    after = weights_of(model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(weight.isfinite().all() for weight in after.values())
