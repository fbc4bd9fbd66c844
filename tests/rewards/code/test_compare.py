import math

import pytest

from rewards.code.compare import matches, outputs_equal
from rewards.code.jail.values import decode, encode

EQUAL = [
    (1, 1), (10**40, 10**40), (4, 4.0), (4.0, 4), (0.1 + 0.2, 0.3), (1.0, 1 + 1e-10), (math.nan, math.nan),
    (math.inf, math.inf), (None, None), (True, True), ("a", "a"), (b"a", b"a"), (1 + 2j, 1 + 2j), ([], []),
    ([1, [2.0]], [1, [2]]), ((1, 2), (1, 2)), ({1, 2}, {2, 1}), (frozenset((1, 8)), frozenset((8, 1))),
    ({"a": 1, 2: [3]}, {2: [3], "a": 1}), ({1: 0.3}, {1: 0.1 + 0.2}), ({1.0, 2}, {1, 2.0}), ({(1, "a")}, {(1, "a")}),
]  # fmt: skip
DIFFERENT = [
    (1, 2), (1, True), (True, 1), (0, False), (0, None), (1, "1"), ("1", 1), (1, 1.0000001), (1.0, 1.001),
    (0.5, math.nan), (math.inf, -math.inf), (math.inf, 1e308), (1.0, 10**400), (10**400, 1.0), ("a", "A"), ("a", b"a"),
    ([1], (1,)), ((1,), [1]), ([1], [1, 1]), ([1, 2], [2, 1]), ({1}, {1, 2}), ({1}, frozenset({1})), ({1}, [1]),
    ({"a": 1}, {"a": 2}), ({"a": 1}, {"a": 1, "b": 2}), ({}, []), ({}, set()), (set(), {}), ({True}, {1}), ([], None),
    (1j, 1), (1, 1 + 0j),
]  # fmt: skip
HOSTILE = [
    {"x": []}, {"t": 1}, {"s": {"a": 1}}, {"d": [[1]]}, {"d": [1]}, {"d": "ab"}, {"f": []}, {"f": "inf!"}, {"i": "zz"},
    {"i": 5}, {"c": [1]}, {"c": ["a", None]}, {"b": 3}, {"t": [], "s": []}, {}, {"d": [[[1], 2]]},
]  # fmt: skip


@pytest.mark.parametrize(("expected", "value"), EQUAL, ids=repr)
def test_equal(expected, value):
    assert matches(expected, encode(value))


@pytest.mark.parametrize(("expected", "value"), DIFFERENT, ids=repr)
def test_different(expected, value):
    assert not matches(expected, encode(value))


@pytest.mark.parametrize("data", HOSTILE, ids=repr)
def test_malformed_data_equals_nothing(data):
    for expected in (None, 1, 1.5, "a", b"a", 1j, [1], (1,), {1}, frozenset({1}), {"a": 1}):
        assert not matches(expected, data)


def test_elements_whose_hashes_collide_are_cheap():
    values = [{"i": hex(k * (2**61 - 1))} for k in range(1, 20_000)]
    assert not matches({0}, {"s": values})
    assert not matches({0: 0}, {"d": [[value, 0] for value in values]})


def test_tuples_for_lists():
    assert matches([1, [2]], encode((1, (2,))), tuple_as_list=True)
    assert matches({"a": [1]}, encode({"a": (1,)}), tuple_as_list=True)
    assert not matches([1], encode({1}), tuple_as_list=True)


@pytest.mark.parametrize("value", [value for value, _ in EQUAL if value == value], ids=repr)
def test_values_survive_the_border(value):
    copy = decode(encode(value))
    assert copy == value and type(copy) is type(value)


def test_subclasses_lose_their_tricks():
    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    assert type(decode(encode(Liar(3)))) is int
    assert not matches(4, encode(Liar(3)))


def test_what_cannot_cross_is_an_error():
    with pytest.raises(TypeError, match="type object"):
        encode([object()])
    with pytest.raises(ValueError, match="nested more than 60 deep"):
        encode(eval("[" * 70 + "]" * 70))
    with pytest.raises(ValueError, match="more than 65536 bits"):
        encode(1 << 70_000)
    for data in HOSTILE:
        with pytest.raises(ValueError):
            decode(data)


@pytest.mark.parametrize(
    ("expected", "output", "modes"),
    [
        ("1\n2\n", "1\n2", "lines tokens floats"),
        ("1\n2", "1  \n2\n\n \n", "lines tokens floats"),
        ("", " \n", "lines tokens floats"),
        ("1 2", "1\n2", "tokens floats"),
        ("0.5", "0.50", "floats"),
        ("1e3", "1000.0", "floats"),
        ("0.333333", "0.3333330001", "floats"),
        ("1\n2", "1", ""),
        ("1", "1\n2", ""),
        ("\n1", "", ""),
        ("5", "5.0", ""),
        ("1.0", "nan", ""),
        ("nan.", "nan", ""),
        ("1_0.0", "10.0", ""),
        ("12", "1 2", ""),
        (" 1", "1", "tokens floats"),
        ("12", "\uff11\uff12", ""),
    ],
)
def test_printed_output(expected, output, modes):
    for mode in ("lines", "tokens", "floats"):
        assert outputs_equal(expected, output, mode) == (mode in modes.split()), mode
