"""Compare: what each policy would do to latency, throughput, memory and cost, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from leankv.app import answers, narrative, scoreboard
from leankv.app.controls import scenario_controls
from leankv.app.figures.latency import latency_cdf
from leankv.app.figures.memory import capacity_gib, kv_memory
from leankv.app.live import opened_traffic, simulated
from leankv.app.navigation import link
from leankv.app.paired import share_gap
from leankv.app.scenario import Scenario
from leankv.app.sweeppanel import finished_sweep, sweep_job, sweep_panel
from leankv.app.usage import usage_of
from leankv.app.views import download_csv, draw_cards, is_dark, show, show_all
from leankv.serving.errors import InputError
from leankv.simulator.sweep import offered_rps

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.app.answers import Answers
    from leankv.serving.runs import Run
    from leankv.traces.trace import Trace


def page() -> None:
    """Draw the page."""
    scenario = scenario_controls()
    st.title("Which KV-cache policy?", anchor=False)
    if not scenario.policies:
        st.info("Choose at least one policy in the sidebar.", icon=":material/arrow_back:")
        return
    try:
        trace = opened_traffic(scenario)
    except InputError as error:
        st.error(str(error), icon=":material/error:")
        return
    rate = offered_rps(trace)
    st.caption(_subtitle(scenario, trace, rate))
    if scenario.step_time == "profile" and not scenario.profile:
        _teach()
        return
    runs, errors = simulated(scenario, trace)
    for line in _merged(errors):
        st.error(line, icon=":material/error:")
    if not runs:
        return
    job = sweep_job(replace(scenario, policies=tuple(runs)), len(trace))
    measured = _answers(runs)
    _headline(runs, finished_sweep(job), measured)
    _table(runs, measured)
    _latency(scenario, runs)
    st.header(
        "Load",
        anchor=False,
        help="The knee, ringed: up to it 90 % of requests are in time, and the queue does not grow without end.",
    )
    sweep_panel(replace(scenario, policies=tuple(runs)), job, rate)
    _memory(runs)
    _sources(scenario, trace)


def _subtitle(scenario: Scenario, trace: Trace, rate: float) -> str:
    gpus = scenario.tp * scenario.replicas
    requests = f"{len(trace):,} requests of **{trace.name}** at {rate:.2f}/s"
    slo = f"in time: TTFT ≤ {scenario.ttft_ms:,.0f} ms, TPOT ≤ {scenario.tpot_ms:,.0f} ms"
    return f"{requests} · **{scenario.model}** on {gpus} x **{scenario.device}** · {slo}"


def _merged(errors: Mapping[str, str]) -> list[str]:
    """Each message once, with the policies that it stops."""
    policies: dict[str, list[str]] = {}
    for policy, message in errors.items():
        policies.setdefault(message, []).append(policy)
    return [f"{', '.join(names)}: {message}" for message, names in policies.items()]


def _teach() -> None:
    st.info(
        "No profile here yet. One is measured in minutes on this machine: step times, memory, and what each policy "
        "keeps. Start it on the Jobs page, or in a terminal:",
        icon=":material/school:",
    )
    st.code("leankv calibrate --model smollm2-135m --output-dir profiles/mine", language="bash")
    link("jobs", "Start one on the Jobs page", ":material/work_history:", {"kind": "Calibration"})


def _answers(runs: Mapping[str, Run]) -> Answers | None:
    """What was measured of these policies' answers on this model."""
    run = next(iter(runs.values()))
    specifications = {policy: str(run.config["specification"]) for policy, run in runs.items()}
    return answers.measured(run.config["model"]["name"], specifications)


def _headline(runs: Mapping[str, Run], sweep: pa.Table | None, measured: Answers | None) -> None:
    summaries = {policy: run.summary for policy, run in runs.items()}
    best, gap = narrative.winner(summaries), None
    if pair := narrative.contest(summaries):
        against = pair[1]
        gap = share_gap(runs[best].requests, runs[against].requests, summaries[best]["slo"])
    with st.container(border=True, key="verdict"):
        st.markdown(narrative.verdict(summaries, gap=gap))
        if sweep is not None:
            st.markdown(narrative.flip_sentence(sweep))
        st.markdown(narrative.badges(summaries, measured is not None and best in measured.scores))
    lost = answers.warning(measured, best)
    for line in [*narrative.warnings(summaries), *([lost] if lost else [])]:
        st.warning(line, icon=":material/warning:")
    draw_cards(scoreboard.cards(summaries))


def _table(runs: Mapping[str, Run], measured: Answers | None) -> None:
    summaries = {policy: run.summary for policy, run in runs.items()}
    table = scoreboard.table(summaries, measured)
    settings: dict[str, Any] = {
        name: st.column_config.Column(help=scoreboard.HELP.get(name), pinned=name == "Policy")
        for name in table.column_names
    }
    for name, form in scoreboard.FORMATS.items():
        settings[name] = st.column_config.NumberColumn(format=form, help=scoreboard.HELP.get(name))
    st.dataframe(table, hide_index=True, width="stretch", column_config=settings, key="scoreboard")
    left, right = st.columns([1, 7], vertical_alignment="center")
    with left:
        download_csv(table, "comparison")
    model = next(iter(runs.values())).config["model"]["name"]
    known = answers.sentence(measured, model, narrative.winner(summaries), answers.evaluated_models())
    right.caption(f"{narrative.sources(summaries)} {known}")
    if measured is not None:
        link("quality", "What the answers cost", ":material/grading:", {"quality": measured.name})


def _latency(scenario: Scenario, runs: Mapping[str, Run]) -> None:
    st.header(
        "Latency", anchor=False, help="Share of requests answered within a time; further left and higher is better."
    )
    requests = {policy: run.requests for policy, run in runs.items()}
    levels = {"ttft_ms": scenario.ttft_ms, "tpot_ms": scenario.tpot_ms, "e2el_ms": None}
    for column, (metric, slo) in zip(st.columns(3), levels.items(), strict=True):
        with column:
            show(latency_cdf(requests, metric, slo, is_dark()), f"cdf-{metric}")


def _memory(runs: Mapping[str, Run]) -> None:
    st.header(
        "KV memory",
        anchor=False,
        help="Pages held, by precision tier; the dashed line is the pool. One GPU of each replica.",
    )
    usages = {policy: usage_of(run) for policy, run in runs.items()}
    top = max(map(capacity_gib, usages.values()))
    show_all({policy: kv_memory(policy, usage, top, is_dark()) for policy, usage in usages.items()}, "kv-memory", 2)


def _sources(scenario: Scenario, trace: Trace) -> None:
    model, device, profile = scenario.place()
    with st.expander("Where these figures come from", icon=":material/fact_check:"):
        st.markdown(f"**{model.name}**: {model.source}")
        if profile is not None:
            st.markdown(f"**Step times and what is kept**: measured in {scenario.profile}, {profile.created}")
        st.markdown("\n".join(f"- {device.name}, {field}: {source}" for field, source in device.source.items()))
        st.markdown("\n".join([f"**{trace.name}**", *(f"- {warning}" for warning in trace.warnings)]))
        st.json(dict(trace.provenance), expanded=False)
