"""One door to every trace: a path, a public name, an embedded name or a synthetic specification."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from leankv.serving.errors import InputError, nearest
from leankv.traces import transforms
from leankv.traces.arrivals import PROCESSES, Arrivals
from leankv.traces.catalogue import local_file, public_names, public_trace
from leankv.traces.measured import EMBEDDED_DEFAULT, embedded_names, generate_like
from leankv.traces.mooncake import Spread
from leankv.traces.recognise import read_trace
from leankv.traces.synthetic import generate, is_workload, parse_workload
from leankv.traces.trace import Trace


def open_trace(
    spec: str = EMBEDDED_DEFAULT,
    columns: Mapping[str, str] | None = None,
    *,
    rate_scale: float = 1.0,
    limit: int | None = None,
    seed: int = 0,
    max_prompt: int | None = None,
    max_output: int | None = None,
    spread: Spread = "even",
    arrivals: Arrivals | None = None,
) -> Trace:
    """The trace that `spec` names, then limited, capped and rescaled.

    spec: a path (any format that recognise knows); a public trace downloaded before; an embedded one
    (`azure-conv-2023-like`); or a synthetic one (`gamma:rate=5,cv=2,n=10000`). A path wins over a name.
    columns: role -> column name, for generic files. seed: for everything drawn. spread: of Mooncake ticks.
    arrivals: for length files.

    Raises:
        InputError: one line naming the file, row and mend; for an unknown name, the nearest one.
    """
    trace = _named(spec, columns, seed, spread, arrivals)
    if limit is not None:
        trace = transforms.limit(trace, limit)
    trace = transforms.cap_lengths(trace, max_prompt, max_output)
    return transforms.rate_scale(trace, rate_scale)


def _named(spec: str, columns: Mapping[str, str] | None, seed: int, spread: Spread, arrivals: Arrivals | None) -> Trace:
    path = Path(spec).expanduser()
    # Unlike Path.exists, this takes a workload too long for a file name as simply no file.
    if os.path.exists(path):
        return read_trace(path, columns, seed, spread, arrivals)
    if spec in embedded_names():
        return generate_like(spec, seed)
    if spec in public_names():
        entry = public_trace(spec)
        return read_trace(local_file(entry), columns, seed, spread, arrivals, entry.folder)
    if is_workload(spec):
        return generate(parse_workload(spec, seed))
    raise _nothing_there(spec)


def _nothing_there(spec: str) -> InputError:
    """Most wrong names are paths mistyped; a name without a folder or ending may be a catalogue name mistyped."""
    names = [*embedded_names(), *public_names()]
    stem = Path(spec).name.split(".")[0].replace("_", "-")
    suggestion = nearest(spec, names) or nearest(stem, names)
    sibling = _nearest_file(Path(spec))
    process = nearest(spec.partition(":")[0], PROCESSES) if "=" in spec or ":" in spec else None
    candidates = (f"{process}:..." if process else None, sibling, suggestion)
    mends = [f"did you mean {candidate!r}?" for candidate in candidates if candidate]
    return InputError(f"no trace {spec!r}: no such file and no such name; {' or '.join(mends) or _list(names)}")


def _nearest_file(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.expanduser().parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return None
    near = nearest(path.name, names) if "." in path.name else None
    return str(path.parent / near) if near else None


def _list(names: list[str]) -> str:
    return f"give a path, a workload such as poisson:rate=5, or one of {', '.join(names)}"
