"""Validate: the simulator held against live runs of this project's engine, figure by figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from leankv.app import found, profiles, validationwords
from leankv.app.figures import holdup, parity
from leankv.app.folderchoice import chosen_folder
from leankv.app.navigation import link
from leankv.app.views import draw_cards, is_dark, numbers, show
from leankv.serving.errors import InputError

if TYPE_CHECKING:
    from leankv.serving.runs import Run
    from leankv.simulator.validation import Validation
    from leankv.simulator.validation_parity import ParityRow

KINDS = {"Latency": ("latency",), "Throughput": ("rate",), "KV pages and preemptions": ("pages", "held", "count")}
METRICS = ("ttft_ms", "tpot_ms", "e2el_ms")
TEACHING = """\
leankv validate --calibrate --limit 40 --max-prompt 256 --max-output 32 --output-dir validated
leankv validate --profile profiles/mine --limit 40 --max-prompt 256 --max-output 32 --output-dir validated"""


def page() -> None:
    """Draw the page."""
    with st.sidebar:
        folder = _chosen()
    st.title("Can the projection be trusted?", anchor=False)
    if folder is None:
        _teach()
        return
    validation = _loaded(folder)
    if validation is not None:
        _draw(validation, folder)


def _chosen() -> Path | None:
    st.subheader("Validation")
    told = "One that ships with this project, that a job made, or the folder of a `validation.json`: type its path."
    return chosen_folder("Validation", found.offered("validation"), "validation", told)


def _teach() -> None:
    st.info(
        "No validation here yet. One runs a trace live under several policies and loads, simulates the same from a "
        "profile of this machine, and says how far off the simulation is. Start it on the Jobs page, or in a terminal:",
        icon=":material/school:",
    )
    st.code(TEACHING, language="bash")
    link("jobs", "Start one on the Jobs page", ":material/work_history:", {"kind": "Validation"})


def _loaded(folder: Path) -> Validation | None:
    from leankv.simulator.validation import load_validation

    path = folder if folder.name == found.MARKS["validation"] else folder / found.MARKS["validation"]
    try:
        return load_validation(path)
    except InputError as error:
        st.error(str(error), icon=":material/error:")
        return None


def _draw(validation: Validation, folder: Path) -> None:
    st.caption(validationwords.conditions(validation))
    with st.container(border=True, key="verdict"):
        st.markdown(validationwords.verdict(validation))
    for line in validationwords.warnings(validation):
        st.warning(line, icon=":material/warning:")
    draw_cards(validationwords.cards(validation))
    load = _load(validation)
    rows = [row for row in validation.parity if load in (None, row.load)]
    _parity(rows)
    _error_table(validation, rows)
    _distributions(validation, folder, load)
    _orders(validation)
    _regimes(validation, load)
    _machine(validation)
    _fit(validation)


def _load(validation: Validation) -> str | None:
    """The load that the page is about; None for all."""
    with st.sidebar:
        chosen = st.segmented_control(
            "Load",
            list(validation.loads),
            key="load",
            help="Low is two thirds of the knee's rate, overload half as much again. None chosen: all of them.",
            bind="query-params",
        )
        st.caption(", ".join(validationwords.load_line(*each) for each in validation.loads.items()))
    return chosen if chosen in validation.loads else None


def _parity(rows: list[ParityRow]) -> None:
    st.header(
        "Simulated against live",
        anchor=False,
        help="On the line the simulation is right; the bands are 5 and 10 % around it. A bar is the range of the "
        "live repeats: no simulation can be closer than the machine is to itself.",
    )
    shown = st.segmented_control(
        "Figures", list(KINDS), default="Latency", key="figures", required=True, bind="query-params"
    )
    chosen = [row for row in rows if row.kind in KINDS[shown or "Latency"]]
    left, right = st.columns(2)
    with left:
        show(parity.parity(chosen, is_dark()), "parity")
    with right:
        show(parity.errors(chosen, is_dark()), "errors")


def _error_table(validation: Validation, rows: list[ParityRow]) -> None:
    st.header(
        "Error by metric and policy",
        anchor=False,
        help="(simulated - live) / live. Orange: simulated too high; blue: too low. Hover for both values.",
    )
    loads = list(dict.fromkeys(row.load for row in rows))
    for column, load in zip(st.columns(len(loads) or 1), loads, strict=False):
        with column:
            st.markdown(f"**{validationwords.load_line(load, validation.loads[load])}**")
            show(parity.error_map([row for row in rows if row.load == load], is_dark()), f"map-{load}")


def _distributions(validation: Validation, folder: Path, load: str | None) -> None:
    st.header("Distributions", anchor=False, help="Thin: each live run. Broken: the simulation of the same requests.")
    load = load or ("knee" if "knee" in validation.loads else next(iter(validation.loads)))
    policies = list(dict.fromkeys(row.policy for row in validation.parity if row.load == load))
    policy = st.segmented_control(
        f"Policy, at load {load}", policies, default=policies[-1], key="show", required=True, bind="query-params"
    )
    runs = _runs(folder, load, policy if policy in policies else policies[-1])
    if runs is None:
        st.caption(
            "The run folders of this validation are not here (only its figures were kept), so there are no "
            "distributions to draw."
        )
        return
    simulated, live = runs
    for column, metric in zip(st.columns(3), METRICS, strict=True):
        with column:
            chart = holdup.overlaid(
                simulated.policy, [run.requests for run in live], simulated.requests, metric, is_dark()
            )
            show(chart, f"overlaid-{metric}")
    link(
        "run",
        f"Open the live run of {simulated.policy}",
        ":material/timeline:",
        {"from": "A run folder", "folder": str(_place(folder, load, simulated.policy) / "live-1")},
    )


def _runs(folder: Path, load: str, policy: str) -> tuple[Run, list[Run]] | None:
    from leankv.serving.runs import load_run

    place = _place(folder, load, policy)
    live = sorted(place.glob("live-*"))
    if not live or not (place / "simulated").is_dir():
        return None
    try:
        return load_run(place / "simulated"), [load_run(each) for each in live]
    except InputError as error:
        st.error(str(error), icon=":material/error:")
        return None


def _place(folder: Path, load: str, policy: str) -> Path:
    """Where `leankv validate` leaves the runs of a policy under a load."""
    return folder / load / policy.replace(":", "-").replace(",", "-").replace("=", "")


def _orders(validation: Validation) -> None:
    st.header(
        "Order and sign",
        anchor=False,
        help="A live difference under 2 %, or one whose sign changes over the repeats, is a tie: no order is right.",
    )
    if not validation.ranking:
        st.caption("One policy alone has no order; validate two or more.")
        return
    st.markdown("\n".join(f"- {validationwords.ranking(each)}" for each in validation.ranking))
    if validation.compression_helps:
        st.markdown("**Does compression help, against fp16?**")
        numbers(validationwords.signs(validation), "signs")


def _regimes(validation: Validation, load: str | None) -> None:
    rows = [row for row in validation.residuals if load in (None, row["load"])]
    kinds = validationwords.kinds_of(rows)
    if not kinds:
        return
    st.header(
        "Where the error comes from",
        anchor=False,
        help="Steps show the step-time model alone, whatever the queue did; requests show admission and queueing, too.",
    )
    for tab, (title, mine) in zip(st.tabs(list(kinds)), kinds.items(), strict=True):
        with tab:
            show(holdup.by_regime(mine, is_dark()), f"regimes-{title}")


def _machine(validation: Validation) -> None:
    if not validation.machine:
        return
    st.header(
        "The machine meanwhile",
        anchor=False,
        help="The same reference step, timed before and after every live run; 1 is its speed when it was calibrated.",
    )
    show(holdup.drift(validation.machine, is_dark()), "drift")


def _fit(validation: Validation) -> None:
    """The coefficients that the projection follows from, where the profile is here."""
    st.header("The step-time model behind it", anchor=False, help="Fitted to steps timed at the calibration.")
    created = validation.conditions["profile"]["created"]
    profile = profiles.of_date(created)
    if profile is None:
        st.caption(f"The profile of {created} is not among those here, so its coefficients cannot be told.")
        return
    for tab, policy in zip(st.tabs(list(profile.policies)), profile.policies, strict=True):
        with tab:
            st.markdown("\n".join(f"- {line}" for line in profiles.in_words(profile, policy)))
    st.markdown("**How far off it is on steps that it has not seen**")
    numbers(validationwords.held_out(profile), "held-out")
