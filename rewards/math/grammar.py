"""What the commands and signs of mathematics mean to the parser."""

from rewards.math.nodes import EULER, IMAGINARY, INFINITY, PI, Node

# Binding powers, loosest first.
RELATION, SETS, RATIO, UNIT, SUM, PRODUCT, POWER, POSTFIX = 10, 20, 24, 28, 30, 40, 60, 70

RELATIONS = {
    **{"=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "<>": "!="},
    **{r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\leqq": "<=", r"\lt": "<"},
    **{r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", r"\geqq": ">=", r"\gt": ">"},
    **{r"\ne": "!=", r"\neq": "!=", r"\approx": "approx", r"\simeq": "approx", r"\equiv": "equiv"},
    **{r"\in": "in", r"\to": "to", r"\Rightarrow": "implies", r"\sim": "sim", r"\subseteq": "subset"},
    **{r"\subset": "subset", r"\parallel": "parallel", r"\perp": "perp", r"\cong": "cong", r"\notin": "notin"},
}
SET_OPERATORS = {r"\cup": "union", r"\cap": "intersection", r"\setminus": "minus", r"\backslash": "minus"}
PRODUCTS = {r"\cdot": "mul", r"\times": "mul", "*": "mul", r"\ast": "mul", r"\div": "div", "/": "div"}

CONSTANTS = {r"\pi": PI, r"\infty": INFINITY}
LETTER_CONSTANTS = {"e": EULER, "i": IMAGINARY}
EMPTY_SET = Node("set", ())
NAMED_SETS = {rf"\mathbb {name}": Node("named_set", (name,)) for name in "RZNQC"}
ALL_REALS = frozenset({"all real numbers", "all reals", "all real values", "real numbers", "the real numbers"})
EMPTY_SETS = frozenset({r"\emptyset", r"\varnothing"})

FRACTIONS = frozenset({r"\frac", r"\dfrac", r"\tfrac", r"\cfrac"})
BINOMIALS = frozenset({r"\binom", r"\dbinom", r"\tbinom"})
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh log ln lg exp gcd lcm max min det deg"
    " Gamma sgn".split()
)
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
"""What \\sin^{-1} means."""
OPERATORS = frozenset({r"\sum", r"\prod", r"\int", r"\lim", r"\iint", r"\oint"})

ACCENTS = frozenset({r"\vec", r"\hat", r"\bar", r"\overline", r"\overrightarrow", r"\tilde", r"\widehat", r"\dot"})
MARKS = frozenset({r"\angle", r"\triangle", r"\measuredangle", r"\odot", r"\square"})
"""Signs before a geometric name: part of the name."""
WRAPPERS = frozenset({r"\boxed", r"\fbox", r"\displaystyle", r"\textstyle", r"\mathop", r"\underline", r"\mathstrut"})
DOTS = frozenset({r"\ldots", r"\dots", r"\cdots", r"\vdots", r"\dotsc", r"\dotsb"})

MODULI = frozenset({r"\pmod", r"\bmod", r"\mod"})
NOT_OPERANDS = MODULI | frozenset(
    (r"\}", r"\rangle", r"\rvert", r"\rfloor", r"\rceil", r"\\", r"\mid", r"\pm", r"\mp", r"\%", r"\$", r"\circ")
    + (r"\degree", r"\choose")
)
"""Commands that end a product."""

CLOSINGS = {"(": (")", "]"), "[": ("]", ")"), r"\langle": (r"\rangle",), r"\{": (r"\}",), "{": ("}",)}
BARS = {"|": "|", r"\lvert": r"\rvert", r"\|": r"\|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
BAR_FUNCTIONS = {"|": "abs", r"\lvert": "abs", r"\|": "norm", r"\lfloor": "floor", r"\lceil": "ceil"}

DEFINED_BY_LETTER = frozenset("fghFGH")
"""f(x) with one of these is a function's value; with other letters only W(n), a capital before one letter or number."""
