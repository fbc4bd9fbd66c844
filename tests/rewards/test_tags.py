import pytest

from rewards.tags import extract_tag, follows_tags, parse_tags, render_tags


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<sql> select 1 </sql>", "select 1"),
        ("so <sql>a <b>c</b></sql> end", "a <b>c</b>"),
        ("<sql></sql>", None),
        ("<sql> \u200b </sql>", None),
        ("<sql>a", None),
        ("a</sql>", None),
        ("</sql>a<sql>", None),
        ("<sql>a</sql><sql>b</sql>", None),
        ("<sql>a<sql>b</sql>", None),
        ("<SQL>a</SQL>", None),
        ("", None),
    ],
)
def test_extract_tag(text, content):
    assert extract_tag(text, "sql") == content


def test_written_tags_are_read_back():
    text = render_tags(plan="add", answer="4")
    assert text == "<plan>add</plan>\n<answer>4</answer>"
    assert parse_tags(text, ["plan", "answer", "code"]) == {"plan": "add", "answer": "4", "code": None}
    assert follows_tags(text, ["plan", "answer"])


@pytest.mark.parametrize(
    "text",
    [
        "<answer>4</answer>\n<plan>add</plan>",
        "<plan>add</plan>",
        "well <plan>add</plan><answer>4</answer>",
        "<plan>add</plan> so <answer>4</answer>",
        "<plan>add</plan><answer>4</answer> done",
        "<plan>add <answer>4</answer></plan>",
        "<plan>add<answer></plan>4</answer>",
        "<plan></plan><answer>4</answer>",
        "<plan>add</plan><answer>4</answer><answer>5</answer>",
    ],
)
def test_other_shapes_do_not_follow(text):
    assert not follows_tags(text, ["plan", "answer"])


@pytest.mark.parametrize("tag", ["<answer>", "", "a b", "a.*"])
def test_a_tag_is_a_name(tag):
    with pytest.raises(ValueError, match="tag="):
        extract_tag("x", tag)
