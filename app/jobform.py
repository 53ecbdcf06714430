"""The settings of a job as widgets: a field of a kind becomes the widget that fits it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from leankv.app import found
from leankv.app.jobkinds import Field, Kind

COLUMNS = 2
WIDE = ("policies", "trace", "profile", "several")  # these take a row of their own


def settings(kind: Kind) -> dict[str, Any]:
    """Draw the fields and return what they say."""
    values: dict[str, Any] = {}
    narrow = [field for field in kind.fields if field.kind not in WIDE]
    for field in kind.fields:
        if field.kind in WIDE:
            values[field.name] = _draw(kind, field)
    for start in range(0, len(narrow), COLUMNS):
        for column, field in zip(st.columns(COLUMNS), narrow[start : start + COLUMNS], strict=False):
            with column:
                values[field.name] = _draw(kind, field)
    return values


def _draw(kind: Kind, field: Field) -> Any:
    return _WIDGETS[field.kind](field, f"job-{kind.name}-{field.name}")


def _choice(field: Field, key: str) -> Any:
    return st.selectbox(field.label, field.options, field.options.index(field.default), key=key, help=field.help)


def _text(field: Field, key: str) -> Any:
    index = field.options.index(field.default) if field.default in field.options else None
    return st.selectbox(field.label, field.options, index, key=key, help=field.help, accept_new_options=True)


def _number(field: Field, key: str) -> Any:
    return st.number_input(
        field.label,
        min_value=float(field.least),
        value=field.default,
        key=key,
        help=field.help,
        format="%g",
        placeholder="automatic",
    )


def _count(field: Field, key: str) -> Any:
    return st.number_input(
        field.label,
        min_value=int(field.least),
        value=field.default,
        step=1,
        key=key,
        help=field.help,
        placeholder="automatic",
    )


def _policies(field: Field, key: str) -> Any:
    from leankv.serving.policies.registry import registry

    live = [name for name, policy in registry.items() if policy.live]
    offered = list(dict.fromkeys([*live, *field.default]))
    return st.multiselect(field.label, offered, list(field.default), key=key, help=field.help, accept_new_options=True)


def _trace(field: Field, key: str) -> Any:
    from leankv.traces.catalogue import public_names
    from leankv.traces.measured import embedded_names

    names = sorted({*embedded_names(), *public_names()}, key=lambda name: name != field.default)
    return st.selectbox(field.label, names, key=key, help=field.help, accept_new_options=True)


def _profile(field: Field, key: str) -> Any:
    places = found.offered("profile")
    chosen = st.selectbox(
        field.label,
        list(places),
        0 if places else None,
        key=key,
        help=field.help,
        accept_new_options=True,
        placeholder="None: measured first. Or type a folder",
    )
    return str(places.get(chosen, chosen or "")) if chosen else None


def _switch(field: Field, key: str) -> Any:
    return st.toggle(field.label, field.default, key=key, help=field.help)


def _several(field: Field, key: str) -> Any:
    options, chosen = field.options, field.default
    return st.pills(field.label, options, selection_mode="multi", default=chosen, key=key, help=field.help, wrap=True)


_WIDGETS: dict[str, Callable[[Field, str], Any]] = {
    "choice": _choice,
    "text": _text,
    "number": _number,
    "count": _count,
    "policies": _policies,
    "trace": _trace,
    "profile": _profile,
    "switch": _switch,
    "several": _several,
}
