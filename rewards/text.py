"""What reward functions read: completions as text, their sections, and dataset columns."""

from collections.abc import Mapping, Sequence
from typing import Any

TAGS = ("<think>", "</think>", "<answer>", "</answer>")

TRAINER_HOOKS = ("trainer_state", "log_extra", "log_metric", "environments")
"""What TRL passes beside the dataset's columns."""

INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"), " ")
"""For str.translate: characters without ink separate like a space, so they neither fill a block nor glue digits."""


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """A completion as text: itself, or the content of the last assistant message ("" when there is none).

    A message without a role is the assistant's. Content may be a string, None (a tool call) or a list of blocks, of
    which the text blocks are joined. Raises TypeError for anything else.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence) or not all(isinstance(message, Mapping) for message in completion):
        raise TypeError(f"a completion must be a string or a list of messages, not {type(completion).__name__}")
    for message in reversed(completion):
        if message.get("role", "assistant") == "assistant":
            return _content_text(message.get("content"))
    return ""


def _content_text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(block.get("text") or "" for block in content if block.get("type", "text") == "text")


def is_blank(text: str) -> bool:
    return not text.translate(INVISIBLE).strip()


def final_section(text: str) -> str | None:
    """What follows the thinking: the text after `</think>`, or all of it when there are no think tags.

    None when thinking never ended or ended more than once, so that nothing inside it can pass for the answer.
    """
    closings = text.count("</think>")
    if closings == 0:
        return None if "<think>" in text else text
    return text.partition("</think>")[2] if closings == 1 else None


def thinking_section(text: str) -> str:
    """The chain of thought: what stands before `</think>` (or the end) and after `<think>`; all of a text without tags.

    A completion that starts inside the thinking, because the prompt ends in `<think>`, is read the same way.
    """
    before = text.partition("</think>")[0]
    return before.partition("<think>")[2] if "<think>" in before else before


def answer_block(text: str) -> str | None:
    """The inside of the one `<answer>...</answer>`, stripped.

    None when there is no such pair, more than one tag of either kind anywhere in the text (a second answer is a second
    guess), when the pair lies before the end of the thinking, or when it is blank.
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    section = final_section(text)
    if section is None or "<answer>" not in section:
        return None
    content, closing, _ = section.partition("<answer>")[2].partition("</answer>")
    return content.strip() if closing and not is_blank(content) else None


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """The (language, code) of every closed Markdown fence of three backticks, in order. Linear in the text."""
    blocks, language, lines = [], None, []
    for line in text.split("\n"):
        fence = line[3:].strip() if line.startswith("```") else None
        if language is None:
            language, lines = fence, []
        elif fence == "":
            blocks.append((language, "\n".join(lines)))
            language = None
        else:
            lines.append(line)
    return blocks


def find_column(columns: Mapping[str, Any], names: Sequence[str], size: int) -> Sequence[Any]:
    """The first of the columns `names` that was passed; TypeError naming them when none was.

    Raises ValueError when its length is not `size`, the number of completions.
    """
    for name in names:
        if columns.get(name) is not None:
            return check_length(name, columns[name], size)
    given = [name for name, value in columns.items() if value is not None and name not in TRAINER_HOOKS]
    raise TypeError(f"the reward needs one of the columns {', '.join(names)}; got {', '.join(given) or 'none'}")


def check_length(name: str, column: Sequence[Any], size: int) -> Sequence[Any]:
    if isinstance(column, str) or len(column) != size:
        raise ValueError(f"column {name!r} must be a list of one entry for each of the {size} completions")
    return column
