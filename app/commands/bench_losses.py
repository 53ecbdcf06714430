"""Published reports of compression that lost: the predicted ratio beside the reported one, misses counted."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from leankv.app.commands._parsing import parsed

if TYPE_CHECKING:
    from leankv.simulator.loss_bench import Outcome

ABOUT = """\
Does the simulator know when compressing the KV cache costs more than it saves?

Runs the setups of published reports (vLLM pull requests and issues, arXiv 2503.24000) and prints the ratio it predicts
beside the reported one. The cost of reading each quantized format was fixed from kernel sources before (roofline step
times); nothing is fitted on the reports. Takes some seconds.

  leankv bench losses
  leankv bench losses --json losses.json
"""


@dataclass(frozen=True)
class Options:
    json: Path | None = None
    """Write every claim, its reported and its predicted ratio to this file as JSON."""


def main(argv: Sequence[str]) -> int:
    options = parsed(Options, "leankv bench losses", ABOUT, argv)
    found = _run()
    for _, of_report in groupby(found, key=lambda outcome: outcome.report.title):
        _print_report(list(of_report))
    agreeing = sum(outcome.agrees for outcome in found)
    print(f"{agreeing} of {len(found)} claims predicted in the reported direction, {len(found) - agreeing} missed.")
    if options.json is not None:
        _write(options.json, found)
    return 0


def _run() -> list[Outcome]:
    from rich.progress import Progress

    from leankv.simulator.loss_bench import outcomes

    with Progress(disable=not sys.stderr.isatty(), transient=True) as shown:
        task = shown.add_task("simulating", total=1.0)
        return outcomes(lambda share: shown.update(task, completed=share))


def _print_report(found: Sequence[Outcome]) -> None:
    report = found[0].report
    print(f"{report.title} ({report.source})")
    for outcome in found:
        verdict = "same direction" if outcome.agrees else "MISSED"
        print(
            f"  {outcome.claim.label:26} reported x{outcome.claim.reported:5.2f}"
            f"   predicted x{outcome.predicted:6.3f}   {verdict}"
        )
    for label in report.unmodelled:
        print(f"  not predicted: {label}")
    for why in dict.fromkeys(outcome.claim.why for outcome in found):
        print(fill(why, width=116, initial_indent="  left out: ", subsequent_indent="    "))
    print()


def _write(path: Path, found: Sequence[Outcome]) -> None:
    from leankv.serving.files import atomic_write

    with atomic_write(path) as scratch:
        scratch.write_text(json_module.dumps({"claims": [outcome.as_dict() for outcome in found]}, indent=2) + "\n")
    print(f"wrote {path}")
