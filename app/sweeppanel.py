"""The rate sweep on the page: a background job, its progress, its curve as it grows, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from leankv.app import narrative
from leankv.app.figures.goodput import goodput_by_rate
from leankv.app.jobs import Job, Jobs
from leankv.app.scenario import Scenario
from leankv.app.tasks import SWEEP, read_sweep
from leankv.app.views import is_dark, show

if TYPE_CHECKING:
    import pyarrow as pa

AT_ONCE = 5000  # requests: a longer trace is swept when asked, not by itself
POLL_S = 1.0
ENDINGS = {
    "failed": "The sweep failed: {error}",
    "died": "The sweep's process died: {error}.",
    "cancelled": "The sweep was cancelled.",
}


def sweep_job(scenario: Scenario, requests: int) -> Job | None:
    """The job that sweeps this scenario: an earlier one, or a new one where the trace is short enough to just do it.

    A sweep that this session began and no longer looks at is cancelled.
    """
    board = Jobs()
    params = replace(scenario, rate_scale=1.0).to_params()
    job = board.latest(SWEEP, params)
    watched = st.session_state.get("sweep")
    if watched and (job is None or watched != job.id):
        board.cancel(watched)
        st.session_state["sweep"] = None
    if job is None and requests <= AT_ONCE:
        job = board.submit(SWEEP, params)
    if job is not None and job.active:
        st.session_state["sweep"] = job.id
    return job


def finished_sweep(job: Job | None) -> pa.Table | None:
    """The whole sweep, once it is done."""
    return read_sweep(job.folder) if job and job.state == "done" else None


def sweep_panel(scenario: Scenario, job: Job | None, here_rps: float) -> None:
    """Draw the sweep; while its job is at work, look again every second."""
    polled = st.fragment(_panel, run_every=POLL_S if job and job.active else None)
    polled(scenario, job.id if job else None, here_rps)


def _panel(scenario: Scenario, identity: str | None, here_rps: float) -> None:
    job = Jobs().get(identity) if identity else None
    _status(scenario, job)
    sweep = read_sweep(job.folder) if job else None
    if sweep is not None:
        if job and job.state != "done":
            st.markdown(narrative.flip_sentence(sweep))
        show(goodput_by_rate(sweep, here_rps, is_dark()), "goodput-by-rate")
    if job and not job.active and st.session_state.get("sweep") == job.id:
        # the page above waits for this sweep's verdict
        st.session_state["sweep"] = None
        st.rerun()


def _status(scenario: Scenario, job: Job | None) -> None:
    if job is None or job.state in ENDINGS:
        if job is not None:
            st.warning(ENDINGS[job.state].format(error=job.error), icon=":material/warning:")
        label = "Sweep the rate" if job is None else "Sweep again"
        told = "Simulates every policy at rates around its knee, in the background."
        if st.button(label, icon=":material/play_arrow:", help=told):
            Jobs().submit(SWEEP, replace(scenario, rate_scale=1.0).to_params())
            # not this fragment alone: the page has to learn of the new job
            st.rerun()
    elif job.active:
        left, right = st.columns([5, 1], vertical_alignment="center")
        left.progress(job.progress, f"Sweeping rates: {job.message or 'starting'}")
        right.button("Cancel", icon=":material/stop:", on_click=_cancel, args=(job.id,), width="stretch")


def _cancel(identity: str) -> None:
    Jobs().cancel(identity)
