import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.math import check, parse_number
from rewards.math.lexer import ParseError
from rewards.math.nodes import canonical
from rewards.math.normalize import to_latex
from rewards.math.parser import parse

FORMS = [
    ("2x+1", "(add (mul 2 x) 1)"),
    ("-2^2", "(neg (pow 2 2))"),
    ("2^3^4", "(pow 2 (pow 3 4))"),
    ("1/2x", "(mul (div 1 2) x)"),
    (r"\frac12x", "(mul (div 1 2) x)"),
    (r"\frac1{72}", "(div 1 72)"),
    (r"\sqrt[3]{x}", "(root x 3)"),
    (r"\sin 2x\cos x", "(mul (call sin (mul 2 x)) (call cos x))"),
    (r"\sin(x)y", "(mul (call sin x) y)"),
    (r"\log_2 8", "(call log 8 2)"),
    (r"\sin^2 x", "(pow (call sin x) 2)"),
    ("|x-1|+|y|", "(add (call abs (add x -1)) (call abs y))"),
    ("x(x+1)", "(mul x (add x 1))"),
    ("f(x+1)", "(apply f (add x 1))"),
    ("P(1+r)", "(mul P (add 1 r))"),
    ("[0,1)", "(seq [ ) 0 1)"),
    ("(1,234)", "(seq ( ) 1 234)"),
    ("1,234", "1234"),
    ("1,2;3,4", "(list (list 1 2) (list 3 4))"),
    (r"2 \text{ or } 3", "(or 2 3)"),
    (r"5\text{ cm}^2", "(unit 5 cm^2)"),
    ("5m", "(mul 5 m)"),
    ("5 m", "(unit 5 m)"),
    (r"x\le y<2", "(rel <= < x y 2)"),
    (r"\begin{pmatrix}1&2\\3&4\\\end{pmatrix}", "(matrix matrix (row 1 2) (row 3 4))"),
    ("no solution", '"no solution"'),
    ("mc^2", "(mul m (pow c 2))"),
    (r"\text{E}", "E"),
    ("x'", "x'"),
    (r"\left.\frac{1}{2}\right.", "(div 1 2)"),
]


@pytest.mark.parametrize(("text", "form"), FORMS)
def test_forms(text, form):
    assert str(parse(text)) == form


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2",
        "1 +",
        "(1",
        "1)",
        r"\frac{1}",
        "x2",
        "5..6",
        "?",
        "(" * 500 + "1" + ")" * 500,
        r"\sqrt" * 700,
        "-" * 900 + "1",
    ]
    + ["1" + "/x" * 900, "9" * 4001, r"\begin{pmatrix}1&2", r"\text{}", "5 times", "1e999999999"],
    ids=lambda text: text[:16],
)
def test_no_mathematics(text):
    with pytest.raises(ParseError):
        parse(text)


def test_long_sums_are_flat():
    assert len(parse("+".join(["x"] * 1500)).args) == 1500


def test_unicode_becomes_latex():
    assert to_latex("x² ≤ √2·π") == r"x^{2} \le  \sqrt 2\cdot \pi"
    assert str(parse(to_latex("2½"))) == "5/2"
    with pytest.raises(ParseError):
        parse(to_latex("٣"))


def test_canonical_order():
    assert canonical(parse("a+(b+c)d")) == canonical(parse("d(c+b)+a"))
    assert canonical(parse("a-b")) != canonical(parse("b-a"))


PIECES = [
    *"0123456789+-*/.,()[]{}$%=^\\ x\n<>#_!|&:;abceifmnyAB½−٣²é√π∞°",
    *(
        r"\frac",
        r"\sqrt",
        r"\text{",
        r"\times ",
        r"\left(",
        r"\,",
        "{,}",
        r"\pm ",
        r"\cup ",
        r"\infty ",
        r"\sin ",
        r"\log_",
    ),
    *(r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", r"\{", r"\}", r"\le ", r"\in ", r"\mathbb{R}", r"\overline{3}"),
    *(
        r"\ldots",
        r"\binom",
        r"\sum",
        r"\int_0^1",
        r"^\circ",
        r"\langle",
        "cm",
        " or ",
        r"\boxed{",
        "1,234",
        r"\pmod",
        "=5",
    ),
]
MESSES = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@settings(max_examples=100)
@given(MESSES, MESSES)
def test_any_text_is_decided(gold, answer):
    parse_number(answer)
    assert check(gold, answer).reason in {"match", "mismatch", "no_answer", "unparsable_gold"}
    assert check("5", answer).reason in {"match", "mismatch", "no_answer"}


NUMERALS = st.fractions(max_denominator=50).filter(lambda value: abs(value) < 10**6)


def _spellings(value):
    top, bottom = value.numerator, value.denominator
    spellings = [rf"\frac{{{top}}}{{{bottom}}}", f"{top}/{bottom}", rf"x={top}\div {bottom}", rf"\sqrt{{{top * top}}}"]
    spellings = spellings[: 4 if bottom == 1 and top >= 0 else 3]
    return spellings + ([f"{top:,}", f"{top}.00", f"${top}"] if bottom == 1 else [])


@settings(max_examples=20)
@given(NUMERALS, NUMERALS)
def test_numbers_are_equal_exactly_when_their_values_are(one, other):
    for gold in _spellings(one):
        for answer in _spellings(other):
            assert check(gold, answer).equal == (one == other), (gold, answer)
