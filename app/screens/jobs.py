"""Jobs: live work on this machine, started, followed and stopped here, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st

from leankv.app import found, jobwords
from leankv.app.jobform import settings
from leankv.app.jobkinds import RESULTS, Kind, kinds, live_missing
from leankv.app.jobs import Job, Jobs
from leankv.app.navigation import link
from leankv.app.views import download_csv

POLL_S = 1.0
TAIL_LINES = 12
LOG_LINES = 400
MOST_LINKS = 12
# what was found: (page, its icon, the name of its choice in the address, what else the address says)
OPENS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "validation": ("validate", ":material/balance:", "validation", {}),
    "profile": ("compare", ":material/compare_arrows:", "profile", {"steptime": "profile"}),
    "quality": ("quality", ":material/grading:", "quality", {}),
    "run": ("run", ":material/timeline:", "folder", {"from": "A run folder"}),
}


def page() -> None:
    """Draw the page."""
    st.title("Measure on this machine", anchor=False)
    board, known, now_s = Jobs(), kinds(), time.time()
    jobs = board.history(known)
    active, ended = [job for job in jobs if job.active], [job for job in jobs if not job.active]
    with st.container(border=True, key="verdict"):
        st.markdown(jobwords.standing(jobs, known, now_s))
    left, right = st.columns([2, 3], gap="large")
    with left:
        _start(board, known, bool(active))
    with right:
        st.header("At work", anchor=False)
        if active:
            st.fragment(_follow, run_every=POLL_S)([job.id for job in active], known)
        else:
            st.caption("Nothing. What you start goes on when this page is closed, reloaded, or its server ends.")
        st.header("History", anchor=False)
        _history(board, ended, known, now_s)


def _start(board: Jobs, known: Mapping[str, Kind], busy: bool) -> None:
    st.header("Start", anchor=False)
    if missing := live_missing():
        st.info(missing, icon=":material/download:")
        return
    titled = {kind.title: kind for kind in known.values()}
    title = st.segmented_control(
        "What to start",
        list(titled),
        default=next(iter(titled)),
        key="kind",
        required=True,
        wrap=True,
        label_visibility="collapsed",
        bind="query-params",
    )
    kind = titled.get(title or "") or next(iter(titled.values()))
    st.markdown(kind.about)
    params = settings(kind)
    st.code(kind.line(params, Path(RESULTS)), language="bash", wrap_lines=True)
    if busy:
        st.warning("Another job is at work: two at once disturb each other's times.", icon=":material/warning:")
    if st.button(f"Start: {kind.title.lower()}", icon=kind.icon, type="primary", width="stretch"):
        board.submit(kind.name, params)
        st.rerun()


def _follow(identities: Sequence[str], known: Mapping[str, Kind]) -> None:
    """The jobs at work, looked at every second; the whole page is drawn anew when one ends."""
    board = Jobs()
    jobs = [board.get(identity) for identity in identities]
    for job in jobs:
        with st.container(border=True):
            _at_work(job, known[job.kind])
    if not all(job.active for job in jobs):
        st.rerun()


def _at_work(job: Job, kind: Kind) -> None:
    left, right = st.columns([3, 1], vertical_alignment="center")
    left.markdown(f"{kind.icon} **{kind.title}** · {kind.summary(job.params)}")
    right.button(
        "Cancel",
        icon=":material/stop:",
        key=f"cancel-{job.id}",
        on_click=_cancel,
        args=(job.id,),
        width="stretch",
        help="Stops it; what is finished is kept.",
    )
    st.progress(job.progress, f"{job.message or 'starting'} · {jobwords.took(job, time.time())} so far")
    st.code(_log(job, TAIL_LINES) or "(no word yet)", language=None, wrap_lines=True)


def _cancel(identity: str) -> None:
    Jobs().cancel(identity)


def _history(board: Jobs, jobs: Sequence[Job], known: Mapping[str, Kind], now_s: float) -> None:
    if not jobs:
        st.caption("Empty. Jobs that finished, failed, were cancelled or died are listed here with their results.")
        return
    table = jobwords.table(jobs, known, now_s)
    st.dataframe(table, hide_index=True, width="stretch", key="history", alt="Jobs that have ended, newest first")
    download_csv(table, "jobs")
    named = {f"{job.id[:6]} {known[job.kind].title}": job for job in jobs}
    chosen = st.selectbox("Look at", list(named), key="job", bind="query-params")
    if chosen in named:
        with st.container(border=True):
            _ended(board, named[chosen], known[named[chosen].kind], now_s)


def _ended(board: Jobs, job: Job, kind: Kind, now_s: float) -> None:
    icon, verb = jobwords.STATES[job.state]
    st.markdown(f"{icon} **{kind.title}** {verb} after {jobwords.took(job, now_s)}. {kind.summary(job.params)}")
    if job.error:
        st.error(job.error, icon=icon)
    place = job.folder / RESULTS
    _links(found.results(place))
    st.code(kind.line(job.params, place), language="bash", wrap_lines=True)
    with st.expander("Log", icon=":material/subject:", expanded=job.state in ("failed", "died")):
        st.code(_log(job, LOG_LINES) or "(empty)", language=None, wrap_lines=True)
    remove, go_on = st.columns(2)
    if job.state != "done" and go_on.button(
        "Go on",
        icon=":material/resume:",
        width="stretch",
        help="Starts it again in the same folder: what is finished is kept.",
    ):
        board.resume(job.id)
        st.rerun()
    told = "Forgets the job and deletes its folder, results too."
    if remove.button("Remove", icon=":material/delete:", width="stretch", help=told):
        board.remove(job.id)
        st.rerun()


def _links(things: Sequence[found.Found]) -> None:
    shown = [thing for thing in things if thing.what in OPENS][:MOST_LINKS]
    for thing in shown:
        page, icon, choice, more = OPENS[thing.what]
        link(page, f"Open {thing.what} {thing.label}", icon, {choice: str(thing.folder), **more})
    if not shown:
        st.caption("It left no results.")


def _log(job: Job, lines: int) -> str:
    path = job.folder / "log.txt"
    return jobwords.tail(path.read_text(encoding="utf-8", errors="replace"), lines) if path.exists() else ""
