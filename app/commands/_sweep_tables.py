"""A sweep as a table in the terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from leankv.app.commands._run_tables import wide_console
from leankv.serving.files import atomic_write
from leankv.simulator.sweep import Knee, Row, knee, sweep_row
from leankv.simulator.sweep_points import Outcome

if TYPE_CHECKING:
    from rich.table import Table

GIB = 1 << 30
COST = "usd_per_million_output_tokens"
RATIOS = ("nominal_ratio", "physical_ratio")
FIGURES = ("peak_kv_gib", "kv_pool_gib", *RATIOS, "output_throughput", "preemptions", "rejected", COST)
COLUMNS = (
    "policy",
    "tp",
    "kv_memory_gib",
    "rate_scale",
    "offered_rps",
    "attainment",
    "goodput_rps",
    "throughput_rps",
    "mean_e2el_ms",
    "p99_ttft_ms",
    "p99_tpot_ms",
    *FIGURES,
    "limited_by",
    "stable",
    "error",
)
HEADINGS = {"tp": "tp", "kv_memory_gib": "KV GiB"}
Place = tuple[int, float | None]


class Outputs(Protocol):
    """Where the tables go, besides the terminal."""

    @property
    def json(self) -> Path | None: ...

    @property
    def csv(self) -> Path | None: ...


def report(outcomes: Sequence[Outcome], rates: Mapping[float, float], share: float, outputs: Outputs) -> None:
    """Print the points and the knees, and write the files asked for. `rates`: requests a second by rate scale."""
    rows = [point_row(outcome, rates[outcome.point.rate_scale]) for outcome in outcomes]
    knees = knees_of(rows, share)
    if outputs.json is not None:
        runs = [_described(outcome, row) for outcome, row in zip(outcomes, rows, strict=True)]
        _write_json(outputs.json, {"runs": runs, "attainment": share, "knees": [_knee_dict(*found) for found in knees]})
    if outputs.csv is not None:
        _write_csv(outputs.csv, rows)
    first = outcomes[0].point.config
    console = wide_console()
    console.print(_table(f"{first.model.name} on {first.device.name}", rows))
    slo = " and ".join(f"{metric.upper()} <= {bound:g} ms" for metric, bound in first.slo.items()) or "no SLO"
    console.print(f"\nHighest rate with {100 * share:.4g} % or more of the requests in time ({slo}), the queue stable:")
    for policy, place, found in knees:
        console.print(f"  {policy}{_where(place, rows)}: {_told(found)}")
    for sentence in sources(outcomes):
        console.print(sentence, markup=False, highlight=False)
    for error in dict.fromkeys(row["error"] for row in rows if row["error"]):
        console.print(f"failed: {error}", style="red", highlight=False)


def sources(outcomes: Sequence[Outcome]) -> list[str]:
    """Where the step times come from, and what tells which tokens each policy keeps."""
    summaries = {each.point.config.policy_name: each.summary for each in outcomes if each.summary is not None}
    times = {name: str(summary["step_time_source"]) for name, summary in summaries.items()}
    kept = {name: str(summary["retention_source"]) for name, summary in summaries.items()}
    return [f"{title}: {_by_value(found)}" for title, found in (("step times", times), ("tokens kept", kept))]


def _by_value(named: Mapping[str, str]) -> str:
    """Each value with the names that have it; the value alone where all do."""
    groups: dict[str, list[str]] = {}
    for name, value in named.items():
        groups.setdefault(value, []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in groups.items())


def point_row(outcome: Outcome, offered_rps: float) -> Row:
    """The point's figures under `COLUMNS`; None for all but its place where it failed."""
    config = outcome.point.config
    memory = None if config.kv_memory_bytes is None else config.kv_memory_bytes / GIB
    place = {
        "policy": config.policy_name,
        "tp": config.tp,
        "kv_memory_gib": memory,
        "rate_scale": outcome.point.rate_scale,
        "offered_rps": offered_rps,
        "error": outcome.error,
    }
    if outcome.summary is None:
        return dict.fromkeys(COLUMNS) | place
    figures = sweep_row(config.policy_name, outcome.point.rate_scale, offered_rps, outcome.summary)
    return figures | {name: outcome.summary[name] for name in FIGURES} | place


def knees_of(rows: Sequence[Row], share: float) -> list[tuple[str, Place, Knee | None]]:
    """(policy, (tp, KV GiB), knee) for each that has rows without an error."""
    grouped: dict[tuple[str, Place], list[Row]] = {}
    for row in rows:
        if row["error"] is None:
            grouped.setdefault((row["policy"], (row["tp"], row["kv_memory_gib"])), []).append(row)
    return [
        (policy, place, knee(sorted(group, key=lambda row: float(row["offered_rps"])), share))
        for (policy, place), group in grouped.items()
    ]


def _described(outcome: Outcome, row: Row) -> dict[str, Any]:
    place = ("policy", "tp", "kv_memory_gib", "rate_scale", "offered_rps", "attainment", "goodput_rps", "error")
    return {**{name: row[name] for name in place}, "source": "simulated", "summary": outcome.summary}


def _knee_dict(policy: str, place: Place, found: Knee | None) -> dict[str, Any]:
    figures = ("rate_rps", "goodput_rps", "held_rps", "lost_rps")
    at = {name: None if found is None else getattr(found, name) for name in figures}
    return {"policy": policy, "tp": place[0], "kv_memory_gib": place[1], **at}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _figure(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else f"{row[name]:,.{digits}f}"


SHOWN: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("requests/s", _figure("offered_rps", 2)),
    ("in time", lambda row: f"{row['attainment']:.1%}"),
    ("goodput/s", _figure("goodput_rps", 2)),
    ("tokens/s", _figure("output_throughput", 0)),
    ("TTFT p99 ms", _figure("p99_ttft_ms", 0)),
    ("TPOT p99 ms", _figure("p99_tpot_ms", 1)),
    ("KV peak GiB", _figure("peak_kv_gib", 2)),
    ("nominal / physical", lambda row: " / ".join(f"{row[name]:.2f}x" for name in RATIOS)),
    ("limited by", lambda row: str(row["limited_by"]) if row["stable"] else f"{row['limited_by']}, unstable"),
)


def _table(title: str, rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table(title=title, box=None, pad_edge=False)
    swept = _swept(rows)
    for heading in ("policy", *(HEADINGS[name] for name in swept)):
        table.add_column(heading)
    for heading, _ in SHOWN:
        table.add_column(heading, justify="left" if heading == "limited by" else "right")
    for row in rows:
        place = [row["policy"], *(_value(row[name]) for name in swept)]
        figures = [shown(row) for _, shown in SHOWN] if row["error"] is None else [SHOWN[0][1](row), "failed"]
        table.add_row(*place, *figures)
    return table


def _swept(rows: Sequence[Row]) -> list[str]:
    """Which of tensor parallelism and memory take more than one value."""
    return [name for name in HEADINGS if len({row[name] for row in rows}) > 1]


def _where(place: Place, rows: Sequence[Row]) -> str:
    values = dict(zip(HEADINGS, place, strict=True))
    return "".join(f", {HEADINGS[name]} {_value(values[name])}" for name in _swept(rows))


def _value(value: float | None) -> str:
    return "all" if value is None else f"{value:g}"


def _told(found: Knee | None) -> str:
    if found is None:
        return "below the lowest rate"
    if found.lost_rps is None:
        return f"{found.held_rps:.2f} requests/s or more: it held at every rate"
    return f"{found.rate_rps:.2f} requests/s (held at {found.held_rps:.2f}, no longer at {found.lost_rps:.2f})"
