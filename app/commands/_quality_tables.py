"""What policies cost in answers, as tables in the terminal: a row a policy."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from leankv.serving.negative_samples import THETA, counts
from leankv.serving.paired import BASELINE
from leankv.serving.quality_amounts import preset_words, window_words
from leankv.serving.quality_scores import Interval, Score, score_all

if TYPE_CHECKING:
    from rich.console import Console

    from leankv.serving.quality import PolicyQuality, Quality

WIDTH = 210
Cell = Callable[["PolicyQuality"], str]
NONE = "-"
PAIRED = (
    ("perplexity", "perplexity", "{:+.2%}"),
    ("needles", "needle", "{:+.0%}"),
    ("choices", "choice", "{:+.0%}"),
    ("answers", "answers", "{:+.0%}"),
)
"""Columns of differences: title, metric, form."""


def print_quality(quality: Quality) -> None:
    """Two tables on standard output: text and compression, then tasks, lengths and negative samples."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(_heading(quality))
    for columns in (_text_columns(), (*_task_columns(), ("negative", _negatives(quality)))):
        _print(console, quality, columns)
    console.print(
        "\\[ ]: 95 %, of shares Wilson's, else a bootstrap over samples, expanded where they are few; differences are "
        "to fp16 on the same samples. Lengths are of the prompts whose fp16 answer was not cut off; the others are "
        "left out, and what was cut off is longer in truth, so growth is understated. Ratios: FP16 bytes over "
        "payload bytes (nominal) and over bytes of pages held (physical), of the windows, "
        f"{quality.bytes_of}. Negative: of the policy's samples that fp16 scores above 0 and at least as well as "
        f"usual, those on which the policy is more than {THETA:.0%} worse than fp16."
    )


def print_against(quality: Quality, against: str) -> None:
    """A table on standard output: each policy's differences to `against` on the samples that both have."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table("policy", box=None, pad_edge=False, title=f"differences to {against} on the same samples")
    for title in ("physical x", *(title for title, _, _ in PAIRED)):
        table.add_column(title, justify="right")
    for name, policy in quality.policies.items():
        scores = score_all(quality.samples, name, against)
        cells = (_difference_words(scores.get(metric), form) for _, metric, form in PAIRED)
        table.add_row(name, f"{policy.physical_ratio:.2f}", *cells)
    console.print(table)


def _heading(quality: Quality) -> str:
    about = f"{quality.model.name} on {quality.device['name']}, {quality.dtype}"
    windows = window_words(quality.settings, [each.scores for each in quality.policies.values()])
    return f"{about}, preset {preset_words(quality.preset, quality.settings)}{f'; {windows}' if windows else ''}"


def _print(console: Console, quality: Quality, columns: tuple[tuple[str, Cell], ...]) -> None:
    from rich.table import Table

    shown = [(title, cell) for title, cell in columns if any(cell(each) != NONE for each in quality.policies.values())]
    if not shown:
        return
    table = Table("policy", box=None, pad_edge=False)
    for title, _ in shown:
        table.add_column(title, justify="right")
    for name, policy in quality.policies.items():
        table.add_row(name, *(cell(policy) for _, cell in shown))
    console.print(table)
    console.print()


def _text_columns() -> tuple[tuple[str, Cell], ...]:
    return (
        ("nominal x", lambda policy: f"{policy.nominal_ratio:.2f}"),
        ("physical x", lambda policy: f"{policy.physical_ratio:.2f}"),
        ("perplexity", _value("perplexity", "{:,.2f}")),
        ("", _interval("perplexity", "{:,.2f}")),
        ("windows", lambda policy: str(found.n) if (found := policy.scores.get("perplexity")) else NONE),
        ("to fp16", _difference("perplexity", "{:+.2%}")),
        ("agreement", _value("agreement", "{:.1%}")),
        ("KL, nats", _value("kl_nats", "{:.4f}")),
    )


def _task_columns() -> tuple[tuple[str, Cell], ...]:
    return (
        ("needle", _value("needle", "{:.0%}")),
        ("", _interval("needle", "{:.0%}")),
        ("nats", _value("needle_log_probability_nats", "{:.2f}")),
        ("choice", _value("choice", "{:.0%}")),
        ("nats", _value("choice_log_probability_nats", "{:.2f}")),
        ("agreement", _value("choice_agreement", "{:.0%}")),
        ("answers", _value("answers", "{:.0%}")),
        ("", _interval("answers", "{:.0%}")),
        ("mean tokens", _lengths("mean_tokens", "{:.1f}")),
        ("grown by half", _grown),
        ("cut off", _lengths("unfinished", "{:.0%}")),
        (
            "left out",
            lambda policy: str(found.left_out) if (found := policy.output_lengths) and found.left_out else NONE,
        ),
    )


def _value(metric: str, form: str) -> Cell:
    return lambda policy: form.format(found.value) if (found := policy.scores.get(metric)) else NONE


def _interval(metric: str, form: str) -> Cell:
    return lambda policy: _bounds(found.interval, form) if (found := policy.scores.get(metric)) else NONE


def _difference(metric: str, form: str) -> Cell:
    return lambda policy: _difference_words(policy.scores.get(metric), form)


def _difference_words(found: Score | None, form: str) -> str:
    if found is None or found.difference is None:
        return NONE
    return f"{form.format(found.difference)} {_bounds(found.difference_interval, form)}"


def _lengths(name: str, form: str) -> Cell:
    return lambda policy: NONE if policy.output_lengths is None else form.format(getattr(policy.output_lengths, name))


def _grown(policy: PolicyQuality) -> str:
    found = policy.output_lengths
    if found is None:
        return NONE
    return f"{found.grown_by_half:.0%} of {found.n} {_bounds(found.grown_by_half_interval, '{:.0%}')}"


def _negatives(quality: Quality) -> Cell:
    """Negative samples of each policy alone, over all tasks that it was given, of those benign."""
    others = [name for name in quality.policies if name != BASELINE]
    negative, benign = Counter[str](), Counter[str]()
    for count in counts(quality.samples, others, [THETA]) if others else ():
        if len(count.policies) == 1:
            negative[count.policies[0]] += count.negative
            benign[count.policies[0]] += count.benign

    def shown(policy: PolicyQuality) -> str:
        return f"{negative[policy.policy]} of {benign[policy.policy]}" if policy.policy in benign else NONE

    return shown


def _bounds(interval: Interval | None, form: str) -> str:
    return NONE if interval is None else f"\\[{form.format(interval[0])}, {form.format(interval[1])}]"
