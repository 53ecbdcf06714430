"""Samples that a set of policies gets wrong though fp16 gets them right, from an evaluation."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from leankv.app.commands._outputs import require_place_for_file
from leankv.app.commands._parsing import parsed

if TYPE_CHECKING:
    from leankv.serving.negative_samples import Count, NegativeSample

ABOUT = """\
Negative samples: those that fp16 answers at least as well as it usually does, and on which every policy of a set stays
below (1 - theta) of its score. A mean can look fine while such samples exist.

  leankv evaluate --output-dir quality
  leankv negatives quality
  leankv negatives quality --policy leankv --policy kivi:bits=2 --theta 0.1 0.5 --show 3 --json negatives.json

Read from an evaluation's samples; nothing runs.
"""
Policies = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
THETAS = (0.05, 0.1, 0.2, 0.5)
WIDEST = 300


@dataclass(frozen=True)
class Negatives:
    quality: Annotated[Path, tyro.conf.Positional]
    """The folder that an evaluation wrote."""
    policy: Policies = ()
    """A policy of the set, repeatable. Default: all that were evaluated, beside fp16."""
    theta: tuple[float, ...] = THETAS
    """Shares of the baseline's score that a policy must lose for a sample to count."""
    benign: Literal["mean", "median"] = "mean"
    """What the baseline's score must reach on a sample, besides being above 0."""
    show: int = 0
    """Print so many of the samples, with both answers; --json holds them all."""
    json: Path | None = None
    """Write counts, and the samples of the smallest theta with all answers, to this file."""


def main(argv: Sequence[str]) -> int:
    """Run `leankv negatives`; raises InputError for bad input."""
    command = parsed(Negatives, "leankv negatives", ABOUT, argv)
    require_place_for_file(command.json)
    from leankv.serving.errors import InputError
    from leankv.serving.negative_samples import counts, negative_samples
    from leankv.serving.paired import BASELINE
    from leankv.serving.quality import load_quality

    if not command.theta:
        raise InputError("--theta: give at least one share, as 0.1")
    samples = load_quality(command.quality).samples
    policies = command.policy or tuple(name for name in samples["policy"].unique().to_pylist() if name != BASELINE)
    found = counts(samples, policies, sorted(command.theta), command.benign)
    negatives = negative_samples(samples, policies, min(command.theta), command.benign)
    _print_counts(found, sorted(command.theta), command.benign)
    for negative in negatives[: command.show]:
        _print_sample(negative)
    if command.json is not None:
        _write(command.json, found, negatives)
    return 0


def _print_counts(found: Sequence[Count], thetas: Sequence[float], benign: str) -> None:
    from rich.table import Table

    from leankv.app.commands._run_tables import wide_console

    reached = f"fp16 reaches its {benign} and more than 0"
    table = Table(title=f"negative samples: of those on which {reached} (benign), where the set stays below")
    for name in ("policies", "task", "samples", "benign", *(f"{100 * (1 - theta):g} % of fp16" for theta in thetas)):
        table.add_column(name, justify="left" if name in ("policies", "task") else "right")
    by_row: dict[tuple[tuple[str, ...], str], list[Count]] = {}
    for count in found:
        by_row.setdefault((count.policies, count.task), []).append(count)
    for (_, task), row in by_row.items():
        table.add_row(
            _set(row[0]), task, str(row[0].samples), str(row[0].benign), *(str(each.negative) for each in row)
        )
    console = wide_console()
    console.print(table)
    left_out = {task: row[0].left_out for (_, task), row in by_row.items()}
    for task, policies in left_out.items():
        if policies:
            console.print(f"{task}: not given to {', '.join(policies)}, so not asked of them together")


def _set(count: Count) -> str:
    if len(count.policies) == 1:
        return count.policies[0]
    given = len(count.policies) - len(count.left_out)
    return f"{given} of {len(count.policies)} together" if count.left_out else f"all {given} together"


def _print_sample(negative: NegativeSample) -> None:
    print(f"\n{negative.task} {negative.sample_id} ({negative.subject})")
    for label, text in (("question", negative.question), ("reference", negative.reference)):
        if text:
            print(f"  {label}: {_short(text)}")
    for name, answer in (("fp16", negative.baseline), *negative.answers.items()):
        print(f"  {name}: score {answer.score:.3g}" + (f": {_short(answer.answer)}" if answer.answer else ""))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDEST else f"{line[:WIDEST]} ..."


def _write(path: Path, found: Sequence[Count], negatives: Sequence[NegativeSample]) -> None:
    from leankv.serving.files import atomic_write

    content: dict[str, Any] = {
        "schema_version": 1,
        "counts": [asdict(count) for count in found],
        "samples": [asdict(negative) for negative in negatives],
    }
    with atomic_write(path) as beside:
        beside.write_text(json_module.dumps(content, indent=1) + "\n", encoding="utf-8")
