"""The points of a sweep over all cores: each is simulated once, kept in a folder, and not simulated again."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write
from leankv.serving.runs import SCHEMA_VERSION, commit, config_hash
from leankv.traces.transforms import rate_scale

if TYPE_CHECKING:
    from leankv.simulator.config import SimulationConfig
    from leankv.traces.trace import Trace

POLL_S = 0.2
GIVE_UP_S = 2.0


@dataclass(frozen=True, eq=False)
class SweepPoint:
    """One simulation of a sweep: a configuration, and the trace played `rate_scale` times as fast. Equal to itself."""

    config: SimulationConfig
    rate_scale: float


@dataclass(frozen=True)
class Outcome:
    """What became of a point: its summary, or in one line why there is none; a `defect` is the program's fault."""

    point: SweepPoint
    summary: dict[str, Any] | None
    error: str | None = None
    defect: bool = False


class PointStore:
    """Summaries in a folder, a file a point, named by the hash of everything that decides its figures.

    That is the configuration, the trace's content, the rate and the commit: a changed program simulates anew.
    """

    def __init__(self, folder: Path, trace: Trace) -> None:
        self.folder = folder
        self._constant = {"trace_sha256": content_hash(trace), "commit": commit(), "trace": trace.name}

    def read(self, point: SweepPoint) -> dict[str, Any] | None:
        """The kept summary; None where the point is not finished, or its file is unreadable."""
        try:
            summary: dict[str, Any] = json.loads(self._path(point).read_text(encoding="utf-8"))["summary"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return summary

    def write(self, point: SweepPoint, summary: dict[str, Any]) -> None:
        """Keep a finished point. Raises InputError where the folder cannot be written."""
        config = self._config(point)
        content = {
            "schema_version": SCHEMA_VERSION,
            "source": "simulated",
            "config_hash": config_hash(config),
            "config": config,
            "summary": summary,
        }
        with atomic_write(self._path(point)) as beside:
            beside.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")

    def _config(self, point: SweepPoint) -> dict[str, Any]:
        return {**point.config.as_dict(), "rate_scale": point.rate_scale, **self._constant}

    def _path(self, point: SweepPoint) -> Path:
        return self.folder / f"{config_hash(self._config(point))}.json"


def content_hash(trace: Trace) -> str:
    """SHA-256 over the requests themselves, whatever file or name they came from."""
    digest = hashlib.sha256()
    blocks = trace.prefix_hashes
    shared = () if blocks is None else (blocks.offsets, blocks.hashes)
    for column in (trace.arrival_ps, trace.prompt_tokens, trace.output_tokens, *shared):
        digest.update(column.tobytes())
    return digest.hexdigest()


def simulate_points(
    points: Sequence[SweepPoint], trace: Trace, workers: int, progress: Callable[[float], None]
) -> Generator[Outcome]:
    """Simulate every point in `workers` processes; yields each as it finishes, in no certain order.

    A point that cannot be simulated is an outcome with an error, and the others go on. Closing the iterator (or
    Ctrl-C) ends the processes; `progress` is told the share of finished points several times a second.

    Raises:
        InputError: a process was killed, most likely for want of memory.
    """
    with _pool(workers) as pool:
        futures = {pool.submit(simulated_summary, point, trace): point for point in points}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                yield _outcome(futures[future], future)
            progress(1 - len(pending) / len(points))


def simulated_summary(point: SweepPoint, trace: Trace) -> dict[str, Any]:
    """What a worker does for one point."""
    from leankv.simulator.run import simulate

    return dict(simulate(point.config, rate_scale(trace, point.rate_scale)).summary)


def _outcome(point: SweepPoint, future: Future[dict[str, Any]]) -> Outcome:
    try:
        return Outcome(point, future.result())
    except InputError as error:
        return Outcome(point, None, str(error))
    except BrokenProcessPool:
        raise InputError("a worker was killed, likely for want of memory; run again with fewer --workers") from None
    except Exception as error:
        # One point's defect must not cost the others.
        return Outcome(point, None, f"{type(error).__name__}: {error}", defect=True)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes, which leave Ctrl-C to this one; whatever ends the block early ends them too."""
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_ctrl_c)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(active_children()) - others:
            child.terminate()
        _await_managers()
        raise
    pool.shutdown()


def _await_managers() -> None:
    """Let threads that manage pools finish: an interpreter that exits while one closes its pipe complains of it."""
    for thread in threading.enumerate():
        if type(thread).__module__ == ProcessPoolExecutor.__module__:
            thread.join(GIVE_UP_S)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
