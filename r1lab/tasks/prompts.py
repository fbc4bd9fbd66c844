"""Dataset rows -> prompts as the policy reads them."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from r1lab.types import Prompt


def encode_prompts(dataset: Dataset, tokenizer: Any, *, max_length: int) -> list[Prompt]:
    """One `Prompt` per row.

    A `prompt` of chat messages goes through the tokenizer's chat template; plain text is encoded as it is, after the
    tokenizer's BOS token if it has one.

    Args:
        max_length: the longest prompt, in tokens, that leaves room for a completion in the model's context.

    Raises:
        ValueError: no `prompt` column, a row that is neither text nor messages, or a prompt that is too long.
    """
    if "prompt" not in dataset.column_names:
        raise ValueError(
            f"the dataset has no column 'prompt', only {', '.join(dataset.column_names)}; rename or add one"
        )
    prompts = []
    for index, row in enumerate(dataset):
        text = row.pop("prompt")
        token_ids = _encode(text, tokenizer, index)
        if len(token_ids) > max_length:
            raise ValueError(
                f"row {index}: its prompt has {len(token_ids)} tokens, more than the {max_length} that the context "
                "leaves beside max_completion_length; shorten or drop it, or lower max_completion_length"
            )
        prompts.append(Prompt(text, token_ids, row))
    return prompts


def _encode(text: str | Sequence[dict], tokenizer: Any, index: int) -> list[int]:
    if isinstance(text, str):
        token_ids = tokenizer(text, add_special_tokens=False).input_ids
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return [*bos, *token_ids]
    if isinstance(text, list) and all(isinstance(message, dict) for message in text):
        return tokenizer.apply_chat_template(text, add_generation_prompt=True, tokenize=True, return_dict=False)
    raise ValueError(f"row {index}: prompt is {type(text).__name__}; use text, or a list of chat messages")
