"""A validation in the terminal: a table a load, then what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leankv.app.commands._run_tables import wide_console

if TYPE_CHECKING:
    from rich.table import Table

    from leankv.simulator.validation import Validation
    from leankv.simulator.validation_parity import ParityRow

MARKS = {True: "holds", False: "MISSED"}


def print_validation(validation: Validation) -> None:
    """Errors by metric and policy, medians, order of the policies, signs, the machine's drift, targets."""
    console = wide_console()
    for load, played in validation.loads.items():
        rows = [row for row in validation.parity if row.load == load]
        if rows:
            console.print(_table(validation, load, played, rows))
    for line in (*_medians(validation), *_orders(validation), *_signs(validation), *_machine(validation)):
        console.print(line, markup=False, highlight=False)
    for target in validation.summary["targets"]:
        console.print(f"{_target(target)}: {MARKS[target['holds']]}", markup=False, highlight=False)


def _table(validation: Validation, load: str, played: Mapping[str, float], rows: Sequence[ParityRow]) -> Table:
    from rich.table import Table

    asked = validation.conditions
    title = f"{load}: {played['offered_rps']:.3g} requests/s; {asked['trace']['name']} on {asked['model']['name']}"
    counted = f"simulated / live, median of {_repeats(rows)}, and the error"
    table = Table(title=f"{title}, {asked['device']['name']}\n{counted}")
    policies = list(dict.fromkeys(row.policy for row in rows))
    table.add_column("")
    for policy in policies:
        table.add_column(policy, justify="right")
    cells = {(row.metric, row.policy): row for row in rows}
    for metric in dict.fromkeys(row.metric for row in rows):
        table.add_row(metric, *(_cell(cells[metric, policy]) for policy in policies))
    return table


def _repeats(rows: Sequence[ParityRow]) -> str:
    """Of one policy more live runs may count than of another."""
    counts = [row.repeats for row in rows]
    return f"{max(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _cell(row: ParityRow) -> str:
    values = " / ".join("-" if value is None else f"{value:,.5g}" for value in (row.simulated, row.live))
    return f"{values}  {_percent(row.relative_error):>7}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f} %"


def _medians(validation: Validation) -> list[str]:
    found = validation.summary
    lines = []
    for kind in ("policy", "load", "metric"):
        parts = ", ".join(f"{name} {_share(value)}" for name, value in found[f"by_{kind}"].items())
        lines.append(f"median absolute error by {kind}: {parts}")
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _orders(validation: Validation) -> list[str]:
    lines = []
    for each in validation.ranking:
        best = f"simulated {', '.join(each['simulated'])}; live {', '.join(each['live'])}"
        decided = sum(pair["better"] is not None for pair in each["pairs"])
        judged = f"{decided} of {len(each['pairs'])} pairs decided live, {MARKS[each['holds']]}"
        lines.append(f"{each['load']}, best first by {each['by']}: {best} ({judged})")
    return lines


def _signs(validation: Validation) -> list[str]:
    lines = []
    for each in validation.compression_helps:
        change = f"simulated {_percent(each['simulated'])}, live {_percent(each['live'])}"
        spread = f"[{_percent(each['live_low'])}, {_percent(each['live_high'])}]"
        verdict = f"{each['live_says']}: {each['outcome']}"
        lines.append(f"{each['load']}, {each['policy']} against fp16 by {each['by']}: {change} {spread}, {verdict}")
    return lines


def _machine(validation: Validation) -> list[str]:
    speeds = [each[when] for each in validation.machine for when in ("before", "after") if each[when]]
    shares = [each["others"] for each in validation.machine if each["others"] is not None]
    left_out = sum(not each["counts"] for each in validation.machine)
    lines = []
    if speeds:
        lines.append(
            f"machine: a reference step took {min(speeds):.2f} to {max(speeds):.2f} times as long as the profile says "
            "(nothing is corrected for it)"
        )
    if (paces := [each["pace"] for each in validation.machine if each.get("pace")]) and validation.paced:
        found = validation.summary
        lines.append(
            f"during the live runs it took {min(paces):.2f} to {max(paces):.2f} times as long as while calibrating; "
            "simulated at each run's own pace, latencies and rates are off by "
            f"{_share(found['paced_median_absolute_error'])} in the median, KV pages by at most "
            f"{_share(found['paced_worst_kv_pages_error'])} (no target rests on it)"
        )
    if shares:
        lines.append(
            f"others took {_share(min(shares))} to {_share(max(shares))} of the cores during the live runs; "
            f"{left_out} of {len(validation.machine)} runs are left out for it"
        )
    return lines


def _target(target: Mapping[str, Any]) -> str:
    value, wanted = target["value"], target["target"]
    if isinstance(value, int):
        return f"{target['name']}: {value} of {wanted}"
    return f"{target['name']}: {_share(value)} (at most {_share(wanted)})"
