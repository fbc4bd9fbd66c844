"""A run -> the data of its page.

The data is plain JSON: {run, headline, panels, rewards, accuracy, shades, flags, groups, neighbours, first_aha,
suspects}; `groups` as `GroupBuilder.build` makes them, by step; places in it are [group's index, sample's index].
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from r1lab.trace.report.findings import Place, find_first_aha, find_suspects
from r1lab.trace.report.groups import FLAGS, GroupBuilder
from r1lab.trace.report.sampling import GroupKey, find_neighbours, order_groups
from r1lab.trace.report.series import build_headline, build_panels
from r1lab.trace.report.shading import SHADES, find_tokenizer, load_decoder
from r1lab.trace.report.source import Source

Watch = Callable[[Iterable, int, str], Iterable]
"""(items, how many at most, what is done) -> the same items, with a progress bar."""

_SETTINGS = (
    "model_name_or_path", "task", "dataset_name", "loss_type", "scale_rewards", "learning_rate", "beta", "temperature",
    "num_generations", "generation_batch_size", "max_completion_length", "seed",
)  # fmt: skip
_NEIGHBOUR_BYTES = 40
"""What a group's entry in `neighbours` takes, at most."""


def build_data(source: Source, max_bytes: int, tokenizer: Path | None, watch: Watch) -> dict[str, Any]:
    """Everything the page shows.

    Args:
        max_bytes: of the groups, as JSON; what does not fit is left out (see sampling.py), findings in it too.
        tokenizer: a tokenizer.json; None takes the newest checkpoint's.

    Raises:
        ValueError: the tokenizer cannot be read.
    """
    first_aha = find_first_aha(source)
    suspects = find_suspects(source, lambda rows, count: watch(rows, count, "looking for suspects"))
    pinned = [place[:2] for place in ([first_aha] if first_aha else []) + [suspect.place for suspect in suspects]]
    builder = _group_builder(source, tokenizer)
    groups = _pick_groups(source, builder, pinned, max_bytes, watch)
    index = {(group["step"], group["index"]): number for number, group in enumerate(groups)}
    return {
        "run": _describe_run(source, groups),
        "headline": build_headline(source.run.metrics),
        "panels": build_panels(source.run.metrics),
        "rewards": source.reward_names,
        "accuracy": source.accuracy_name,
        "shades": [{"key": one.key, "label": one.label, "largest": largest} for one, largest in builder.shades],
        "flags": FLAGS,
        "groups": groups,
        "neighbours": find_neighbours(groups),
        "first_aha": _where(first_aha, index) if first_aha else None,
        "suspects": [
            {"at": where, "reasons": suspect.reasons} for suspect in suspects if (where := _where(suspect.place, index))
        ],
    }


def _group_builder(source: Source, tokenizer: Path | None) -> GroupBuilder:
    file = tokenizer or find_tokenizer(source.run.path)
    # Recorded for some completion at least: a run whose rollouts were never trained has no training logps.
    filled = set(source.frame.columns[source.frame.notna().any()])
    usable = [shade for shade in SHADES if {"token_ids", *shade.columns} <= filled]
    if usable and file is None:
        source.run.notes.append("no tokenizer in checkpoints/: tokens are not shaded; give one with --tokenizer")
    decode = load_decoder(file) if usable and file else None
    shades = [(shade, shade.largest(source.frame)) for shade in usable] if decode else []
    return GroupBuilder(source.reward_names, source.accuracy_name, decode, shades)


def _pick_groups(
    source: Source, builder: GroupBuilder, pinned: list[GroupKey], max_bytes: int, watch: Watch
) -> list[dict]:
    """Builds groups in the order of their worth until the page is full; returns them by step."""
    places = source.frame.groupby(["step", "group"], sort=True).indices
    order = order_groups(list(places), pinned)
    kept, num_bytes = [], 0
    for key in watch(order, len(order), "preparing completions"):
        group = builder.build(source.frame.iloc[places[key]].to_dict("records"))
        size = len(encode_json(group)) + _NEIGHBOUR_BYTES
        if num_bytes + size <= max_bytes:
            kept.append(group)
            num_bytes += size
        elif key not in pinned:
            break
    return sorted(kept, key=lambda group: (group["step"], group["index"]))


def _describe_run(source: Source, groups: list[dict]) -> dict[str, Any]:
    config = source.run.config
    return {
        "name": source.run.path.resolve().name,
        "last_step": int(source.run.metrics["step"].max()),
        "max_steps": config.get("max_steps"),
        "num_completions": len(source.frame),
        "num_shown": sum(len(group["texts"]) for group in groups),
        "settings": {name: str(config[name]) for name in _SETTINGS if config.get(name) is not None},
        "notes": list(source.run.notes),
    }


def _where(place: Place, index: dict[GroupKey, int]) -> list[int] | None:
    """None: its group did not fit."""
    number = index.get(place[:2])
    return None if number is None else [number, place.sample]


def encode_json(data: Any) -> bytes:
    """Compact JSON that may stand inside a `<script>` element: without "<" no text can end it or open another."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return text.encode("utf-8", errors="replace")  # a lone surrogate, which UTF-8 cannot hold, becomes "?"
