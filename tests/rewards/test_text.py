import pytest

from rewards.text import completion_text, fenced_blocks, thinking_section


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("<think>a</think> b", "a"),
        ("a</think> b", "a"),
        ("<think>a", "a"),
        ("a", "a"),
        ("<think>a</think> b </think> c", "a"),
        ("</think> b", ""),
        ("", ""),
    ],
)
def test_thinking_section(text, thinking):
    assert thinking_section(text) == thinking


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("a", "a"),
        ([{"content": "a"}], "a"),
        ([{"role": "user", "content": "q"}], ""),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}], "a"),
        ([{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}], "a"),
    ],
)
def test_completion_text(completion, text):
    assert completion_text(completion) == text


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("```python\na\nb\n```", [("python", "a\nb")]),
        ("x\n``` cpp \na\n```\ny\n```\nb\n```", [("cpp", "a"), ("", "b")]),
        ("```python\na", []),
        ("```python\na\n```js\nb\n```", [("python", "a\n```js\nb")]),
        ("a", []),
    ],
)
def test_fenced_blocks(text, blocks):
    assert fenced_blocks(text) == blocks
