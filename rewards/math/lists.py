"""Lists and sets of solutions: in any order, by name where the values have names."""

from collections.abc import Callable

from rewards.math.nodes import Node, canonical, children
from rewards.math.relations import same_name, split_assignment

MAX_ITEMS = 200
"""Of a list or set; each is compared with each."""

Equal = Callable[[Node, Node], bool]
Item = tuple[Node | None, Node]
"""(name, value); the name is None where there is none."""


def compare_lists(gold: Node, answer: Node, equal: Equal) -> tuple[bool, str]:
    """(equal?, the rule that decided), where at least one side is a list or set. Raises Contradiction.

    `x=1, y=2` is met by the same names in any order, and by (1, 2) or 1, 2 in this order. A gold of 1, 1, 2 counts:
    neither 1, 2 nor 1, 2, 2 is the same, while 1, 2 is met by 1, 2, 2 as well.
    """
    golds, answers = _items(gold, equal), _items(answer, equal)
    if max(len(golds), len(answers)) > MAX_ITEMS:
        return False, "too many items"
    if _have_own_names(golds) and answer.op == "seq":
        answers = [(None, item) for item in children(answer)]
    if gold.op == "seq":
        answers = _in_order_of_names(answers)
    if _have_own_names(answers) and gold.op == "seq":
        golds = [(None, item) for item in children(gold)]
    names = [name for name, _ in golds + answers]
    if None not in names:
        return _same_by_name(golds, answers, equal), "assigned values by name"
    gold_values, answer_values = [value for _, value in golds], [value for _, value in answers]
    if _have_own_names(golds) or _have_own_names(answers):
        same = len(golds) == len(answers) and all(map(equal, gold_values, answer_values))
        return same, "assigned values in order"
    if len({name for name in names if name is not None}) > 1:
        return False, "values of different names"
    if len(golds) != len(answers) and 1 in (len(golds), len(answers)) and "set" not in (gold.op, answer.op):
        return False, "one value and several"  # also where the several are the one, repeated
    if "set" not in (gold.op, answer.op) and len(set(map(canonical, gold_values))) < len(gold_values):
        return _same_counts(gold_values, answer_values, equal), "items in any order, repeated ones counted"
    return _same_in_any_order(gold_values, answer_values, equal), "items in any order"


def _items(node: Node, equal: Equal) -> list[Item]:
    if node.op in ("list", "or", "set"):
        return [split_assignment(item, equal) for item in node.args]
    name, value = split_assignment(node, equal)
    if name is not None and name.op == value.op == "seq" and len(name.args) == len(value.args):
        return list(zip(children(name), children(value)))  # (x, y) = (1, 2)
    if name is not None and value.op in ("list", "or", "set"):
        return [(name, item) for item in value.args]
    return [(name, value)]


def _have_own_names(items: list[Item]) -> bool:
    names = [name for name, _ in items]
    return len(names) > 1 and None not in names and len(set(names)) == len(names)


def _in_order_of_names(items: list[Item]) -> list[Item]:
    """The pair that y = 2, x = 1 means is (1, 2): by name where these follow one another in the alphabet."""
    letters = [name.args[0] if name is not None and name.op == "sym" else "" for name, _ in items]
    codes = sorted(map(ord, letters)) if all(len(letter) == 1 for letter in letters) else []
    if len(codes) < 2 or codes != list(range(codes[0], codes[0] + len(codes))):
        return items
    return sorted(items, key=lambda item: item[0].args[0])


def _same_by_name(golds: list[Item], answers: list[Item], equal: Equal) -> bool:
    def same(one: Item, other: Item) -> bool:
        return same_name(one[0], other[0]) and equal(one[1], other[1])

    found = all(any(same(gold, answer) for answer in answers) for gold in golds)
    return found and all(any(same(gold, answer) for gold in golds) for answer in answers)


def _same_in_any_order(golds: list[Node], answers: list[Node], equal: Equal) -> bool:
    found = all(any(equal(gold, answer) for answer in answers) for gold in golds)
    return found and all(any(equal(gold, answer) for gold in golds) for answer in answers)


def _same_counts(golds: list[Node], answers: list[Node], equal: Equal) -> bool:
    def count(item: Node, items: list[Node]) -> int:
        return sum(equal(item, other) for other in items)

    return len(golds) == len(answers) and all(count(gold, golds) == count(gold, answers) for gold in golds)
