"""Traces: list the known ones, describe one, convert, download, generate, or measure a table of figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

from leankv.app.commands._parsing import parsed

if TYPE_CHECKING:
    from leankv.traces.trace import Trace

File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
Count = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Share = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]

DEFAULT_TRACE = "azure-conv-2023-like"
ABOUT = """\
Where requests come from.

A trace is named by a path (Azure, BurstGPT, Mooncake, ServeGen, Vidur lengths, or CSV/JSONL/Parquet with
--columns; plain or gzip, recognised by content), by a public name after a download, by the embedded name
azure-conv-2023-like, or by a synthetic workload such as gamma:rate=5,cv=2,n=10000.

  leankv traces list
  leankv traces describe azure-conv-2023-like
  leankv traces describe my.csv --columns arrival=t:ms,prompt=in,output=out
  leankv traces generate "mmpp:rate=8,burst=10,n=20000,prompt=lognormal:800:1.0,output=256" --output bursts.parquet
  leankv traces convert trace.jsonl.gz --rate-scale 2 --limit 5000 --output faster.csv
  leankv traces download mooncake-conversation
"""


@dataclass(frozen=True)
class Requests:
    """Which trace, and which of its requests."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="TRACE", help_behavior_hint="")] = None
    """Path, public name, embedded name or synthetic workload (the same as --trace)."""
    trace: Text = None
    """Path, public name, embedded name or synthetic workload; default azure-conv-2023-like."""
    columns: Text = None
    """For other files: arrival=NAME[:UNIT],prompt=NAME,output=NAME (units s, ms, us, ns, ps; or ISO dates)."""
    limit: Count = None
    """Only the first so many requests."""
    repeat: Count = None
    """Play the trace again and again up to so many requests."""
    window: Text = None
    """Only arrivals in START:END seconds, e.g. 600:1200; the window's start becomes time 0."""
    sample: Share = None
    """Keep each request with this probability."""
    max_prompt: Count = None
    """Cut longer prompts to so many tokens."""
    max_output: Count = None
    """Cut longer outputs to so many tokens."""
    spread: Literal["even", "random", "none"] = "even"
    """How Mooncake's requests are spread within a timestamp's tick."""
    arrivals: Text = None
    """Arrival process for length files, which have none: e.g. poisson:rate=5 or gamma:rate=5,cv=2."""
    seed: int = 0
    """Seed of everything drawn."""


@dataclass(frozen=True)
class Chosen(Requests):
    """Which trace, and what is done to it before anything else."""

    rate_scale: float = 1.0
    """Arrivals this many times as fast."""


@dataclass(frozen=True)
class List:
    """The embedded and public traces: what they are, licence, whether they are here."""

    json: File = None
    """Write the list to this file as JSON."""


@dataclass(frozen=True)
class Describe:
    """Rate, burstiness, lengths, correlation and prefix sharing of a trace; and how close it is to another."""

    chosen: Annotated[Chosen, tyro.conf.arg(name="")] = field(default_factory=Chosen)
    against: Text = None
    """Compare with this trace (KS distances); a generated trace is compared with its own figures anyway."""
    json: File = None
    """Write the figures to this file as JSON."""


@dataclass(frozen=True)
class Convert:
    """Write a trace as Parquet, CSV or JSONL (.gz as well) that reads back the same."""

    output: Path
    """File to write; its ending says the format."""
    chosen: Annotated[Chosen, tyro.conf.arg(name="")] = field(default_factory=Chosen)
    json: File = None
    """Write the figures of what was written to this file as JSON."""


@dataclass(frozen=True)
class Download:
    """Fetch a public trace, checked by its sha256 where that is known, into the trace folder."""

    name: Annotated[str, tyro.conf.Positional]
    """A name from `leankv traces list`."""
    output_dir: File = None
    """Folder to keep it in; default $LEANKV_TRACES, else leankv/traces in the user's cache folder."""
    json: File = None
    """Write path and checksum to this file as JSON."""


@dataclass(frozen=True)
class Generate:
    """Write a synthetic workload, e.g. gamma:rate=5,cv=2,n=10000,prompt=lognormal:800:1.0,output=zipf:1.2:2000.

    PROCESS:KNOB=VALUE,... with PROCESS poisson, gamma, weibull, mmpp, even or closed (all at time 0). Knobs: n or
    seconds, rate, cv (gamma, weibull), burst, burst_s, burst_share (mmpp), diurnal and period_s, prompt and output
    (512, lognormal:MEDIAN:SIGMA, zipf:EXPONENT:MAX, table:NAME), corr (rank correlation), seed.
    """

    workload: Annotated[str, tyro.conf.Positional]
    """The workload, or an embedded name."""
    output: Path
    """File to write; its ending says the format (.parquet, .csv, .jsonl, .gz)."""
    seed: int = 0
    """Seed, unless the workload names one."""
    json: File = None
    """Write the figures of what was written to this file as JSON."""


@dataclass(frozen=True)
class Measure:
    """Measure a table of figures from a trace; a trace like it is generated by `leankv traces describe TABLE.json`."""

    output: Path
    """The table to write, .json."""
    like: str
    """Name of the traces generated from it."""
    chosen: Annotated[Chosen, tyro.conf.arg(name="")] = field(default_factory=Chosen)
    of: str = ""
    """What was measured, in words."""
    source: str = ""
    """Where the trace is published."""
    licence: str = ""
    """Licence of the trace."""
    citation: str = ""
    """What to cite."""


