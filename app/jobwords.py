"""Jobs in words: how things stand, how long ago, how long it took. Pure functions of the jobs and of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leankv.app.jobkinds import Kind
from leankv.app.jobs import Job

if TYPE_CHECKING:
    import pyarrow as pa

# state: (icon, what it means)
STATES = {
    "queued": (":material/hourglass_empty:", "waits for its process to start"),
    "running": (":material/progress_activity:", "is at work"),
    "done": (":material/check_circle:", "finished"),
    "failed": (":material/error:", "failed"),
    "cancelled": (":material/cancel:", "was cancelled"),
    "died": (":material/heart_broken:", "died"),
}


def standing(jobs: Sequence[Job], kinds: Mapping[str, Kind], now_s: float) -> str:
    """How things stand, in a sentence or two (Markdown)."""
    if not jobs:
        return "**Nothing has run here yet.** What you start goes on in the background, whatever becomes of this page."
    active = [job for job in jobs if job.active]
    ended = [job for job in jobs if not job.active]
    return " ".join(part for part in (_active(active, kinds), _last(ended, kinds, now_s)) if part)


def _active(jobs: Sequence[Job], kinds: Mapping[str, Kind]) -> str:
    if not jobs:
        return "**Nothing is running.**"
    names = ", ".join(f"{kinds[job.kind].title.lower()} at {job.progress:.0%}" for job in jobs)
    return f"**{len(jobs)} {'job is' if len(jobs) == 1 else 'jobs are'} running**: {names}."


def _last(jobs: Sequence[Job], kinds: Mapping[str, Kind], now_s: float) -> str:
    if not jobs:
        return ""
    last = max(jobs, key=ended_s)
    said = f"The last, a {kinds[last.kind].title.lower()}, {STATES[last.state][1]} {ago(now_s - ended_s(last))}"
    return f"{said}: {last.error.rstrip('.')}." if last.error else f"{said}."


def ended_s(job: Job) -> float:
    """When the job ended; for one that died, when it was last heard of."""
    return job.finished_s or job.heartbeat_s


def took(job: Job, now_s: float) -> str:
    """How long it has been at work, or was."""
    return spell((now_s if job.active else ended_s(job)) - job.created_s)


def spell(seconds: float) -> str:
    """A span of time for people: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def ago(seconds: float) -> str:
    """How long ago, roughly."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(seconds // size)) >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def table(jobs: Sequence[Job], kinds: Mapping[str, Kind], now_s: float) -> pa.Table:
    """A row a job."""
    import pyarrow as pa

    return pa.Table.from_pylist([_row(job, kinds[job.kind], now_s) for job in jobs])


def _row(job: Job, kind: Kind, now_s: float) -> dict[str, Any]:
    return {
        "Job": job.id[:6],
        "What": kind.title,
        "Ended": ago(now_s - ended_s(job)),
        "How": job.state,
        "Took": took(job, now_s),
        "Settings": kind.summary(job.params),
        "Why": job.error,
    }


def tail(log: str, lines: int) -> str:
    """The last lines of a log, without those that only redraw a bar."""
    kept = [line.rpartition("\r")[2] for line in log.splitlines()]
    return "\n".join(kept[-lines:])
