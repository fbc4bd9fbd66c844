"""XML-like tags in completions, for templates of your own: read them, write them."""

from collections.abc import Sequence

from rewards.text import is_blank


def extract_tag(text: str, tag: str) -> str | None:
    """The inside of the one `<tag>...</tag>`, stripped.

    None when there is no such pair, a second tag of either kind (a second answer is a second guess), or nothing
    inside. Raises ValueError for a tag that is no name.
    """
    opening, closing = _tag_pair(tag)
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    content, found, _ = text.partition(opening)[2].partition(closing)
    return content.strip() if found and not is_blank(content) else None


def parse_tags(text: str, tags: Sequence[str]) -> dict[str, str | None]:
    """`extract_tag` of each tag, by name."""
    return {tag: extract_tag(text, tag) for tag in tags}


def follows_tags(text: str, tags: Sequence[str]) -> bool:
    """Whether the text is exactly these blocks, in order, each once and not blank, with white space around them."""
    rest = text
    for tag in tags:
        opening, closing = _tag_pair(tag)
        if extract_tag(text, tag) is None:
            return False
        before, _, rest = rest.partition(opening)
        _, closed, rest = rest.partition(closing)
        if before.strip() or not closed:
            return False
    return not rest.strip()


def render_tags(**contents: str) -> str:
    """One block a line for each keyword, in order: `render_tags(think="2+2", answer="4")`."""
    pairs = [(*_tag_pair(tag), content) for tag, content in contents.items()]
    return "\n".join(f"{opening}{content}{closing}" for opening, closing, content in pairs)


def _tag_pair(tag: str) -> tuple[str, str]:
    if not tag.replace("-", "_").isidentifier():
        raise ValueError(f"tag={tag!r}; pass a name without brackets, such as 'answer'")
    return f"<{tag}>", f"</{tag}>"
