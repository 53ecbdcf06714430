"""A validation in words: how far off, whether each target holds, which order, which sign. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leankv.app.figures.parity import spoken
from leankv.app.scoreboard import Card

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.serving.profile import Profile
    from leankv.simulator.validation import Validation

CALM = (0.95, 1.10)  # a machine within this of the profile's speed needs no word
QUIET = 0.05  # nor does a share of the cores below this
OUTCOMES = {
    "right": "right",
    "tie": "a tie live, and simulated close to it",
    "wrong": "wrong",
    "overstated": "overstated: live sees no difference",
}
GIB = 1 << 30


def verdict(validation: Validation) -> str:
    """How far off the projection is, in a few sentences (Markdown)."""
    found, asked = validation.summary, validation.conditions
    error, (timing, *_) = found["median_absolute_error"], found["targets"]
    if error is None:
        return "**Nothing could be compared**: no live run has a figure that the simulation has, too."
    place = f"{asked['model']['name']} on {asked['device']['name']}"
    lead = f"**{place}: the simulator is off by {error:.1%} in the median**"
    bar = f"{'within' if timing['holds'] else 'missing'} the bar of {timing['target']:.0%}"
    over = f"over the latencies and rates of {len(asked['policies'])} policies and {len(validation.loads)} loads"
    worst = f"The worst of them is off by {found['worst_absolute_error']:.0%}."
    order = _orders(found["pairs"], "pairs of policies", "are in the right order")
    sign = _orders(found["signs"], "claims that compression helps or hurts", "are right")
    return " ".join(part for part in (f"{lead} {over}, {bar}.", worst, order, sign) if part)


def _orders(outcomes: Mapping[str, int], what: str, done: str) -> str:
    whole = sum(outcomes.values())
    if not whole:
        return ""
    held = outcomes["right"] + outcomes["tie"]
    ties = f" ({outcomes['tie']} of them ties)" if outcomes["tie"] else ""
    return f"{held} of {whole} {what} {done}{ties}."


def warnings(validation: Validation) -> list[str]:
    """What a reader must know before believing the figures."""
    said = [f"Missed: {_target(each)}." for each in validation.summary["targets"] if not each["holds"]]
    speeds = [each[when] for each in validation.machine for when in ("before", "after") if each.get(when)]
    if speeds and not (CALM[0] <= min(speeds) and max(speeds) <= CALM[1]):
        said.append(
            f"The machine drifted: a reference step took {min(speeds):.2f} to {max(speeds):.2f} times as long as when "
            "the profile was measured. Nothing is corrected for it, so part of the error is the machine's."
        )
    said += _paces(validation)
    return said + _disturbances(validation)


def _paces(validation: Validation) -> list[str]:
    """What is left of the error where each live run is held against a simulation at its own pace."""
    paces = [each["pace"] for each in validation.machine if each.get("pace")]
    error = validation.summary.get("paced_median_absolute_error")
    if not paces or error is None or (CALM[0] <= min(paces) and max(paces) <= CALM[1]):
        return []
    pages = validation.summary["paced_worst_kv_pages_error"]
    return [
        f"During the live runs the machine took {min(paces):.2f} to {max(paces):.2f} times as long as during the "
        f"calibration. Simulated at each run's own pace, latencies and rates are off by {error:.1%} in the median and "
        f"KV pages by at most {pages:.1%}."
    ]


def _disturbances(validation: Validation) -> list[str]:
    """What other processes took of the cores, and which live runs do not count for it."""
    shares = [each["others"] for each in validation.machine if each["others"] is not None]
    if not shares or max(shares) <= QUIET:
        return []
    taken = f"Others took {min(shares):.0%} to {max(shares):.0%} of the cores during the live runs"
    rows = [row for row in validation.machine if not row["counts"]]
    runs = "; ".join(f"{row['policy']} at {row['load']}, repeat {row['repeat'] + 1}" for row in rows)
    left_out = f"Left out, since calmer repeats count in their place: {runs}." if runs else "No run is left out for it."
    return [f"{taken}, and part of the error is theirs. {left_out}"]


def cards(validation: Validation) -> list[Card]:
    """A headline figure a target, with whether it holds."""
    return [_card(each) for each in validation.summary["targets"]]


LABELS = {
    "median absolute error of latencies and rates": "Median error",
    "worst error of KV pages": "KV pages, worst",
    "worst error of KV pages per request": "Pages per request",
    "preemptions within 10 % or 2": "Preemptions",
    "rankings right": "Rankings right",
    "signs of compression right": "Signs right",
}


def _card(target: Mapping[str, Any]) -> Card:
    value, wanted = target["value"], target["target"]
    shown = "n/a" if value is None else f"{value} of {wanted}" if isinstance(wanted, int) else f"{value:.1%}"
    bar = "all of them" if isinstance(wanted, int) else f"at most {wanted:.0%}"
    verdict = "✓ bar held" if target["holds"] else "✗ bar missed"
    help = f"{target['name'].capitalize()}; the bar: {bar}."
    return Card(LABELS.get(target["name"], target["name"]), shown, help, verdict)


def _target(target: Mapping[str, Any]) -> str:
    value, wanted = target["value"], target["target"]
    if isinstance(wanted, int):
        return f"{target['name']}: {value} of {wanted}"
    return f"{target['name']} {'unknown' if value is None else f'{value:.1%}'}, the bar is {wanted:.0%}"


def ranking(each: Mapping[str, Any]) -> str:
    """One ranking as a line (Markdown)."""
    verdict = "**right**" if each["holds"] else "**wrong**"
    decided = sum(pair["better"] is not None for pair in each["pairs"])
    simulated, live = (" > ".join(each[source]) for source in ("simulated", "live"))
    order = f"simulated {simulated}" if simulated == live else f"simulated {simulated}, live {live}"
    pairs = f"live decides {decided} of {len(each['pairs'])} pairs, the others are ties"
    return f"{each['load']}, by {spoken(each['by'])}: {order}. {verdict} ({pairs})"


def signs(validation: Validation) -> pa.Table:
    """Each claim that compression helps or hurts against fp16: what was simulated, what live says, what it comes to."""
    import pyarrow as pa

    rows = [
        {
            "Policy": each["policy"],
            "Load": each["load"],
            "By": spoken(each["by"]),
            "Simulated (%)": 100 * each["simulated"],
            "Live (%)": 100 * each["live"],
            "Live, least to most": f"{100 * each['live_low']:+.1f} to {100 * each['live_high']:+.1f} %",
            "Live says it": each["live_says"],
            "The simulation is": OUTCOMES[each["outcome"]],
        }
        for each in validation.compression_helps
    ]
    return pa.Table.from_pylist(rows)


def conditions(validation: Validation) -> str:
    """What was run, in one line (Markdown)."""
    asked = validation.conditions
    trace = asked["trace"]
    pool = f"KV pool {asked['kv_memory_bytes'] / GIB:.3g} GiB"
    repeats = _repeats(asked["repeats"])
    measured = f"profile of {asked['profile']['created'][:10]}"
    return (
        f"{trace['requests']:,} requests of **{trace['name']}** · **{asked['model']['name']}** on "
        f"**{asked['device']['name']}** ({asked['device'].get('dtype', '')}) · {repeats} · {pool} · {measured}"
    )


def _repeats(by_load: Mapping[str, int]) -> str:
    least, most = min(by_load.values()), max(by_load.values())
    if least == most:
        return f"{most} live {'run' if most == 1 else 'runs'} of each"
    return f"live runs of each: {', '.join(f'{count} at {load}' for load, count in by_load.items())}"


def held_out(profile: Profile) -> pa.Table:
    """How far the step-time fit is off on steps that it has not seen, a row a policy and regime."""
    import pyarrow as pa

    rows = [
        {
            "Policy": policy,
            "Regime": regime,
            "Steps": error.points,
            "Median error (%)": 100 * error.median,
            "p90 error (%)": 100 * error.p90,
            "Bias (%)": 100 * error.bias,
        }
        for policy, found in profile.policies.items()
        for regime, error in found.held_out.items()
    ]
    return pa.Table.from_pylist(rows)


def load_line(name: str, played: Mapping[str, float]) -> str:
    return f"{name} ({played['offered_rps']:.3g}/s)"


def kinds_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Residuals by what they measure: steps, then each latency of the requests."""
    titles = {"mean_step_ms": "Steps", "mean_ttft_ms": "TTFT", "mean_tpot_ms": "TPOT", "mean_e2el_ms": "E2E"}
    found = {title: [row for row in rows if row["metric"] == metric] for metric, title in titles.items()}
    return {title: mine for title, mine in found.items() if mine}
