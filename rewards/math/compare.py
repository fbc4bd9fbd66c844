"""Are two parsed answers the same answer? Each form has its rule; the cheapest that decides is used."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from rewards.math.exact import Deadline
from rewards.math.lists import compare_lists
from rewards.math.matrices import matrix_rows
from rewards.math.measures import compare_measures
from rewards.math.nodes import Node, canonical, children, contains
from rewards.math.normalize import plain_text
from rewards.math.policy import Policy
from rewards.math.relations import Contradiction, is_inequality, proportional, real_set, same_name, split_assignment
from rewards.math.values import is_undefined, same_value

Finding = tuple[bool, str]
"""(equal?, the rule that decided)"""

CHOICES = frozenset("ABCDEFGHIJ")
_TEXTS = frozenset({"text"})
_MEASURES = frozenset({"unit", "percent", "degree"})
_LISTS = frozenset({"list", "or", "set"})
_RELATIONS = frozenset({"rel"})
_SETS = frozenset({"union", "intersection", "minus", "named_set"})
_STRUCTURES = frozenset({"seq", "ratio", "base", "matrix", "row"})


@dataclass
class Comparison:
    """One check: its policy, its deadline, and what it found out on the way."""

    policy: Policy
    deadline: Deadline
    undecided: bool = False
    """Whether something could not be evaluated here; then a verdict of "different" is not a proof."""

    def equal(self, gold: Node, answer: Node) -> bool:
        return self.decide(gold, answer)[0]

    def decide(self, gold: Node, answer: Node) -> Finding:
        """Raises OutOfTime."""
        self.deadline.check()
        if canonical(gold) == canonical(answer):
            return not is_undefined(gold, self.deadline), "same form"
        try:
            return self._rule(gold, answer)(gold, answer)
        except Contradiction:
            return False, "an equation between different values"

    def _rule(self, gold: Node, answer: Node) -> Callable[[Node, Node], Finding]:
        ops = {gold.op, answer.op}
        for forms, rule in (
            (_TEXTS, self.texts),
            (_MEASURES, self.measures),
            (_LISTS, self.lists),
            (_RELATIONS, self.relations),
            (_SETS, self.sets),
        ):
            if ops & forms:
                return rule
        if contains(gold, "matrix") or contains(answer, "matrix"):
            return self.matrices
        return self.structures if ops & _STRUCTURES else self.expressions

    def expressions(self, gold: Node, answer: Node) -> Finding:
        if gold.op == answer.op == "sym" and gold.args[0] in CHOICES:
            return gold.args[0] == answer.args[0].upper(), "choices"
        equal = same_value(gold, answer, self.deadline, decimal_digits=self.policy.decimal_digits)
        if equal is None:
            self.undecided = True
            return False, "not evaluated"
        return equal, "values"

    def measures(self, gold: Node, answer: Node) -> Finding:
        return compare_measures(gold, answer, self.policy, self.equal)

    def lists(self, gold: Node, answer: Node) -> Finding:
        """Lists and sets of values, or of conditions."""
        forms = [node for node in (gold, answer) if node.op in ("list", "or")]
        if any(all(map(is_inequality, node.args)) for node in forms):
            return self.sets(gold, answer)
        if {gold.op, answer.op} & _SETS:
            return self.sets(gold, answer)
        found = compare_lists(gold, answer, self.equal)
        self.undecided = self.undecided or (not found[0] and contains(gold, "rel"))
        return found

    def texts(self, gold: Node, answer: Node) -> Finding:
        one, other = (split_assignment(node, self.equal)[1] for node in (gold, answer))
        if one.op != other.op:
            return False, "a text and no text"
        return plain_text(one.args[0]) == plain_text(other.args[0]), "texts"

    def structures(self, gold: Node, answer: Node) -> Finding:
        """Tuples, vectors, ratios, numbers in a base: part by part."""
        if gold.op != answer.op:
            return False, f"{gold.op} and {answer.op}"
        if gold.op == "base":
            one, other = ([part.casefold().strip() for part in node.args] for node in (gold, answer))
            return one == other, "numbers in a base"
        if _marks(gold) != _marks(answer) or len(gold.args) != len(answer.args):
            return False, f"{gold.op}: different shapes"
        return all(map(self.equal, children(gold), children(answer))), f"{gold.op}: part by part"

    def matrices(self, gold: Node, answer: Node) -> Finding:
        one, other = matrix_rows(gold), matrix_rows(answer)
        if one is None or other is None:
            return False, "a matrix and no matrix"
        if [len(row) for row in one] != [len(row) for row in other]:
            return False, "matrices: different shapes"
        return all(map(self.equal, chain(*one), chain(*other))), "matrices: entry by entry"

    def relations(self, gold: Node, answer: Node) -> Finding:
        """Assignments by their values, other equations and inequalities as wholes."""
        (gold_name, gold_value), (answer_name, answer_value) = (
            split_assignment(node, self.equal) for node in (gold, answer)
        )
        if gold_name and answer_name:
            if same_name(gold_name, answer_name):
                return self.equal(gold_value, answer_value), "assigned values"
        elif "rel" not in (gold_value.op, answer_value.op):
            return self.equal(gold_value, answer_value), "assigned value"
        if gold.op == answer.op and proportional(gold, answer, self.deadline):
            return True, "relations equal up to a factor"
        return self.sets(gold, answer)

    def sets(self, gold: Node, answer: Node) -> Finding:
        """Intervals, inequalities and what is made of them."""
        if is_inequality(answer) and not is_inequality(gold) and not self.policy.inequality_as_interval:
            return False, "an inequality where a set is asked for"
        if gold.op == answer.op == "rel" and gold.args[0] == answer.args[0]:
            if all(map(self.equal, gold.args[1:], answer.args[1:])):
                return True, "relations: side by side"
        one, other = real_set(gold, self.deadline), real_set(answer, self.deadline)
        if one is None or other is None:
            self.undecided = self.undecided or "rel" in (gold.op, answer.op)
            return False, "relations"
        if None not in (one[0], other[0]) and not same_name(one[0], other[0]):
            return False, "different unknowns"
        return one[1] == other[1], "sets of numbers"


def _marks(node: Node) -> list:
    """Brackets; those of a vector are as good as round ones."""
    marks = [mark for mark in node.args if not isinstance(mark, Node)]
    return ["(", ")"] if marks == [r"\langle", r"\rangle"] else marks
