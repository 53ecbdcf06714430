"""Tunings that a page can show: those found of one model, one that somebody names, and what one was made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leankv.app import found
from leankv.serving.errors import InputError


def of_model(model: str) -> dict[str, Path]:
    """Name -> folder of every tuning of this model that can be read: of jobs, newest first, then what is shipped."""
    return {name: folder for name, folder in found.offered("tuning").items() if _is_of(folder, model)}


def opened(folder: Path, model: str) -> dict[str, Any]:
    """The tuning in a folder that `leankv tune` wrote. Raises InputError: none is there, or it is of another model."""
    from leankv.serving.tuning import load_tuning

    tuning = load_tuning(folder / found.MARKS["tuning"])
    if tuning.get("model") != model:
        raise InputError(f"{folder} holds a tuning of {tuning.get('model')}, the evaluation is of {model}")
    return tuning


def conditions(tuning: Mapping[str, Any], folder: Path) -> str:
    """What was tuned on what, and where that lies, in one line (Markdown). Older files say less."""
    policies = ", ".join(dict.fromkeys(each["policy"] for each in tuning["found"]))
    said = [f"`{folder}`", policies, *_searched(tuning.get("settings", {})), *_where(tuning)]
    return " · ".join(said)


def _is_of(folder: Path, model: str) -> bool:
    try:
        opened(folder, model)
    except InputError:
        return False
    return True


def _searched(settings: Mapping[str, Any]) -> list[str]:
    if not {"windows", "held_out", "prefix_tokens", "scored_tokens", "texts", "judge"} <= set(settings):
        return []
    texts = settings["texts"]
    told = texts[0] if len(texts) == 1 else f"{len(texts)} texts"
    judge = "the mean loss" if settings["judge"] == "mean" else "the upper end of its interval"
    return [
        f"{settings['windows'] - settings['held_out']} windows searched, {settings['held_out']} held out",
        f"each {settings['prefix_tokens']:,} tokens of prompt and {settings['scored_tokens']:,} scored, of {told}",
        f"bounds hold for {judge}",
    ]


def _where(tuning: Mapping[str, Any]) -> list[str]:
    device = f" on {tuning['device']['name']} ({tuning['dtype']})" if "device" in tuning else ""
    date = f" {tuning['created'][:10]}" if "created" in tuning else ""
    return [f"measured{date}{device}"] if date or device else []
