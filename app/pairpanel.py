"""One policy held against another on the page: the same samples under both, whatever fp16 makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from leankv.app import pairwords
from leankv.app.figures.pair import by_window
from leankv.app.views import is_dark, show

if TYPE_CHECKING:
    from leankv.serving.quality import Quality

FORMATS = {name: st.column_config.NumberColumn(format="%+.2f") for name in ("Difference", "95 % from", "95 % to")}


def pair_panel(quality: Quality) -> None:
    """Draw the section; nothing where fewer than two policies are there."""
    pair = pairwords.nearest(quality)
    if pair is None:
        return
    st.header(
        "One policy against another",
        anchor=False,
        help="Differences sample by sample: what makes a sample hard is in neither, so the interval is narrower than "
        "those of the two against fp16. Fair where both compress alike.",
    )
    names = list(quality.policies)
    left, right = st.columns(2)
    first = left.selectbox("Policy", names, names.index(pair[0]), key="one", bind="query-params")
    second = right.selectbox("Held against", names, names.index(pair[1]), key="other", bind="query-params")
    if first == second:
        st.info("Choose two different policies.", icon=":material/info:")
        return
    st.markdown(pairwords.verdict(quality, first, second))
    losses = pairwords.losses(quality, first, second)
    chart, numbers = st.columns([3, 2]) if losses else (None, st.container())
    if chart is not None:
        with chart:
            show(by_window(losses, first, second, is_dark()), "windows")
    with numbers:
        table = pairwords.table(quality, first, second)
        if len(table):
            st.dataframe(table, hide_index=True, width="stretch", column_config=FORMATS, key="pair")
