"""Hand-made outcomes that the evaluation tests share."""

from r1lab.evaluate import Evaluation, Judged, SplitOutcome


def judged(right, *, blind=None, answer="1", num_tokens=10, text=""):
    return Judged(text, bool(right), bool(right if blind is None else blind), True, answer, num_tokens, False)


def outcome(patterns, greedy=None, **facts):
    """One problem a pattern: "110" is three completions, two of them right; named p0, p1, ..."""
    sampled = [[judged(mark == "1", **facts) for mark in pattern] for pattern in patterns]
    greedy = [pattern[0] == "1" for pattern in patterns] if greedy is None else greedy
    return SplitOutcome([f"p{i}" for i in range(len(patterns))], sampled, [judged(one, **facts) for one in greedy])


def evaluation(**splits):
    """A keyword a split; "__" stands for the "/" of its name."""
    return Evaluation({"model": "m"}, {name.replace("__", "/"): one for name, one in splits.items()})