Command = List | Describe | Convert | Download | Generate | Measure


def main(argv: list[str]) -> int:
    """Run one `leankv traces` command; raises InputError for bad input."""
    command = parsed(cast("type[Command]", Command), "leankv traces", ABOUT, argv)
    _RUN[type(command)](command)
    return 0


def opened(chosen: Chosen) -> Trace:
    """The trace that the flags name, after their transforms.

    Raises:
        InputError: both or wrong names, unreadable files, flags out of range.
    """
    from leankv.traces.transforms import rate_scale

    return rate_scale(chosen_requests(chosen), chosen.rate_scale)


def chosen_requests(chosen: Requests) -> Trace:
    """The requests that the flags name, at the trace's own rate. Raises InputError as `opened` does."""
    from leankv.serving.errors import InputError
    from leankv.traces import transforms
    from leankv.traces.generic import parse_columns
    from leankv.traces.open import open_trace
    from leankv.traces.synthetic import parse_arrivals

    if chosen.name and chosen.trace and chosen.name != chosen.trace:
        raise InputError(f"two traces named ({chosen.name} and --trace {chosen.trace}); name one")
    trace = open_trace(
        chosen.name or chosen.trace or DEFAULT_TRACE,
        columns=parse_columns(chosen.columns) if chosen.columns else None,
        seed=chosen.seed,
        spread=chosen.spread,
        arrivals=parse_arrivals(chosen.arrivals) if chosen.arrivals else None,
    )
    if chosen.window:
        trace = transforms.window(trace, *_window(chosen.window))
    if chosen.sample is not None:
        trace = transforms.sample(trace, chosen.sample, chosen.seed)
    if chosen.repeat is not None:
        trace = transforms.repeat(trace, chosen.repeat)
    if chosen.limit is not None:
        trace = transforms.limit(trace, chosen.limit)
    return transforms.cap_lengths(trace, chosen.max_prompt, chosen.max_output)


def _window(text: str) -> tuple[float, float]:
    from leankv.serving.errors import InputError

    start, colon, end = text.partition(":")
    try:
        return float(start or 0), float(end) if colon and end else float("inf")
    except ValueError:
        raise InputError(f"--window {text} cannot be read; write START:END in seconds, e.g. 600:1200") from None


def _list(command: List) -> None:
    from leankv.app.commands import _trace_tables as tables

    entries = tables.known_traces()
    tables.print_known(entries)
    _write_json(command.json, {"traces": entries})


def _describe(command: Describe) -> None:
    from leankv.app.commands import _trace_tables as tables
    from leankv.traces.compare import compare, compare_to_figures
    from leankv.traces.describe import describe
    from leankv.traces.open import open_trace
    from leankv.traces.sizes import read_table

    trace = opened(command.chosen)
    comparison: Mapping[str, Any] | None = None
    if command.against is not None:
        comparison = compare(trace, open_trace(command.against, seed=command.chosen.seed))
    elif (table := trace.provenance.get("table")) and not trace.provenance.get("steps"):
        comparison = compare_to_figures(trace, read_table(table))
    figures = describe(trace)
    tables.print_figures(figures, comparison)
    _write_json(command.json, {**figures.figures(), "provenance": dict(trace.provenance), "comparison": comparison})


def _convert(command: Convert) -> None:
    _write(opened(command.chosen), command.output, command.json)


def _generate(command: Generate) -> None:
    from leankv.traces.open import open_trace

    _write(open_trace(command.workload, seed=command.seed), command.output, command.json)


def _write(trace: Trace, output: Path, report: Path | None) -> None:
    from leankv.app.commands import _trace_tables as tables
    from leankv.traces.describe import describe
    from leankv.traces.write import write_trace

    write_trace(trace, output)
    figures = describe(trace)
    tables.print_written(figures, output)
    _write_json(report, {**figures.figures(), "file": str(output)})


def _download(command: Download) -> None:
    from leankv.app.commands import _trace_tables as tables
    from leankv.traces.catalogue import public_trace
    from leankv.traces.download import download

    entry = public_trace(command.name)
    with tables.progress(entry.name) as report:
        path, digest = download(entry, command.output_dir, report)
    tables.print_downloaded(entry, path, digest)
    _write_json(command.json, {"name": entry.name, "file": str(path), "sha256": digest})


def _measure(command: Measure) -> None:
    from leankv.traces.measured import measure

    trace = opened(command.chosen)
    keys = ("of", "source", "licence", "citation")
    origin = {key: getattr(command, key) for key in keys if getattr(command, key)}
    _write_json(command.output, measure(trace, command.like, origin))
    print(f"{command.output}: figures of {len(trace)} requests of {trace.name}")


def _write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    from leankv.serving.files import atomic_write

    if path is None:
        return
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(value) + "\n", encoding="utf-8")


_RUN: dict[type, Any] = {
    List: _list,
    Describe: _describe,
    Convert: _convert,
    Download: _download,
    Generate: _generate,
    Measure: _measure,
}
