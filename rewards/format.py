"""Does the completion keep to the R1 template (DeepSeek-R1, arXiv:2501.12948, table 1)?"""

from collections.abc import Callable, Sequence
from typing import Any

from rewards.text import TAGS, check_length, completion_text, fenced_blocks, is_blank


def format_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    *,
    prefilled_think: bool | Sequence[bool | None] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 for `<think>...</think> <answer>...</answer>` and nothing else, 0.0 otherwise.

    Each tag exactly once, in this order, both blocks with something in them, only white space around and between.
    prefilled_think declares that the prompt already ends in `<think>`, so that the completion starts inside it:
    one bool, or a column of them. log_extra, TRL's hook, gets the column "format_reason" (see `format_error`).
    """
    errors = [format_error(text) for text in _texts(completions, prefilled_think)]
    if log_extra is not None:
        log_extra("format_reason", [error or "good" for error in errors])
    return [float(error is None) for error in errors]


def tag_count_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    *,
    prefilled_think: bool | Sequence[bool | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """0.25 for each of the four tags of the template, a slope towards `format_reward` for models that miss it.

    A tag pays when it occurs exactly once, after the tags paid before it; a closing tag only when its opening tag was
    paid and something stands between them. prefilled_think as in `format_reward`.
    """
    return [_count_tags(text) / len(TAGS) for text in _texts(completions, prefilled_think)]


def code_format_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    *,
    language: str | Sequence[str | None] = "python",
    prefilled_think: bool | Sequence[bool | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where `format_reward` gives 1.0 and the answer holds exactly one fenced block, of that language, not empty.

    language: the word after the opening fence, one for all or a column; a row with None gets None.
    """
    size = len(completions)
    languages = [language] * size if isinstance(language, str) else check_length("language", language, size)
    texts = _texts(completions, prefilled_think)
    return [_code_format(text, name) for text, name in zip(texts, languages, strict=True)]


def format_error(text: str) -> str | None:
    """The first thing that keeps a completion from the template, None when nothing does.

    One of "no <think>" and "several <think>" (or another tag), "tags out of order", "text outside the blocks",
    "empty <think>", "empty <answer>".
    """
    for tag in TAGS:
        if (count := text.count(tag)) != 1:
            return f"{'several' if count else 'no'} {tag}"
    # With every tag present once, cutting at each in turn fails exactly when they are out of order.
    parts, rest = [], text
    for tag in TAGS:
        part, found, rest = rest.partition(tag)
        if not found:
            return "tags out of order"
        parts.append(part)
    before, think, between, answer = parts
    if (before + between + rest).strip():
        return "text outside the blocks"
    if is_blank(think):
        return "empty <think>"
    return "empty <answer>" if is_blank(answer) else None


def _texts(completions: Sequence[Any], prefilled_think: bool | Sequence[bool | None] | None) -> list[str]:
    """The completions as text, with the `<think>` of the prompt in front where that is declared."""
    size = len(completions)
    if prefilled_think is None or isinstance(prefilled_think, bool):
        prefilled = [prefilled_think] * size
    else:
        prefilled = check_length("prefilled_think", prefilled_think, size)
    pairs = zip(completions, prefilled, strict=True)
    return ["<think>" * bool(flag) + completion_text(completion) for completion, flag in pairs]


def _count_tags(text: str) -> int:
    paid, end, opened = 0, 0, False
    for tag in TAGS:
        start = text.find(tag)
        once_in_order = text.count(tag) == 1 and start >= end
        is_closing = tag.startswith("</")
        pays = once_in_order and (not is_closing or (opened and not is_blank(text[end:start])))
        if pays:
            paid, end = paid + 1, start + len(tag)
        opened = pays and not is_closing
    return paid


def _code_format(text: str, language: str | None) -> float | None:
    if language is None:
        return None
    if format_error(text) is not None:
        return 0.0
    blocks = fenced_blocks(text.partition("<answer>")[2].partition("</answer>")[0])
    return float(len(blocks) == 1 and blocks[0][0].lower() == language.lower() and not is_blank(blocks[0][1]))
