"""The page's building blocks: a chart with its words and numbers, and downloads."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import streamlit as st

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.app.figures.style import Chart
    from leankv.app.scoreboard import Card

STYLE = """<style>
.st-key-verdict [data-testid=stMarkdown]:first-child p {font-size: 1.2rem}
.st-key-cards {display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 0.75rem}
@media (max-width: 1150px) {.st-key-cards {grid-template-columns: repeat(3, minmax(0, 1fr))}}
@media (max-width: 640px) {.st-key-cards {grid-template-columns: repeat(2, minmax(0, 1fr))}}
</style>"""
DELTA_COLOUR: dict[str, Literal["normal", "inverse", "off"]] = {"more": "normal", "less": "inverse", "none": "off"}
MODEBAR = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}


def is_dark() -> bool:
    """Whether the reader sees the dark theme."""
    return st.context.theme.type == "dark"


def draw_cards(cards: Sequence[Card]) -> None:
    """Headline figures in a row that wraps on a narrow page."""
    with st.container(key="cards"):
        for card in cards:
            st.metric(
                card.label,
                card.value,
                card.delta,
                delta_color=DELTA_COLOUR[card.better],
                delta_arrow="off" if card.better == "none" else "auto",
                help=card.help,
                border=True,
                height="stretch",
            )


def show(chart: Chart, name: str) -> None:
    """The chart, described for screen readers, with its numbers below; `name` is unique on the page."""
    draw(chart, name)
    with st.expander("Numbers", icon=":material/table_chart:"):
        numbers(chart.table, name)


def show_all(charts: Mapping[str, Chart], name: str, columns: int) -> None:
    """Charts of one kind side by side under their titles, with their numbers in one table below."""
    import pyarrow as pa

    places = [column for _ in range(0, len(charts), columns) for column in st.columns(columns)]
    for place, (title, chart) in zip(places, charts.items(), strict=False):
        with place:
            st.markdown(f"**{title}**")
            draw(chart, f"{name}-{title}")
    with st.expander("Numbers", icon=":material/table_chart:"):
        numbers(pa.concat_tables([chart.table for chart in charts.values()]), name)


def draw(chart: Chart, name: str) -> None:
    """The chart alone, described for screen readers."""
    st.plotly_chart(chart.figure, width="stretch", config=MODEBAR, alt=chart.alt, key=f"chart-{name}")


def numbers(table: pa.Table, name: str) -> None:
    """A table with its CSV."""
    import pyarrow as pa

    formats = {
        field.name: st.column_config.NumberColumn(format="%.4g")
        for field in table.schema
        if pa.types.is_floating(field.type)
    }
    st.dataframe(table, hide_index=True, width="stretch", column_config=formats, key=f"table-{name}")
    download_csv(table, name)


def download_csv(table: pa.Table, name: str) -> None:
    """A button that hands over the table as a CSV file."""
    st.download_button(
        "CSV",
        csv_bytes(table),
        file_name=f"{name}.csv",
        mime="text/csv",
        icon=":material/download:",
        key=f"csv-{name}",
        on_click="ignore",
    )


def csv_bytes(table: pa.Table) -> bytes:
    """The table as CSV with a header line."""
    import pyarrow.csv as pa_csv

    buffer = io.BytesIO()
    pa_csv.write_csv(table, buffer)
    return buffer.getvalue()
