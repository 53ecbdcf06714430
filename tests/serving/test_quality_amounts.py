"""Whether an evaluation kept to its preset."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leankv.serving.quality_amounts import NOTED, PRESETS, Amounts, preset_words


def noted(amounts: Amounts) -> dict[str, dict[str, object]]:
    """As JSON gives it back."""
    plain = {task: {name: getattr(amounts, field) for name, field in fields.items()} for task, fields in NOTED.items()}
    return {
        task: {name: list(value) if isinstance(value, tuple) else value for name, value in each.items()}
        for task, each in plain.items()
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_told_as_such_and_changed_where_any_amount_is(preset: str) -> None:
    amounts = PRESETS[preset]
    assert preset_words(preset, noted(amounts)) == preset == preset_words(preset, {})
    for name, value in vars(amounts).items():
        other = replace(amounts, **{name: (*value, value[-1]) if isinstance(value, tuple) else value + 1})
        assert preset_words(preset, noted(other)) == f"{preset}, changed"


def test_every_amount_is_noted() -> None:
    assert {field for fields in NOTED.values() for field in fields.values()} == set(vars(PRESETS["quick"]))
