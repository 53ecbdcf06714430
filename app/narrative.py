"""The comparison in plain words: which policy wins, by how much, what limits it, and at which rate the order flips.

Pure functions of the runs' summaries and of the rate sweep, so that every claim on the page can be tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leankv.app.figures.style import duration, number
from leankv.app.rates import ATTAINMENT, TIE, flips, knee, leader, leaders, policies_of, rows_of
from leankv.simulator.sweep import attainment

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.traces.describe import TraceFigures

Summary = Mapping[str, Any]

LIMITS = {
    "compute": "compute (the device's arithmetic)",
    "memory bandwidth": "memory bandwidth (reading weights and KV cache)",
    "KV capacity": "KV capacity (memory for the cache runs out)",
    "batch slots": "batch slots (the most requests that may run at once)",
    "arrivals": "arrivals (the device has time to spare)",
    "concurrency": "concurrency (clients send no more at once)",
}


def winner(summaries: Mapping[str, Summary]) -> str:
    """The policy with the most goodput; within a tie, the lowest mean end-to-end latency; unstable runs come last."""
    stable = {policy: summary for policy, summary in summaries.items() if summary["stable"]}
    rows = [
        {"policy": policy, "goodput_rps": summary["request_goodput"], "mean_e2el_ms": summary["mean_e2el_ms"]}
        for policy, summary in (stable or summaries).items()
    ]
    return leader(rows)


def contest(summaries: Mapping[str, Summary], baseline: str = "fp16") -> tuple[str, str] | None:
    """The winner and whom it is held against: the baseline, or the runner-up where the baseline wins or is absent."""
    if len(summaries) < 2:
        return None
    best = winner(summaries)
    if baseline in summaries and baseline != best:
        return best, baseline
    return best, winner({policy: summary for policy, summary in summaries.items() if policy != best})


def verdict(summaries: Mapping[str, Summary], baseline: str = "fp16", gap: tuple[float, float] | None = None) -> str:
    """A few sentences (Markdown) on the comparison at the page's rate.

    Parameters
    ----------
    summaries: policy -> summary of its run
    gap: 95 % interval of the share in time of the winner less that of the policy it is held against; None where unknown
    """
    pair = contest(summaries, baseline)
    if pair is None:
        return _alone(*next(iter(summaries.items())))
    best, against = pair
    lead = _lead(best, summaries[best], against, summaries[against], gap)
    return " ".join(part for part in (lead, _limit(summaries[best]), _close(summaries, best, against)) if part)


def _alone(policy: str, summary: Summary) -> str:
    served = f"**{policy}** serves {number(summary['request_goodput'])} requests/s within the SLO"
    return f"{served} ({_attainment(summary)} of all requests). {_limit(summary)}"


def _lead(best: str, ours: Summary, against: str, theirs: Summary, gap: tuple[float, float] | None) -> str:
    if ours["request_goodput"] == 0:
        return f"**No policy meets the SLO** for any request; **{best}** is the fastest of them."
    serves = f"**{best} wins**: {number(ours['request_goodput'])} requests/s within the SLO"
    if theirs["request_goodput"] == 0:
        return f"{serves} ({_attainment(ours)} of all), while {against} serves none in time."
    gain = ours["request_goodput"] / theirs["request_goodput"] - 1
    if gain > TIE:
        more = f"{gain:.0%} more than" if gain < 1 else f"{1 + gain:.1f} times that of"
        return f"{serves}, {more} {against} ({_shares(ours, theirs, gap)})."
    if not theirs["stable"]:
        return f"{serves} ({_attainment(ours)} of all), and keeps it up; the queue of {against} grows without end."
    return _latency_lead(best, ours, against, theirs)


def _shares(ours: Summary, theirs: Summary, gap: tuple[float, float] | None) -> str:
    """Both shares in time, and how sure the gap between them is."""
    shares = f"{_attainment(ours)} of all requests against {_attainment(theirs)}"
    if gap is None:
        return shares
    low, high = (100 * edge for edge in gap)
    if low <= 0 <= high:
        return f"{shares}; the gap may be chance: {low:.1f} to {high:+.1f} points"
    return f"{shares}; {low:.1f} to {high:.1f} points apart with 95% confidence"


def _latency_lead(best: str, ours: Summary, against: str, theirs: Summary) -> str:
    tie = f"{best} and {against} serve the same within the SLO ({_attainment(ours)} against {_attainment(theirs)})"
    faster = 1 - ours["mean_e2el_ms"] / theirs["mean_e2el_ms"]
    if abs(faster) < 0.005:
        return f"**A tie**: {tie} and equally fast."
    return (
        f"**{best} is {'ahead by latency' if faster > 0 else 'ahead by a hair of goodput'}**: {tie}; "
        f"a request takes {duration(ours['mean_e2el_ms'])} on average, {abs(faster):.0%} "
        f"{'less' if faster > 0 else 'more'} than with {against}."
    )


def _attainment(summary: Summary) -> str:
    return f"{attainment(summary):.0%}"


def _close(summaries: Mapping[str, Summary], best: str, against: str) -> str:
    """The other policies whose goodput is all but the best one's."""
    least = summaries[best]["request_goodput"] * (1 - TIE)
    near = [
        policy
        for policy, summary in summaries.items()
        if policy not in (best, against) and summary["stable"] and summary["request_goodput"] >= least > 0
    ]
    return f"{_listed(near)} {'comes' if len(near) == 1 else 'come'} within {TIE:.0%} of it." if near else ""


