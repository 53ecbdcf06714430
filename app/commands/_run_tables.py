"""Runs as a table in the terminal: a column a policy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Figure = Callable[[Mapping[str, Any]], str]
WIDTH = 160
SHIFTED = "with_length_shift"


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


def _interval(key: str, digits: int = 1) -> Figure:
    def shown(summary: Mapping[str, Any]) -> str:
        return _bounds(summary["intervals"].get(key), digits)

    return shown


def _against_baseline(summary: Mapping[str, Any]) -> str:
    if "paired" not in summary:
        return "baseline"
    paired = summary["paired"]
    if paired is None:
        return "-"
    return f"{paired['mean_difference_ms']:+,.1f} {_bounds(paired['interval'], 1)}"


def _bounds(interval: Sequence[float] | None, digits: int) -> str:
    return "-" if interval is None else f"[{interval[0]:,.{digits}f}, {interval[1]:,.{digits}f}]"


def _pages(summary: Mapping[str, Any]) -> str:
    return f"{summary['peak_kv_gib']:.2f} of {summary['kv_pool_gib']:.2f}"


def _ratios(summary: Mapping[str, Any]) -> str:
    return f"{summary['nominal_ratio']:.2f}x / {summary['physical_ratio']:.2f}x"


def _running(summary: Mapping[str, Any]) -> str:
    return f"{summary['max_running']:,} / {summary['mean_running']:,.1f}"


def more_at_once(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence a policy: how many more (or fewer) requests it runs at once than the baseline."""
    baseline = next((each for each in summaries if "paired" not in each), summaries[0])
    return [
        f"{each['policy']} runs {each['max_running'] - baseline['max_running']:+,} requests at once against "
        f"{baseline['policy']}, {each['mean_running'] - baseline['mean_running']:+,.1f} on average"
        for each in summaries
        if each is not baseline
    ]


def _prefixes(summary: Mapping[str, Any]) -> str:
    rate = summary.get("prefix_hit_rate")
    return str(summary["prefix_caching"]) if rate is None else f"{100 * rate:.1f} %"


ROWS: tuple[tuple[str, Figure], ...] = (
    ("requests completed", _number("completed", 0)),
    ("rejected", _number("rejected", 0)),
    ("output tokens/s", _number("output_throughput")),
    ("goodput, requests/s", _number("request_goodput", 2)),
    ("  95 % interval", _interval("request_goodput", 2)),
    ("TTFT ms, mean / median / p99", _latency("ttft")),
    ("  95 % interval of p99", _interval("p99_ttft_ms")),
    ("TPOT ms, mean / median / p99", _latency("tpot")),
    ("  95 % interval of p99", _interval("p99_tpot_ms")),
    ("ITL ms, mean / median / p99", _latency("itl")),
    ("E2EL ms, mean / median / p99", _latency("e2el")),
    ("  95 % interval of mean", _interval("mean_e2el_ms")),
    ("E2EL ms minus the baseline's, mean", _against_baseline),
    ("KV peak, GiB per GPU", _pages),
    ("compression, nominal / physical", _ratios),
    ("running at once, most / mean", _running),
    ("preemptions", _number("preemptions", 0)),
    ("$ per million output tokens", _number("usd_per_million_output_tokens", 3)),
    ("prompt tokens found in the prefix cache", _prefixes),
    ("limited by", lambda summary: str(summary["limited_by"])),
    ("stable", lambda summary: "yes" if summary["stable"] else "NO: the queue keeps growing"),
    ("retention from", lambda summary: str(summary["retention_source"])),
)


def _shifted(key: str, digits: int = 1) -> Figure:
    def shown(summary: Mapping[str, Any]) -> str:
        value = (summary.get(SHIFTED) or {}).get(key)
        return "-" if value is None else f"{value:,.{digits}f}"

    return shown


def _measured(shown: Callable[[Mapping[str, Any]], str]) -> Figure:
    """Of what the longer outputs are drawn from, by lossy policy."""

    def joined(summary: Mapping[str, Any]) -> str:
        measured = (summary.get(SHIFTED) or {}).get("measured") or {}
        return " + ".join(map(shown, measured.values())) or "-"

    return joined


def _with_interval(each: Mapping[str, Any]) -> str:
    interval = each["total_ratio_interval"]
    return f"{each['total_ratio']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


SHIFTED_ROWS: tuple[tuple[str, Figure], ...] = (
    ("with outputs as long as measured", lambda summary: ""),
    ("  output tokens served, over the trace's", _shifted("output_ratio", 3)),
    ("  prompts that both lengths were measured on", _measured(lambda each: f"{each['pairs']:,}")),
    ("  tokens over fp16's on those prompts, 95 %", _measured(_with_interval)),
    ("  E2EL ms, mean", _shifted("mean_e2el_ms")),
    ("  output tokens/s", _shifted("output_throughput")),
    ("  requests/s", _shifted("request_throughput", 2)),
    ("  goodput, requests/s", _shifted("request_goodput", 2)),
)


def wide_console() -> Console:
    """The terminal; where the output is none there is no width to fit, and wrapped cells would be harder to search."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def print_comparison(config: Mapping[str, Any], summaries: Sequence[Mapping[str, Any]]) -> None:
    """The summaries of some policies side by side, then what was rejected and where the figures come from.

    `config`: of any of the runs; trace, model and devices are the same in all.
    """
    from rich.table import Table

    model, device = config["model"]["name"], config["device"]["name"]
    table = Table(title=f"{config['trace']['name']} on {model}, {config['gpus']} x {device}")
    table.add_column("")
    for summary in summaries:
        table.add_column(summary["policy"], justify="right")
    shifted = SHIFTED_ROWS if any(SHIFTED in summary for summary in summaries) else ()
    for label, figure in (*ROWS, *shifted):
        table.add_row(label, *(figure(summary) for summary in summaries))
    console = wide_console()
    console.print(table)
    first = summaries[0]
    slo = " and ".join(f"{metric.upper()} <= {bound:g} ms" for metric, bound in first["slo"].items())
    console.print(f"step times: {first['step_time_source']}; goodput: {slo or 'no SLO'}; {first['window']}")
    console.print(f"intervals: {first['interval_kind']}; differences to the baseline are taken request by request")
    for sentence in more_at_once(summaries):
        console.print(sentence, markup=False)
    for summary in summaries:
        for request, reason in summary["rejections"][:3]:
            console.print(f"{summary['policy']}: request {request} rejected: {reason}", markup=False)
