"""Does the completion keep to the R1 template (DeepSeek-R1, arXiv:2501.12948, table 1)?"""

from collections.abc import Sequence
from typing import Any

from rewards.text import TAGS, check_length, completion_text, is_blank


def format_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    *,
    prefilled_think: bool | Sequence[bool | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 for `<think>...</think> <answer>...</answer>` and nothing else, 0.0 otherwise.

    Each tag exactly once, in this order, both blocks with something in them, only white space around and between.
    prefilled_think declares that the prompt already ends in `<think>`, so that the completion starts inside it:
    one bool, or a column of them.
    """
    size = len(completions)
    if prefilled_think is None or isinstance(prefilled_think, bool):
        prefilled = [bool(prefilled_think)] * size
    else:
        prefilled = check_length("prefilled_think", prefilled_think, size)
    texts = [completion_text(completion) for completion in completions]
    return [float(has_format(text, prefilled_think=bool(flag))) for text, flag in zip(texts, prefilled, strict=True)]


def has_format(text: str, *, prefilled_think: bool = False) -> bool:
    """Whether one completion keeps to the template."""
    text = "<think>" + text if prefilled_think else text
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    # With every tag present once, cutting at each in turn fails exactly when they are out of order.
    parts, rest = [], text
    for tag in TAGS:
        part, found, rest = rest.partition(tag)
        if not found:
            return False
        parts.append(part)
    before, think, between, answer = parts
    outside = before + between + rest
    return not outside.strip() and not is_blank(think) and not is_blank(answer)
