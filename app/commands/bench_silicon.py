"""Simulated TTFT and TPOT beside measured serving: Qwen3-32B on H100 under vLLM, closed loop, nothing fitted."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leankv.app.commands._parsing import parsed
from leankv.serving.errors import InputError

if TYPE_CHECKING:
    from leankv.simulator.silicon_bench import Errors, Latencies, ServingPoint

ABOUT = """\
How close the simulator comes to measured serving, row by row.

Simulates the 90 bf16 rows of Qwen3-32B on H100 under vLLM that come with aiconfigurator-core, as the closed loops they
were, and prints the median absolute errors of TTFT and TPOT beside aiconfigurator's own, run live on the same rows.
Needs the extra `silicon`. Takes about a minute.

  leankv bench silicon
  leankv bench silicon --rows --json silicon.json
"""


@dataclass(frozen=True)
class Options:
    step_time: Literal["silicon", "roofline"] = "silicon"
    """Source of the step times: measured kernel tables, or the specifications alone."""
    rows: bool = False
    """Print every row, not only the errors by group."""
    max_num_batched_tokens: int | None = None
    """Tokens a step may compute; default prompt + 1,500 + concurrency, as the tools that took the rows set it."""
    limit: int | None = None
    """Only the first so many rows."""
    json: Path | None = None
    """Write conditions, rows and errors to this file as JSON."""


def main(argv: Sequence[str]) -> int:
    options = parsed(Options, "leankv bench silicon", ABOUT, argv)
    for flag, value in (("--limit", options.limit), ("--max-num-batched-tokens", options.max_num_batched_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{flag} is {value}: give at least 1")
    from leankv.simulator.silicon_bench import measured_points

    points = measured_points()[: options.limit]
    predictions = _simulated(points, options)
    peer, refusal = _peer(points)
    if options.rows:
        _print_rows(points, predictions, peer)
    _print_errors(points, predictions, peer, options.step_time)
    if refusal:
        print(f"aiconfigurator's own estimate is missing: {refusal}")
    if options.json is not None:
        _write(options.json, _report(points, predictions, peer, options.step_time))
    return 0


def _simulated(points: Sequence[ServingPoint], options: Options) -> list[Latencies]:
    from rich.progress import track

    from leankv.simulator.silicon_bench import simulated

    shown = track(points, description="simulating", disable=not sys.stderr.isatty(), transient=True)
    return [simulated(point, options.step_time, options.max_num_batched_tokens) for point in shown]


def _peer(points: Sequence[ServingPoint]) -> tuple[list[Latencies] | None, str]:
    from leankv.simulator.silicon_peer import peer_predictions

    try:
        return peer_predictions(points), ""
    except InputError as error:
        return None, str(error)


def _report(
    points: Sequence[ServingPoint],
    predictions: Sequence[Latencies],
    peer: Sequence[Latencies] | None,
    step_time: str,
) -> dict[str, Any]:
    from leankv.simulator.silicon_bench import CONDITIONS, errors, errors_by_group

    def described(guesses: Sequence[Latencies]) -> dict[str, Any]:
        groups = errors_by_group(points, guesses)
        by_group = {name: {str(value): asdict(found) for value, found in of.items()} for name, of in groups.items()}
        return {"median_absolute_error": asdict(errors(points, guesses)), "by": by_group}

    rows = [
        {
            "measured": asdict(point),
            "simulated": asdict(guess),
            "aiconfigurator": asdict(peer[index]) if peer else None,
        }
        for index, (point, guess) in enumerate(zip(points, predictions, strict=True))
    ]
    return {
        "conditions": {**CONDITIONS, "step_time": step_time},
        "simulated": described(predictions),
        "aiconfigurator": described(peer) if peer else None,
        "rows": rows,
    }


def _print_rows(
    points: Sequence[ServingPoint], predictions: Sequence[Latencies], peer: Sequence[Latencies] | None
) -> None:
    print(
        f"{'ISL':>5} {'OSL':>5} {'conc':>5} {'TP':>3} | {'TTFT ms':>9} {'simulated':>9} {'error':>7} {'peer':>7}"
        f" | {'TPOT ms':>8} {'simulated':>9} {'error':>7} {'peer':>7}"
    )
    for index, (point, guess) in enumerate(zip(points, predictions, strict=True)):
        other = peer[index] if peer else None
        print(
            f"{point.isl:5} {point.osl:5} {point.concurrency:5} {point.tp:3}"
            f" | {point.ttft_ms:9.1f} {guess.ttft_ms:9.1f} {guess.ttft_ms / point.ttft_ms - 1:+7.1%}"
            f" {_signed(other.ttft_ms / point.ttft_ms - 1 if other else None)}"
            f" | {point.tpot_ms:8.2f} {guess.tpot_ms:9.2f} {guess.tpot_ms / point.tpot_ms - 1:+7.1%}"
            f" {_signed(other.tpot_ms / point.tpot_ms - 1 if other else None)}"
        )
    print()


def _signed(error: float | None) -> str:
    return f"{'-':>7}" if error is None else f"{error:+7.1%}"


def _print_errors(
    points: Sequence[ServingPoint],
    predictions: Sequence[Latencies],
    peer: Sequence[Latencies] | None,
    step_time: str,
) -> None:
    from leankv.simulator.silicon_bench import CONDITIONS, errors, errors_by_group

    print(f"{CONDITIONS['model']} on {CONDITIONS['device']}, {CONDITIONS['engine']}: {len(points)} measured rows.")
    print(f"Median absolute error, step times from {step_time}, nothing fitted on these rows:\n")
    print(f"{'':16} {'rows':>5} | {'TTFT':>7} {'peer':>7} | {'TPOT':>7} {'peer':>7}")
    mine = errors_by_group(points, predictions)
    theirs = errors_by_group(points, peer) if peer else None
    for name, groups in mine.items():
        for value, found in groups.items():
            _print_line(f"{name} {value}", found, theirs[name][value] if theirs else None)
    _print_line("all", errors(points, predictions), errors(points, peer) if peer else None)
    print("\npeer: aiconfigurator's estimate of the same rows, run now from aiconfigurator-core.")


def _print_line(label: str, mine: Errors, theirs: Errors | None) -> None:
    ttft, tpot = (f"{theirs.ttft:7.1%}", f"{theirs.tpot:7.1%}") if theirs else (f"{'-':>7}", f"{'-':>7}")
    print(f"{label:16} {mine.rows:5} | {mine.ttft:7.1%} {ttft} | {mine.tpot:7.1%} {tpot}")


def _write(path: Path, report: Mapping[str, Any]) -> None:
    from leankv.serving.files import atomic_write

    with atomic_write(path) as scratch:
        scratch.write_text(json_module.dumps(report, indent=2) + "\n")
    print(f"wrote {path}")