def _limit(summary: Summary) -> str:
    return f"It is limited by {LIMITS.get(summary['limited_by'], summary['limited_by'])}."


def warnings(summaries: Mapping[str, Summary]) -> list[str]:
    """What a reader must know before believing the figures, one line each."""
    said = []
    unstable = [policy for policy, summary in summaries.items() if not summary["stable"]]
    if unstable:
        one = len(unstable) == 1
        said.append(
            f"{_listed(unstable)} {'is' if one else 'are'} unstable here: the queue keeps growing, so "
            f"{'its' if one else 'their'} latencies measure the length of the trace. Lower the rate to compare them."
        )
    alone = [policy for policy, summary in summaries.items() if "not possible" in summary.get("prefix_caching", "")]
    if alone:
        said.append(f"{_listed(alone)} cannot share prefixes: every prompt is computed and held in full.")
    for policy, summary in summaries.items():
        if summary["rejected"]:
            said.append(
                f"{policy} rejected {summary['rejected']:,} of {summary['rejected'] + summary['completed']:,} requests "
                "(longer than the model's context or than the KV memory); they count as out of SLO."
            )
    return said


CALM_CV, BURSTY_CV = 0.9, 1.2  # of the gaps; a Poisson stream has 1


def traffic(found: TraceFigures) -> str:
    """What a trace asks of an engine, in two sentences (Markdown)."""
    pace = "as irregular as chance"
    if found.gap_cv > BURSTY_CV:
        pace = f"in bursts (gaps vary {found.gap_cv:.1f} times as much as chance)"
    elif found.gap_cv < CALM_CV:
        pace = "more evenly than chance"
    share = found.prompt.mean / (found.prompt.mean + found.output.mean)
    weight = f"prompts are {share:.0%} of all tokens" if share >= 0.5 else f"outputs are {1 - share:.0%} of all tokens"
    load = found.rate_per_s * (found.prompt.mean + found.output.mean)
    lead = f"**{number(found.rate_per_s)} requests/s arrive {pace}**, {number(load)} tokens/s in all; {weight}."
    longest = f"One in a hundred prompts is longer than {found.prompt.p99:,.0f} tokens"
    return f"{lead} {longest}, one in a hundred outputs longer than {found.output.p99:,.0f}."


STEP_TIMES = {
    "roofline": "projected from the spec sheets of GPU and model",
    "silicon": "from kernels measured on the GPU",
    "profile": "measured by this project's engine on this device and model",
}


def badges(summaries: Mapping[str, Summary], answers: bool | None = None) -> str:
    """Which sources the figures have, as badges (Markdown): what is projected and what is measured, at a glance.

    answers: whether the winner's were measured; None says nothing of them.
    """
    names = sorted({summary.get("step_time_source", "live") for summary in summaries.values()})
    said = [
        f":{_BADGES.get(name.partition(' ')[0], 'gray')}-badge[:material/speed: step times: {name}]" for name in names
    ]
    kept = sorted({summary.get("retention_source", "exact") for summary in summaries.values()} - {"exact"})
    said += [f":{'green' if 'measured' in name else 'orange'}-badge[:material/memory: kept: {name}]" for name in kept]
    if answers is not None:
        quality = "measured" if answers else "not measured"
        said.append(f":{'green' if answers else 'gray'}-badge[:material/grading: answers: {quality}]")
    return " ".join(said)


_BADGES = {"roofline": "orange", "silicon": "blue", "profile": "green", "live": "green"}


def sources(summaries: Mapping[str, Summary]) -> str:
    """Where the figures come from, in one line (Markdown)."""
    names = sorted({summary["step_time_source"] for summary in summaries.values()})
    times = "; ".join(f"{name}, {STEP_TIMES.get(name.partition(' ')[0], 'not known here')}" for name in names)
    kept: dict[str, list[str]] = {}
    for policy, summary in summaries.items():
        kept.setdefault(summary["retention_source"], []).append(policy)
    shares = "; ".join(f"{source} ({', '.join(policies)})" for source, policies in kept.items())
    return f"**Step times**: {times}. **Tokens kept**: {shares}."


def flip_sentence(sweep: pa.Table) -> str:
    """At which rate the order of the policies flips, and where each gives way (Markdown)."""
    order = leaders(sweep)
    if len(policies_of(sweep)) < 2 or len(order) < 2:
        return _knees(sweep)
    changes = flips(sweep)
    if not changes:
        low, high = order[0][0], order[-1][0]
        first = f"**{order[0][1]}** leads at every rate from {number(low)} to {number(high)} requests/s."
        return f"{first} {_knees(sweep)}"
    story = [f"**{changes[0].before}** leads at low rates"]
    story += [
        f"**{flip.after}** takes over between {number(flip.below_rps)} and {number(flip.above_rps)} requests/s"
        for flip in changes
    ]
    return f"The order flips with the rate: {_listed(story, 'then')}. {_knees(sweep)}"


def _knees(sweep: pa.Table) -> str:
    said = []
    for policy in policies_of(sweep):
        found = knee(rows_of(sweep, policy))
        if found is None:
            said.append(f"{policy} below the lowest rate")
        else:
            said.append(f"{policy} {number(found.rate_rps)}{'' if found.reached else ' or more'}")
    held = f"Highest rate with {ATTAINMENT:.0%} of requests in time and no growing queue"
    return f"{held}: {_listed(said)} requests/s." if said else ""


def _listed(items: list[str], last: str = "and") -> str:
    if len(items) <= 1:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"
