"""A folder of results to read: one of those that were found, or any other, typed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import streamlit as st


def chosen_folder(
    label: str, places: Mapping[str, Path], key: str, help: str, shown: Literal["visible", "collapsed"] = "collapsed"
) -> Path | None:
    """The reader's choice, kept in the address under `key`: at first the first of `places`, None without any."""
    name = st.selectbox(
        label,
        list(places),
        0 if places else None,
        key=key,
        accept_new_options=True,
        placeholder="Type a folder",
        label_visibility=shown,
        help=help,
        bind="query-params",
    )
    return (places.get(name) or Path(name).expanduser()) if name else None
