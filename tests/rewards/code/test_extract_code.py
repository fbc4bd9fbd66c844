import pytest

from rewards.code import extract_code

CASES = {
    "one block": ("Text\n```python\nx = 1\n```\nmore", "x = 1\n"),
    "no language": ("```\nx = 1\n```", "x = 1\n"),
    "the last block": ("```python\nx = 1\n```\n```py\nx = 2\n```", "x = 2\n"),
    "other languages are passed over": ("```python\nx = 1\n```\n```bash\nls\n```", "x = 1\n"),
    "only another language": ("```cpp\nint x;\n```", None),
    "cut off": ("```python\nx = 1\n", "x = 1\n"),
    "indented fences": ("1. Code:\n   ```python\nx = 1\n   ```", "x = 1\n"),
    "longer fences hold shorter ones": ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
    "tildes": ("~~~python\nx = 1\n~~~", "x = 1\n"),
    "no fence": ("x = 1\n", "x = 1\n"),
    "thinking is left out": ("<think>```python\nx = 1\n```</think>\n```python\nx = 2\n```", "x = 2\n"),
    "no code after thinking": ("<think>```python\nx = 1\n```</think>\nnone", "\nnone"),
    "endless thinking": ("<think>```python\nx = 1\n```", None),
    "thinking that ends twice": ("<think></think>```python\nx = 1\n```</think>", None),
    "in answer tags": ("<think>x</think> <answer>x = 1</answer>", "x = 1"),
    "a block in answer tags": ("<answer>\n```python\nx = 1\n```\n</answer> ```\nx = 2\n```", "x = 1\n"),
    "two answers": ("<answer>x = 1</answer> <answer>x = 2</answer>", "<answer>x = 1</answer> <answer>x = 2</answer>"),
    "empty": ("", ""),
    "windows line ends": ("```python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
}


@pytest.mark.parametrize(("completion", "code"), CASES.values(), ids=CASES)
def test_extract_code(completion, code):
    assert extract_code(completion) == code


def test_the_block_that_defines_the_entry_point():
    completion = "```python\ndef f(x):\n    return x\n```\nUse:\n```python\nprint(f(1))\n```"
    assert extract_code(completion, "f") == "def f(x):\n    return x\n"
    assert extract_code(completion, "g") == "print(f(1))\n"
    assert extract_code("```python\nclass Solution:\n    pass\n```\n```\n1\n```", "Solution().f").startswith("class")


def test_long_text_takes_linear_time():
    assert extract_code("```python\n" + "`" * 1_000_000) is not None
    assert extract_code("```\n" * 100_001) == ""
