"""The app's pages, in order, and links from one to another that carry its choices."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import streamlit as st

# name (its address and its module): (title, icon)
PAGES = {
    "compare": ("Compare", ":material/compare_arrows:"),
    "run": ("Run", ":material/timeline:"),
    "traces": ("Traces", ":material/show_chart:"),
    "validate": ("Validate", ":material/balance:"),
    "quality": ("Quality", ":material/grading:"),
    "jobs": ("Jobs", ":material/work_history:"),
}


def pages() -> list[Any]:
    """Every page; the first is where a visitor arrives."""
    return [_page(name) for name in PAGES]


def link(name: str, label: str, icon: str, query: Mapping[str, str]) -> None:
    """A link to the page with these choices made."""
    st.page_link(_page(name), label=label, icon=icon, query_params=dict(query))


def _page(name: str) -> Any:
    title, icon = PAGES[name]
    module = import_module(f"leankv.app.screens.{name}")
    return st.Page(module.page, title=title, icon=icon, url_path=name, default=name == next(iter(PAGES)))
