"""Token ids and per-token numbers -> compact strings that the page shades text by.

A number becomes one character of `ALPHABET`: level v of 0 ... 63 stands for `(v / 63) ** 2 * largest`, fine near zero,
where most tokens are. A length in UTF-16 units (JavaScript's) is written in base 63 with "/" as a carry of 63.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    import pandas

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_MAX_NATS = 8.0
"""The end of a scale at most: a probability of 0.0003."""
# A character that several tokens share decodes to replacement characters; the next token is looked for so far on.
_MAX_SKIP = 16


def find_tokenizer(run_dir: Path) -> Path | None:
    """The `tokenizer.json` of the run's newest checkpoint, if it has one."""
    return max(run_dir.glob("checkpoints/*/tokenizer.json"), default=None)


def load_decoder(file: Path) -> Callable[[int], str]:
    """Token id -> its text, special tokens empty.

    Raises:
        ValueError: `file` is not a tokenizer.json.
    """
    from tokenizers import Tokenizer

    text = file.read_text(encoding="utf-8")
    try:
        is_tokenizer = "model" in json.loads(text)
    except (ValueError, TypeError):
        is_tokenizer = False
    if not is_tokenizer:
        raise ValueError(f"{file} is not a tokenizer.json: it holds no tokenizer model")
    tokenizer = Tokenizer.from_str(text)
    known: dict[int, str] = {}

    def decode(token_id: int) -> str:
        if token_id not in known:
            known[token_id] = tokenizer.decode([token_id], skip_special_tokens=True)
        return known[token_id]

    return decode


def token_ends(text: str, pieces: Sequence[str]) -> list[int] | None:
    """Where each token ends in the text, the white space before it included.

    Args:
        pieces: the tokens' own texts; the decoder may have put white space between them or taken it away.

    Returns:
        One position a token, not decreasing; None when over a quarter of the tokens are not found in their place:
        the tokenizer is another one.
    """
    ends, cursor, num_lost = [], 0, 0
    for piece in pieces:
        word = piece.replace("\ufffd", "").strip()
        start = text.find(word, cursor, cursor + len(word) + _MAX_SKIP) if word else cursor
        if start >= 0:
            cursor = start + len(word)
        else:
            num_lost += 1
        ends.append(cursor)
    return None if num_lost > len(pieces) / 4 else ends


def utf16_positions(text: str) -> Callable[[int], int]:
    """Python's position in the text -> JavaScript's, where a character outside the basic plane counts twice."""
    if text.isascii() or max(text) <= "\uffff":
        return lambda position: position
    doubled = numpy.cumsum([0, *(1 + (char > "\uffff") for char in text)])
    return lambda position: int(doubled[position])


def encode_lengths(ends: Sequence[int]) -> str:
    """Ends of consecutive spans -> their lengths, one character each up to 62."""
    lengths = numpy.diff([0, *ends]).tolist()
    return "".join("/" * (length // 63) + ALPHABET[length % 63] for length in lengths)


def encode_levels(values: Sequence[float], largest: float) -> str:
    """Numbers from 0 to `largest` (the rest is clipped) -> one character each."""
    array = numpy.nan_to_num(numpy.asarray(values, dtype=float), nan=0.0, posinf=largest)
    shares = numpy.clip(array / largest, 0.0, 1.0)
    return "".join(ALPHABET[level] for level in numpy.rint(numpy.sqrt(shares) * 63).astype(int).tolist())


class Shade:
    """One thing that tokens can be shaded by.

    Args:
        key: its name in the page's data.
        label: in the menu.
        columns: of the completions file; a run without one of them lacks this shade.
        measure: the columns' values of one completion -> a number >= 0 for each token, in nats.
    """

    def __init__(self, key: str, label: str, columns: tuple[str, ...], measure: Callable[..., numpy.ndarray]):
        self.key, self.label, self.columns, self.measure = key, label, columns, measure

    def values(self, row: dict) -> numpy.ndarray | None:
        """Of one completion; None where the recorder left a column empty or its lengths differ."""
        arrays = [row[column] for column in self.columns]
        if any(array is None or len(array) != len(row["token_ids"]) for array in arrays):
            return None
        return self.measure(*(numpy.asarray(array, dtype=float) for array in arrays))

    def largest(self, frame: "pandas.DataFrame") -> float:
        """The end of the scale over all completions: the largest finite value, 8 nats at most."""
        found = [self.values(row) for row in frame[["token_ids", *self.columns]].to_dict("records")]
        finite = [values[numpy.isfinite(values)] for values in found if values is not None]
        top = max((float(values.max()) for values in finite if len(values)), default=0.0)
        return min(top, _MAX_NATS) or 1.0


SHADES = (
    Shade("logp", "surprise (−logp)", ("logps",), numpy.negative),
    Shade(
        "difference",
        "rollout/training difference of logp",
        ("logps", "train_logps"),
        lambda rollout, train: numpy.abs(rollout - train),
    ),
    Shade("entropy", "entropy", ("entropies",), numpy.abs),
)
