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
SCALES = {"hundred": 100, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PERCENT = frozenset({"percent", "percents", "pct", "percentage"})

NOT_UNITS = frozenset(
    "a about above almost an and approximately are around at below but else exactly false for from greater half if in"
    " is it its least less maximum minimum minus more most no none not only or otherwise over plus possibly quarter"
    " than that the then third through times to true under undefined until when where".split()
) - {"in"}
"""Words that say something about the number; a text that holds one is not a number with a unit."""

MAX_WORDS = 6
_POWER_WORDS = (("square", "^2"), ("sq", "^2"), ("cubic", "^3"))


def parse_unit(text: str) -> str | None:
    """One name for a unit as written ("square meters", "cm^2", "miles per hour"), or None when it cannot be one."""
    text = re.sub(r"\bper\b", "/", re.sub(r"\^\{?([0-9])\}?", r"^\1", text)).replace(".", " ")
    words = text.replace("/", " / ").split()
    if not words or len(words) > MAX_WORDS or any(word.lower() in NOT_UNITS for word in words):
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
