"""Numbers with a unit, degrees, percentages."""

from collections.abc import Callable

from rewards.math.nodes import Node, number
from rewards.math.policy import Policy
from rewards.math.units import units_agree


def compare_measures(gold: Node, answer: Node, policy: Policy, equal: Callable[[Node, Node], bool]) -> tuple[bool, str]:
    """(equal?, the rule that decided), where at least one side is a measure."""
    if "percent" in (gold.op, answer.op):
        return _compare_percentages(gold, answer, policy, equal), "percentages"
    gold_unit, answer_unit = _unit(gold), _unit(answer)
    if gold_unit and answer_unit and not units_agree(gold_unit, answer_unit):
        return False, "different units"
    if policy.require_unit and gold_unit and not answer_unit:
        return False, "unit missing"
    gold, answer = (node.args[0] if _unit(node) else node for node in (gold, answer))
    return equal(gold, answer), "values beside units"


def _unit(node: Node) -> str | None:
    return node.args[1] if node.op == "unit" else "degree" if node.op == "degree" else None


def _compare_percentages(gold: Node, answer: Node, policy: Policy, equal: Callable[[Node, Node], bool]) -> bool:
    if gold.op == answer.op:
        return equal(gold.args[0], answer.args[0])
    if gold.op == "percent":
        as_written = policy.percent_as_number and equal(gold.args[0], answer)
        return as_written or equal(_hundredth(gold.args[0]), answer)
    # A count is no percentage: 5 is neither 5% nor, in earnest, 500%.
    is_count = gold.op == "num" and gold.args[0].denominator == 1 and gold.args[0] not in (0, 1)
    return not is_count and equal(gold, _hundredth(answer.args[0]))


def _hundredth(node: Node) -> Node:
    return Node("div", (node, number(100)))
