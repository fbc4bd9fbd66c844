"""Does the reasoning proceed in visible steps?"""

import re
from collections.abc import Sequence
from typing import Any

from rewards.text import completion_text, thinking_section

STEPS_WANTED = 3
MIN_STEP_LETTERS = 8
"""Letters and digits a step must have after its marker; a bare marker is no step."""

_MARKER = re.compile(
    r"""^[ \t]*(?: (?:\#+[ \t]*|\*\*)?Step[ \t]+\d+[ \t]*[:.)] | \d+[.)](?=\s) | [-*•](?=\s) )
      | (?:^[ \t]*|(?<=[.!?][ \n]))(?:First|Second|Third|Next|Then|Finally)(?:ly)?,
      | ^[ \t]*(?:首先|其次|接着|然后|最后|第[一二三四五六七八九十\d]+步)[，,：:]?""",
    re.MULTILINE | re.VERBOSE,
)

_STEP_WORD = re.compile(r"\b(?:Step|First|Second|Third|Next|Then|Final)(?:ly)?\b")


def reasoning_steps_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """min(1, steps / 3), for the different steps that the reasoning marks.

    A step starts at "Step 1:", a numbered or bulleted line, or a sentence that opens with "First," "Second," "Next,"
    "Then," "Finally," (or their Chinese counterparts at a line's start), and reaches to the next marker. Steps
    shorter than `MIN_STEP_LETTERS` letters and digits do not count; steps of the same words count once.

    The reasoning is the think block, or the whole completion without one.
    """
    texts = [thinking_section(completion_text(completion)) for completion in completions]
    return [min(1.0, len(reasoning_steps(text)) / STEPS_WANTED) for text in texts]


def reasoning_steps(text: str) -> list[str]:
    """The different marked steps of a text, in order, without their markers."""
    bodies = (" ".join(body.split()) for body in _MARKER.split(text)[1:])
    return list(dict.fromkeys(body for body in bodies if _letters(body) >= MIN_STEP_LETTERS))


def _letters(body: str) -> int:
    """Letters and digits, but for those of further markers."""
    return sum(map(str.isalnum, _STEP_WORD.sub("", body)))
