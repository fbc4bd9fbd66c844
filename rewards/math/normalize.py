"""One spelling for what people and models write in many: characters, delimiters, text."""

import re

from rewards.text import INVISIBLE

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n", strict=True))
_FRACTIONS = {
    **{"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5)},
    **{"⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8)},
}
_COMMANDS = {
    **{"×": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot", "•": "cdot", "÷": "div", "±": "pm", "∓": "mp"},
    **{"≤": "le", "⩽": "le", "≥": "ge", "⩾": "ge", "≠": "ne", "≈": "approx", "≡": "equiv", "∞": "infty"},
    **{"√": "sqrt", "∪": "cup", "∩": "cap", "∈": "in", "∅": "emptyset", "⌊": "lfloor", "⌋": "rfloor"},
    **{"⌈": "lceil", "⌉": "rceil", "⟨": "langle", "⟩": "rangle", "…": "ldots", "∖": "setminus", "∑": "sum"},
    **{"∏": "prod", "∫": "int", "∠": "angle", "→": "to", "ℝ": "mathbb{R}", "ℤ": "mathbb{Z}", "ℕ": "mathbb{N}"},
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta"},
    **{"κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau"},
    **{"φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda"},
    **{"Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega", "ℓ": "ell"},
}
_PLAIN = {
    **{"−": "-", "–": "-", "—": "-", "‐": "-", "⁄": "/", "∕": "/", "°": r"^\circ ", "′": "'", "’": "'", "”": '"'},
    **{"“": '"', "，": ",", "：": ":", "；": ";", "（": "(", "）": ")", "［": "[", "］": "]", "＝": "=", "＋": "+"},
    **{"。": ".", "％": "%", "＜": "<", "＞": ">", "￥": r"\yen ", "¥": r"\yen ", "€": r"\euro ", "£": r"\pounds "},
    **{"\xa0": " ", "\u2009": " ", "\u202f": " "},
}
_TABLE = str.maketrans(
    INVISIBLE
    | {ord(char): "\\" + name + ("" if name.endswith("}") else " ") for char, name in _COMMANDS.items()}
    | {ord(char): text for char, text in _PLAIN.items()}
    | {ord(char): rf"\frac{{{top}}}{{{bottom}}}" for char, (top, bottom) in _FRACTIONS.items()}
)
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")

_DOLLAR = re.compile(r"(?<!\\)\$")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]")
_FONT_NUMBER = re.compile(r"\\(?:text[a-z]{0,6}|math[a-z]{2}|mbox|bm|boldsymbol)\{([^{}A-Za-z]*[0-9][^{}\\]*)\}")
_TIMES = re.compile(r"(?<=[0-9]) ?[xX] ?(?=10 ?\^)")
_UNSEEN = re.compile(r"\\(?:[hv]?phantom|(?:text)?color)\s*\{[^{}]*\}")
_CLOCK = re.compile(r"(?<=:)([0-9]{2}) *([ap])\.?m\b\.?$", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|[A-Za-z_]{1,32}\|>|</s>")

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal|tt)?|mathrm|mathbf|mathit|mbox|operatorname)\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:[,;:!> ]|quad\b|qquad\b|left(?![a-z])|right(?![a-z]))|~")
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")
_CHOICE = re.compile(r"\(([A-Za-z])\)")


def to_latex(text: str) -> str:
    """The text with the Unicode that has a LaTeX name written in LaTeX, and without math delimiters or idle ends."""
    if not text.isascii():
        text = _RAISED.sub(lambda run: "^{" + "".join(_SUPERSCRIPTS[char] for char in run[0]) + "}", text)
        text = _LOWERED.sub(lambda run: "_{" + "".join(_SUBSCRIPTS[char] for char in run[0]) + "}", text)
        text = text.translate(_TABLE)
    text = _SPECIAL_TOKEN.sub(" ", text) if "<" in text else text
    text = text.replace("**", " ").strip(" `\t\n") if text.startswith(("**", "`")) else text.strip()
    text = _CLOCK.sub(r"\1\\text{ \2m}", text) if ":" in text else text
    if "$" in text:
        # In pairs they delimit formulas; a single one is a currency sign.
        paired = len(_DOLLAR.findall(text)) % 2 == 0
        text = _DOLLAR.sub(" " if paired else r"\\$", text)
    if "\\" in text:
        if "\\\\" in text and "begin{" not in text:
            text = text.replace("\\\\", "\\")  # escaped once too often; only a matrix has line breaks
        text = _UNSEEN.sub(" ", text).removesuffix(" ").removesuffix("\\")
        text = _FONT_NUMBER.sub(r" \1 ", _DELIMITERS.sub(" ", text))
    if "10" in text:
        text = _TIMES.sub(r"\\times ", text)
    text = text.strip()
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def plain_text(text: str) -> str:
    """A text answer in one spelling: no `\\text{}`, no spacing commands, single spaces and none beside punctuation;
    `(A)` is `A`; case does not matter where there is no LaTeX command."""
    text = _TEXT.sub(r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\([%$&#])", r"\1", text)
    text = " ".join(_SPACING.sub(" ", text).split())
    text = _IDLE_SPACE.sub("", text)
    text = text.removesuffix(".") if not text.endswith("..") else text
    if choice := _CHOICE.fullmatch(text):
        text = choice[1]
    return text if "\\" in text else text.casefold()
