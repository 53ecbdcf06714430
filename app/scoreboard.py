"""The figures of a comparison as a table, a row a policy, and as headline cards against a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leankv.app.figures.style import duration, number
from leankv.app.narrative import Summary, winner
from leankv.simulator.sweep import attainment

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.app.answers import Answers

# column: key of the summary
_COLUMNS = {
    "Goodput (req/s)": "request_goodput",
    "TTFT p99 (ms)": "p99_ttft_ms",
    "TPOT p99 (ms)": "p99_tpot_ms",
    "E2E p99 (ms)": "p99_e2el_ms",
    "Peak KV (GiB)": "peak_kv_gib",
    "Compression, nominal": "nominal_ratio",
    "Compression, physical": "physical_ratio",
    "$ per M output tokens": "usd_per_million_output_tokens",
    "Limited by": "limited_by",
    "Stable": "stable",
    "Preemptions": "preemptions",
    "Rejected": "rejected",
    "Throughput (req/s)": "request_throughput",
    "Output (tok/s)": "output_throughput",
    "TTFT p50 (ms)": "median_ttft_ms",
    "TPOT p50 (ms)": "median_tpot_ms",
    "ITL p99 (ms)": "p99_itl_ms",
    "E2E p50 (ms)": "median_e2el_ms",
    "KV pool (GiB)": "kv_pool_gib",
    "Prefix caching": "prefix_caching",
    "Prefix hits": "prefix_hit_rate",
    "Step times": "step_time_source",
    "Retention": "retention_source",
}

LOSS = "Perplexity vs fp16 (%)"

HELP = {
    LOSS: "Measured through the policy's own cache on this model; 0 loses nothing. Empty: not measured.",
    "Needles (%)": "Sentences hidden in long texts that are found again, measured.",
    "Answers (%)": "Generated answers that are right, measured.",
    "Goodput (req/s)": "Requests a second that keep every service level.",
    "In time (%)": "Share of all requests that keep every service level.",
    "ITL p99 (ms)": "Inter-token latency: each gap between two tokens of one request.",
    "Compression, nominal": "Payload bits only, as papers count: uncompressed over compressed.",
    "Compression, physical": "Whole pages: scales, scores, positions, slack and half-empty pages too.",
    "$ per M output tokens": "List price of the GPUs over the tokens generated; the price is an assumption.",
    "Prefix hits": "Share of prompt tokens found in the prefix cache, so not computed again.",
    "Stable": "Whether the queue stops growing; if not, latencies measure the length of the trace.",
    "Retention": "Where the share of tokens that the policy keeps comes from; exact: it follows from the rule.",
    "Step times": "Where the duration of one engine step comes from.",
}

SAME = "same as"
FORMATS = {
    "In time (%)": "%.1f",
    LOSS: "%+.2f",
    "Needles (%)": "%.0f",
    "Answers (%)": "%.0f",
    "Goodput (req/s)": "%.2f",
    "Throughput (req/s)": "%.2f",
    "Output (tok/s)": "%,.0f",
    "Peak KV (GiB)": "%.2f",
    "KV pool (GiB)": "%.1f",
    "Prefix hits": "percent",
    "Compression, nominal": "%.2fx",
    "Compression, physical": "%.2fx",
    "$ per M output tokens": "$%.3f",
    **{f"{metric} {which} (ms)": "%,.0f" for metric in ("TTFT", "E2E") for which in ("p50", "p99")},
    **{f"{metric} (ms)": "%.1f" for metric in ("TPOT p50", "TPOT p99", "ITL p99")},
}


def table(summaries: Mapping[str, Summary], answers: Answers | None = None) -> pa.Table:
    """One row a policy, best goodput first among the stable; every figure with its unit.

    answers: what was measured of the policies' answers; without it the table has no such column.
    """
    import pyarrow as pa

    order = sorted(
        summaries, key=lambda policy: (not summaries[policy]["stable"], -summaries[policy]["request_goodput"])
    )
    return pa.Table.from_pylist([_row(policy, summaries[policy], answers) for policy in order])


def _row(policy: str, summary: Summary, answers: Answers | None) -> dict[str, Any]:
    figures = {name: summary.get(key) for name, key in _COLUMNS.items()}
    quality = {} if answers is None else _quality(policy, answers)
    return {"Policy": policy, "In time (%)": 100 * attainment(summary), **quality, **figures}


def _quality(policy: str, answers: Answers) -> dict[str, float | None]:
    """What was measured of the policy's answers; None where it was not."""
    loss = answers.loss(policy)
    needles, right = answers.value(policy, "needle"), answers.value(policy, "answers")
    return {
        LOSS: None if loss is None else 100 * loss[0],
        "Needles (%)": None if needles is None else 100 * needles,
        "Answers (%)": None if right is None else 100 * right,
    }


@dataclass(frozen=True)
class Card:
    """One headline figure; `delta`: its change in words, `better`: whether "more" or "less" of it is, or "none"."""

    label: str
    value: str
    help: str
    delta: str | None = None
    better: str = "none"


def cards(summaries: Mapping[str, Summary], baseline: str = "fp16") -> list[Card]:
    """The winner's headline figures, each with its change against the baseline where that is another policy."""
    best = winner(summaries)
    ours = summaries[best]
    theirs = summaries[baseline] if baseline in summaries and baseline != best else None

    def card(label: str, key: str, value: str, better: str, told: str) -> Card:
        change = _change(ours[key], theirs[key]) if theirs else None
        if change is None:
            return Card(label, value, told)
        return Card(label, value, told, f"{change} {baseline}", "none" if change == SAME else better)

    goodput, ttft, tpot = f"{number(ours['request_goodput'])}/s", _time(ours["p99_ttft_ms"]), _time(ours["p99_tpot_ms"])
    memory, cost = f"{number(ours['peak_kv_gib'])} GiB", f"${ours['usd_per_million_output_tokens']:.3f}"
    return [
        Card("Best policy", best, "Most requests in time; ties go by latency.", f"{attainment(ours):.0%} in time"),
        card("Goodput", "request_goodput", goodput, "more", HELP["Goodput (req/s)"]),
        card("TTFT p99", "p99_ttft_ms", ttft, "less", "99 of 100 requests get their first token within this."),
        card("TPOT p99", "p99_tpot_ms", tpot, "less", "99 of 100 requests get their tokens at least this fast."),
        card("Peak KV memory", "peak_kv_gib", memory, "less", "On each GPU, at the busiest."),
        card("$ per M tokens", "usd_per_million_output_tokens", cost, "less", HELP["$ per M output tokens"]),
    ]


def _time(milliseconds: float | None) -> str:
    return duration(float("nan") if milliseconds is None else milliseconds)


def _change(ours: float | None, theirs: float | None) -> str | None:
    if not ours or not theirs:
        return None
    change = ours / theirs - 1
    if abs(change) < 0.005:
        return SAME
    return f"{change:+.0%} vs" if change < 9.995 else f"+{ours / theirs:.0f}x vs"
