"""Run: one run in depth, simulated here or read from a run folder."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from leankv.app import narrative, scoreboard
from leankv.app.controls import scenario_controls
from leankv.app.figures.gantt import request_gantt
from leankv.app.figures.latency import latency_cdf
from leankv.app.figures.memory import kv_memory
from leankv.app.figures.timeline import run_timeline
from leankv.app.home import runs_folder
from leankv.app.live import opened_traffic, simulated
from leankv.app.scenario import Scenario
from leankv.app.scoreboard import Card
from leankv.app.usage import usage_of
from leankv.app.views import draw_cards, is_dark, numbers, show
from leankv.serving.errors import InputError
from leankv.simulator.sweep import attainment

if TYPE_CHECKING:
    from leankv.serving.runs import Run

HERE, FOLDER = "This comparison", "A run folder"
WINDOW_REQUESTS = 120  # the Gantt opens on about so many requests
FILES = ("config.json", "summary.json", "requests.parquet", "timeline.parquet", "segments.parquet")


def page() -> None:
    """Draw the page."""
    scenario = scenario_controls()
    st.title("One run in depth", anchor=False)
    run = _chosen_run(scenario)
    if run is None:
        return
    trace = run.config.get("trace", {})
    model, device = (_name(run.config.get(key)) for key in ("model", "device"))
    st.caption(f"**{run.policy}** · {run.source} · {trace.get('name', 'trace')} · {model} on {device}")
    for line in narrative.warnings({run.policy: run.summary}):
        st.warning(line, icon=":material/warning:")
    with st.container(border=True, key="verdict"):
        st.markdown(narrative.verdict({run.policy: run.summary}))
        st.markdown(narrative.badges({run.policy: run.summary}))
    _cards(run.summary)
    over_time, requests, latency, memory, summary = st.tabs(
        ["Over time", "Requests", "Latency", "KV memory", "Summary"]
    )
    with over_time:
        show(run_timeline(run.timeline, is_dark()), "timeline")
    with requests:
        _requests(run)
    with latency:
        _latency(run)
    with memory:
        show(kv_memory(run.policy, usage_of(run), dark=is_dark(), height=420), "run-memory")
    with summary:
        _summary(run)


def _name(value: Any) -> str:
    """A specification's name, or the name itself where the run stored only that."""
    return str(value.get("name", "")) if isinstance(value, dict) else str(value)


def _chosen_run(scenario: Scenario) -> Run | None:
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    with left:
        source = st.segmented_control("Show", [HERE, FOLDER], default=HERE, key="from", bind="query-params")
    with right:
        return _from_folder() if source == FOLDER else _from_scenario(scenario)


def _from_scenario(scenario: Scenario) -> Run | None:
    if not scenario.policies:
        st.info("Choose at least one policy in the sidebar.", icon=":material/arrow_back:")
        return None
    policy = st.selectbox("Policy", scenario.policies, len(scenario.policies) - 1, key="show", bind="query-params")
    alone = Scenario(**{**scenario.__dict__, "policies": (policy,)})
    try:
        runs, errors = simulated(alone, opened_traffic(scenario))
    except InputError as error:
        runs, errors = {}, {policy: str(error)}
    for message in errors.values():
        st.error(message, icon=":material/error:")
    return runs.get(policy)


def _from_folder() -> Run | None:
    from leankv.serving.runs import load_run

    saved = sorted(runs_folder().iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    chosen = st.selectbox(
        "Run folder",
        [str(path) for path in saved],
        index=None,
        key="folder",
        accept_new_options=True,
        placeholder="Type the path of a folder that `leankv simulate --output-dir` wrote",
        bind="query-params",
    )
    if not chosen:
        return None
    try:
        return load_run(Path(chosen).expanduser())
    except InputError as error:
        st.error(str(error), icon=":material/error:")
        return None


def _cards(summary: narrative.Summary) -> None:
    goodput, share = f"{summary['request_goodput']:.2f}/s", f"{attainment(summary):.1%}"
    draw_cards(
        [
            Card("Goodput", goodput, scoreboard.HELP["Goodput (req/s)"]),
            Card("In time", share, scoreboard.HELP["In time (%)"]),
            Card("Completed", f"{summary['completed']:,}", "Requests that got all their tokens."),
            Card("Rejected", f"{summary['rejected']:,}", "Too long for the model's context or for the KV memory."),
            Card(
                "Preemptions", f"{summary['preemptions']:,}", "Times a request gave up its pages, to be computed again."
            ),
            Card("Peak running", f"{summary['max_running']:,}", "The most requests at work at once."),
        ]
    )


def _requests(run: Run) -> None:
    end_s = float(run.timeline["time_s"].to_numpy()[-1]) if run.timeline.num_rows else 1.0
    width = max(1.0, end_s * min(1.0, WINDOW_REQUESTS / max(1, run.requests.num_rows)))
    start_s, stop_s = st.slider(
        "Window (s)",
        0.0,
        max(end_s, 1.0),
        (0.0, min(width, max(end_s, 1.0))),
        key="window",
        help="Which part of the run to draw.",
    )
    show(request_gantt(run.requests, start_s, stop_s, is_dark()), "gantt")
    rejected = run.requests.filter(_is(run, "rejected"))
    if rejected.num_rows:
        st.subheader("Rejected", anchor=False)
        numbers(rejected.select(["request_id", "prompt_tokens", "output_tokens", "reason"]), "rejected")


def _is(run: Run, status: str) -> Any:
    import pyarrow.compute as pc

    return pc.equal(run.requests["status"], status)


def _latency(run: Run) -> None:
    slo = run.summary.get("slo", {})
    for column, metric in zip(st.columns(3), ("ttft", "tpot", "e2el"), strict=True):
        with column:
            show(latency_cdf({run.policy: run.requests}, f"{metric}_ms", slo.get(metric), is_dark()), f"run-{metric}")


def _summary(run: Run) -> None:
    import pyarrow as pa

    rows = [
        {
            "figure": key,
            "value": f"{value:,.6g}" if isinstance(value, float) else str(value),
            "95 % interval": _interval(run, key),
        }
        for key, value in run.summary.items()
        if not isinstance(value, dict)
    ]
    numbers(pa.Table.from_pylist(rows), "summary")
    left, right = st.columns([1, 3], vertical_alignment="center")
    if left.button("Keep this run", icon=":material/save:", help="Writes its folder, which this page then offers."):
        right.success(f"Kept as {_kept(run)}", icon=":material/check:")
    st.download_button(
        "Run folder (zip)",
        lambda: _zipped(run),
        file_name=f"{run.policy.replace(':', '-')}.zip",
        mime="application/zip",
        icon=":material/folder_zip:",
        on_click="ignore",
    )


def _interval(run: Run, key: str) -> str:
    found = run.summary.get("intervals", {}).get(key)
    return f"{found[0]:,.4g} to {found[1]:,.4g}" if found else ""


def _kept(run: Run) -> Path:
    """The run's folder under the app's runs, written now if it is not there."""
    from leankv.serving.runs import config_hash, save_run

    folder = runs_folder() / f"{run.policy.replace(':', '-')}-{config_hash(run.config)[:8]}"
    return folder if folder.exists() else save_run(run, folder)


def _zipped(run: Run) -> bytes:
    """The run's folder, as `leankv simulate --output-dir` writes it, in one file."""
    from leankv.serving.runs import save_run

    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        folder = save_run(run, Path(scratch) / "run")
        for name in FILES:
            archive.write(folder / name, name)
    return buffer.getvalue()
