"""Runs as a table in the terminal: a column a policy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from leankv.serving.runs import Run

if TYPE_CHECKING:
    from rich.console import Console

Figure = Callable[[Mapping[str, Any]], str]
WIDTH = 160


def _number(key: str, digits: int = 1) -> Figure:
    def shown(summary: Mapping[str, Any]) -> str:
        value = summary.get(key)
        return "-" if value is None else f"{value:,.{digits}f}"

    return shown


def _latency(metric: str) -> Figure:
    def shown(summary: Mapping[str, Any]) -> str:
        figures = [summary.get(f"{name}_{metric}_ms") for name in ("mean", "median", "p99")]
        return " / ".join("-" if figure is None else f"{figure:,.1f}" for figure in figures)

    return shown


def _pages(summary: Mapping[str, Any]) -> str:
    return f"{summary['peak_kv_gib']:.2f} of {summary['kv_pool_gib']:.2f}"


def _ratios(summary: Mapping[str, Any]) -> str:
    return f"{summary['nominal_ratio']:.2f}x / {summary['physical_ratio']:.2f}x"


def _prefixes(summary: Mapping[str, Any]) -> str:
    rate = summary.get("prefix_hit_rate")
    return str(summary["prefix_caching"]) if rate is None else f"{100 * rate:.1f} %"


ROWS: tuple[tuple[str, Figure], ...] = (
    ("requests completed", _number("completed", 0)),
    ("rejected", _number("rejected", 0)),
    ("output tokens/s", _number("output_throughput")),
    ("goodput, requests/s", _number("request_goodput", 2)),
    ("TTFT ms, mean / median / p99", _latency("ttft")),
    ("TPOT ms, mean / median / p99", _latency("tpot")),
    ("ITL ms, mean / median / p99", _latency("itl")),
    ("E2EL ms, mean / median / p99", _latency("e2el")),
    ("KV peak, GiB per GPU", _pages),
    ("compression, nominal / physical", _ratios),
    ("most running at once", _number("max_running", 0)),
    ("preemptions", _number("preemptions", 0)),
    ("$ per million output tokens", _number("usd_per_million_output_tokens", 3)),
    ("prompt tokens found in the prefix cache", _prefixes),
    ("limited by", lambda summary: str(summary["limited_by"])),
    ("stable", lambda summary: "yes" if summary["stable"] else "NO: the queue keeps growing"),
    ("retention from", lambda summary: str(summary["retention_source"])),
)


def wide_console() -> Console:
    """The terminal; where the output is none there is no width to fit, and wrapped cells would be harder to search."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def print_comparison(runs: list[Run]) -> None:
    """The runs side by side, then what was rejected and where the step times come from."""
    from rich.table import Table

    first = runs[0]
    model, device = first.config["model"]["name"], first.config["device"]["name"]
    table = Table(title=f"{first.config['trace']['name']} on {model}, {first.config['gpus']} x {device}")
    table.add_column("")
    for run in runs:
        table.add_column(run.policy, justify="right")
    for label, figure in ROWS:
        table.add_row(label, *(figure(run.summary) for run in runs))
    console = wide_console()
    console.print(table)
    slo = " and ".join(f"{metric.upper()} <= {bound:g} ms" for metric, bound in first.summary["slo"].items())
    console.print(
        f"step times: {first.summary['step_time_source']}; goodput: {slo or 'no SLO'}; {first.summary['window']}"
    )
    for run in runs:
        for request, reason in run.summary["rejections"][:3]:
            console.print(f"{run.policy}: request {request} rejected: {reason}")
