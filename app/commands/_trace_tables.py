"""What the `leankv traces` commands print."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from leankv.serving.errors import InputError
from leankv.traces.catalogue import PUBLIC_TRACES, PublicTrace, local_file
from leankv.traces.describe import TraceFigures
from leankv.traces.download import Progress
from leankv.traces.measured import embedded_names
from leankv.traces.sizes import read_table


def known_traces() -> list[dict[str, Any]]:
    """Every named trace (JSON-able): name, about, licence, cite, url, sha256, where it is on this machine."""
    embedded = [_embedded(name) for name in embedded_names()]
    return [*embedded, *(_public(entry) for entry in PUBLIC_TRACES)]


def _embedded(name: str) -> dict[str, Any]:
    table = read_table(name)
    return {
        "name": name,
        "about": f"generated from figures of: {table.get('of', 'a trace')}",
        "licence": table.get("licence", "unknown"),
        "cite": table.get("citation", ""),
        "url": table.get("source", ""),
        "sha256": None,
        "checksum_from": "",
        "here": "built in",
    }


def _public(entry: PublicTrace) -> dict[str, Any]:
    try:
        here = str(local_file(entry))
    except InputError:
        here = "no"
    return {
        "name": entry.name,
        "about": entry.about,
        "licence": entry.licence,
        "cite": entry.cite,
        "url": entry.url,
        "sha256": entry.sha256,
        "checksum_from": entry.checksum_from,
        "here": here,
    }


def _console() -> Console:
    # Where the output is no terminal there is no width to fit, and wrapped cells would only be harder to search.
    return Console() if sys.stdout.isatty() else Console(width=160)


def print_known(entries: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "licence", "here", "checksum"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what")
    for entry in entries:
        checksum = f"{entry['sha256'][:8]}..." if entry["sha256"] else "unknown"
        checksum = "-" if entry["here"] == "built in" else checksum
        here = entry["here"] if entry["here"] in ("no", "built in") else "yes"
        table.add_row(entry["name"], entry["licence"], here, checksum, entry["about"])
    _console().print(table)
    print("\nGet one with: leankv traces download NAME. Any path or workload (poisson:rate=5) is a trace too.")


def print_figures(figures: TraceFigures, comparison: Mapping[str, Any] | None) -> None:
    """One row a figure; beside it that of the compared trace, and below the KS distances."""
    rows = figure_rows(figures.figures())
    table = Table("", figures.name, box=None, pad_edge=False)
    beside = None
    if comparison is not None:
        table.add_column(f"of {comparison['to']}")
        beside = dict(figure_rows(comparison["figures"]))
    for label, value in rows:
        table.add_row(label, value, *([] if beside is None else [beside.get(label, "-")]))
    _console().print(table)
    if comparison is not None:
        distances = ", ".join(f"{name} {value:.4f}" for name, value in comparison["ks"].items())
        print(f"\nKolmogorov-Smirnov distance (0 = same distribution, 1 = disjoint): {distances}")
    for warning in figures.warnings:
        print(f"warning: {warning}")


def figure_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of every figure, as printed."""
    rows = [
        ("requests", f"{figures['requests']:,}"),
        ("span", f"{figures['span_s']:,.1f} s"),
        ("rate", f"{figures['rate_per_s']:.4g} requests/s"),
        ("CV of gaps (Poisson: 1)", f"{figures['gap_cv']:.3g}"),
    ]
    for width, value in figures["dispersion"].items():
        rows.append((f"dispersion of counts in {width} (Poisson: 1)", "-" if value is None else f"{value:.3g}"))
    for role in ("prompt", "output"):
        lengths = figures[role]
        for figure in ("mean", "median", "p90", "p99", "max"):
            rows.append((f"{role} tokens, {figure}", f"{lengths[figure]:,.0f}"))
    rows.append(("rank correlation of prompt and output", f"{figures['rank_correlation']:.3f}"))
    hit_rate = figures["prefix_hit_rate"]
    shared = "no prefix hashes" if hit_rate is None else f"{hit_rate:.1%}"
    rows.append(("prompt tokens shared with earlier requests", shared))
    return rows


def print_written(figures: TraceFigures, path: Path) -> None:
    print(f"{path}: {figures.requests} requests over {figures.span_s:.1f} s ({figures.rate_per_s:.4g}/s)")
    for warning in figures.warnings:
        print(f"warning: {warning}")


def print_downloaded(entry: PublicTrace, path: Path, digest: str) -> None:
    verdict = f"as {entry.checksum_from} says" if entry.sha256 else "no checksum known to compare with"
    print(f"{path}: sha256 {digest} ({verdict}); licence {entry.licence}, cite {entry.cite}")


@contextmanager
def progress(name: str) -> Iterator[Progress | None]:
    """A bar on standard error while a file is fetched; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
