import pytest

from rewards import language_consistency_reward
from rewards.language import LANGUAGES, language_share

ENGLISH = "We add the numbers and get seven"
CHINESE = "我们把数字相加得到七"


def test_pure_texts():
    assert language_consistency_reward(completions=[ENGLISH, CHINESE]) == [1.0, 0.0]
    assert language_consistency_reward(completions=[ENGLISH, CHINESE], language="zh") == [0.0, 1.0]
    assert language_consistency_reward(completions=[ENGLISH, CHINESE], language=["en", "zh"]) == [1.0, 1.0]


def test_the_share_of_words():
    assert language_share("we add 数字 now", "en") == 3 / 5
    assert language_share("we add 数字 now", "zh") == 2 / 5


def test_only_the_chain_of_thought_counts():
    text = f"<think>{ENGLISH}</think> <answer>{CHINESE}</answer>"
    prefilled = text.removeprefix("<think>")
    assert language_consistency_reward(completions=[text, prefilled, f"<think>{ENGLISH}"]) == [1.0, 1.0, 1.0]
    assert language_consistency_reward(completions=[f"<think>{CHINESE}</think> {ENGLISH}"]) == [0.0]


def test_mathematics_belongs_to_no_language():
    text = r"设 $x = \frac{1}{2} + y^2$，于是 $\sqrt{x} > 0.5$，得 42"
    assert language_share(text, "zh") == 1.0


def test_hidden_words_count():
    assert language_share(f"{ENGLISH} $ {CHINESE} $", "en") < 0.5
    assert language_share(rf"{ENGLISH} \( \text{{{CHINESE}}}", "en") < 0.5


@pytest.mark.parametrize("text", ["", "<think></think> the answer", "2 + 2 = 4", "x = y", "!!!"])
def test_nothing_said_earns_nothing(text):
    assert language_consistency_reward(completions=[text]) == [0.0]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "naïve café"),
        ("ja", "数字を足します"),
        ("ko", "숫자를 더합니다"),
        ("ru", "сложим числа"),
        ("el", "προσθέτουμε"),
        ("ar", "نجمع الأرقام"),
        ("he", "נחבר את המספרים"),
        ("hi", "संख्याओं को जोड़ें"),
        ("th", "บวกตัวเลข"),
    ],
)
def test_every_language(language, text):
    assert language_share(text, language) == 1.0
    assert all(language_share(text, other) < 1 for other in LANGUAGES if other != language)


def test_none_is_skipped_and_an_unknown_language_is_an_error():
    assert language_consistency_reward(completions=[ENGLISH] * 2, language=["en", None]) == [1.0, None]
    with pytest.raises(ValueError, match="'xx' is unknown; pass target_language, one of en, zh"):
        language_consistency_reward(completions=[ENGLISH], language="xx")
    with pytest.raises(ValueError, match="'language'"):
        language_consistency_reward(completions=[ENGLISH], language=["en", "zh"])


def test_target_language_leaves_a_column_of_programming_languages_alone():
    columns = {"language": ["python"], "target_language": "zh"}
    assert language_consistency_reward(completions=[CHINESE], **columns) == [1.0]
