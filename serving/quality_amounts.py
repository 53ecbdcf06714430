"""How much is evaluated: the presets, and whether an evaluation kept to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leankv.serving.quality_scores import Score


@dataclass(frozen=True)
class Amounts:
    """windows of prefix + 1 + scored tokens; needles by context, depth and repeat; questions; answers of each kind."""

    windows: int
    prefix: int
    scored: int
    contexts: tuple[int, ...]
    depths: tuple[float, ...]
    repeats: int
    questions: int
    each: int
    cap: int


PRESETS: Mapping[str, Amounts] = {
    "quick": Amounts(16, 512, 32, (512, 1024), (0.1, 0.5, 0.9), 2, 16, 4, 48),
    "full": Amounts(40, 1024, 64, (512, 1024, 2048), (0.0, 0.25, 0.5, 0.75, 1.0), 4, 64, 32, 160),
}
# Where `Quality.settings` notes the amounts: by task, each setting with the field of Amounts.
NOTED: Mapping[str, Mapping[str, str]] = {
    "perplexity": {"windows": "windows", "prefix_tokens": "prefix", "scored_tokens": "scored"},
    "needle": {"contexts": "contexts", "depths": "depths", "repeats": "repeats"},
    "choice": {"questions": "questions"},
    "answers": {"each": "each", "cap_tokens": "cap"},
}


def preset_words(preset: str, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The preset's name, and "changed" where an amount that was noted is not the preset's.

    settings: by task, as `Quality` has them.
    """
    return f"{preset}, changed" if preset in PRESETS and _differs(PRESETS[preset], settings) else preset


def window_words(settings: Mapping[str, Mapping[str, Any]], scores: Sequence[Mapping[str, Score]]) -> str | None:
    """How many windows the perplexity is of, and of what size; None where that was not noted.

    scores: of each policy by metric. The settings' own number is the last call's, and a folder grows call by call.
    """
    noted = settings.get("perplexity", {})
    counts = [each["perplexity"].n for each in scores if "perplexity" in each]
    if not counts or not all(name in noted for name in NOTED["perplexity"]):
        return None
    least, most = min(counts), max(counts)
    windows = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return f"{windows} windows of {noted['prefix_tokens']:,} tokens of prompt and {noted['scored_tokens']:,} scored"


def _differs(amounts: Amounts, settings: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(
        _plain(settings[task][name]) != getattr(amounts, field)
        for task, fields in NOTED.items()
        for name, field in fields.items()
        if name in settings.get(task, {})
    )


def _plain(value: Any) -> Any:
    """JSON gives tuples back as lists."""
    return tuple(value) if isinstance(value, list) else value
