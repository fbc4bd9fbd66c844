"""Units behind a number. Missing on one side they do not matter; two that differ do."""

import re

_SPELLINGS = {
    "m": "meter meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres",
    "mm": "millimeter millimeters millimetre millimetres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards yds",
    "mi": "mile miles",
    "s": "second seconds sec secs",
    "min": "minute minutes mins",
    "h": "hour hours hr hrs",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "g": "gram grams",
    "kg": "kilogram kilograms kgs",
    "mg": "milligram milligrams",
    "lb": "pound pounds lbs",
    "oz": "ounce ounces",
    "L": "l liter liters litre litres",
    "mL": "ml milliliter milliliters",
    "gal": "gallon gallons",
    "N": "newton newtons",
    "J": "joule joules",
    "W": "watt watts",
    "V": "volt volts",
    "A": "ampere amperes amps",
    "K": "kelvin",
    "Hz": "hertz",
    "Pa": "pascal pascals",
    "mol": "mole moles",
    "degree": "degrees deg",
    "celsius": "centigrade",
    "fahrenheit": "",
    "dollar": "dollars usd bucks",
    "cent": "cents",
    "euro": "euros eur",
    "pound sterling": "gbp",
    "yuan": "rmb",
    "mi/h": "mph",
    "km/h": "kph kmh",
}
CANONICAL = {spelling: unit for unit, all_ in _SPELLINGS.items() for spelling in (unit, *all_.split())}
LETTERS = frozenset(unit for unit in CANONICAL if len(unit) == 1)
"""One-letter units; after a number and a space they are units, directly after it they are variables (`5m`)."""

CURRENCY = {"$": "dollar", "euro": "euro", "pounds": "pound sterling", "yen": "yen"}
_POWERS_OF_TEN = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "quadrillion": 15}
SCALES = {name + plural: 10**power for name, power in _POWERS_OF_TEN.items() for plural in ("", "s")}
SCALES |= {"dozen": 12, "dozens": 12}
PERCENT = frozenset({"percent", "percents", "pct", "percentage"})

_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety quintillion lakh crore score"
).split()
_PARTS = (
    "half halve third fourth quarter fifth sixth seventh eighth ninth tenth eleventh twelfth fifteenth sixteenth"
    " twentieth hundredth thousandth millionth billionth"
).split()
NOT_UNITS = frozenset(
    (
        "a about above almost an and approximately are around at base below but choose cube cubed divided double"
        " doubled else exactly except factorial false fewer followed for from greater halved high if incorrect inverse"
        " is it its kilo least less log low maximum maybe mega milli minimum minus mod modulo more most multiplied"
        " negative never no none not off only opposite or otherwise over plus point possibly power quadruple"
        " quadrupled reciprocal root square squared than that the then through times to too triple tripled true twice"
        " undefined under unless until versus vs when where with without wrong"
    ).split()
    + _NUMBERS
    + _PARTS
    + [f"{name}s" for name in _NUMBERS + _PARTS]
    + list(SCALES)
)
"""Words that say something about the number; a text that holds one is not a number with a unit."""

NEGATIONS = frozenset("not never no wrong incorrect false except isn't n't".split())

MAX_WORDS = 6
_POWER_WORDS = (("square", "^2"), ("sq", "^2"), ("cubic", "^3"))


def parse_unit(text: str) -> str | None:
    """One name for a unit as written ("square meters", "cm^2", "miles per hour"), or None when it cannot be one."""
    text = re.sub(r"\bper\b", "/", re.sub(r"\^\{?([0-9])\}?", r"^\1", text)).replace(".", " ")
    words = text.replace("/", " / ").split()
    if len(words) > 1 and words[-1].lower() == "old":
        words.pop()  # 3 years old
    parts = [part for word in words for part in re.split("[-^]", word.lower())]
    if not words or len(words) > MAX_WORDS or not NOT_UNITS.isdisjoint(_without_powers(parts)):
        return None
    named, power = [], ""
    for word in words:
        name, mark, exponent = word.partition("^")
        if not re.fullmatch(r"[A-Za-z'-]+|/", name):
            return None
        if prefix := dict(_POWER_WORDS).get(name.lower()):
            power = prefix
            continue
        if name.lower() in ("squared", "cubed") and named:
            named[-1] += "^2" if name.lower() == "squared" else "^3"
            continue
        named.append(_singular(name) + (mark + exponent or power))
        power = ""
    return " ".join(named).replace(" / ", "/") or None


def _without_powers(words: list[str]) -> list[str]:
    """The words but "square" before a unit and "squared" behind one."""
    return [
        word
        for index, word in enumerate(words)
        if not (word in ("square", "cubic") and index + 1 < len(words))
        and not (word in ("squared", "cubed") and index > 0 and words[index - 1] in CANONICAL)
    ]


def _singular(word: str) -> str:
    known = CANONICAL.get(word) or CANONICAL.get(word.lower())
    if known:
        return known
    word = word.lower()
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def units_agree(one: str, other: str) -> bool:
    """Whether two units are the same, or one only says more about the counted things (eggs, duck eggs)."""
    if one == other:
        return True
    ones, others = set(one.split()), set(other.split())
    if ones & set(CANONICAL.values()) or others & set(CANONICAL.values()) or "/" in one + other:
        return False
    return ones <= others or others <= ones
