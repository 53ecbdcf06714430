"""Synthetic workloads from a specification of one line.

    PROCESS[:KNOB=VALUE,...]

    PROCESS    poisson | gamma | weibull | mmpp | even | closed (all at time 0, for closed-loop replay)
    n          requests (default 1000), or seconds=S for rate * S of them
    rate       requests a second (default 1)
    cv         burstiness of gamma and weibull: standard deviation of the gaps over their mean
    burst, burst_s, burst_share    mmpp: rate in a burst over that in the calm, a burst's mean length, its share of time
    diurnal, period_s              depth of the day (0 to 1) and its length
    prompt, output                 512 | lognormal:MEDIAN:SIGMA | zipf:EXPONENT:MAX | table:NAME
    corr       Spearman's rank correlation between prompt and output
    seed       overrides the command's

Lengths left out are those of the embedded Azure conversation table, with its correlation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from leankv.serving.errors import InputError, unknown_name
from leankv.traces.arrivals import PROCESSES, Arrivals
from leankv.traces.measured import EMBEDDED_DEFAULT
from leankv.traces.sizes import Lengths, draw_lengths, parse_lengths, read_table
from leankv.traces.trace import Trace

ARRIVAL_KNOBS = tuple(knob.name for knob in fields(Arrivals) if knob.name != "process")
OTHER_KNOBS = ("n", "seconds", "prompt", "output", "corr", "seed")
MOST_REQUESTS = 100_000_000


@dataclass(frozen=True)
class Workload:
    """A parsed specification; `spec` is the text it came from."""

    spec: str
    arrivals: Arrivals
    requests: int
    prompt: Lengths
    output: Lengths
    rank_correlation: float
    seed: int


def is_workload(spec: str) -> bool:
    """Whether the text names a synthetic workload (its process is known) rather than a file or a named trace."""
    return spec.partition(":")[0].strip() in PROCESSES


def parse_arrivals(spec: str) -> Arrivals:
    """The arrival process of `PROCESS[:KNOB=VALUE,...]`, arrival knobs only."""
    process, knobs = _parse(spec, ARRIVAL_KNOBS)
    return _arrivals(spec, process, knobs)


def parse_workload(spec: str, seed: int = 0) -> Workload:
    """Read a specification (grammar above).

    Raises:
        InputError: an unknown process or knob (with the nearest name), or a value out of range.
    """
    process, knobs = _parse(spec, (*ARRIVAL_KNOBS, *OTHER_KNOBS))
    arrivals = _arrivals(spec, process, knobs)
    prompt, output = (
        parse_lengths(knobs.get(role, f"table:{EMBEDDED_DEFAULT}"), role) for role in ("prompt", "output")
    )
    both_default = "prompt" not in knobs and "output" not in knobs
    corr = read_table(EMBEDDED_DEFAULT)["rank_correlation"] if both_default else 0.0
    return Workload(
        spec=spec,
        arrivals=arrivals,
        requests=_requests(spec, arrivals, knobs),
        prompt=prompt,
        output=output,
        rank_correlation=_number(spec, knobs, "corr", corr),
        seed=int(_number(spec, knobs, "seed", seed)),
    )


def generate(workload: Workload) -> Trace:
    """Draw the workload's requests; the same workload gives the same trace.

    Raises:
        InputError: arrivals that would span over 106 days, or a correlation outside (-1, 1).
    """
    when, what = (np.random.default_rng([workload.seed, stream]) for stream in (0, 1))
    n = workload.requests
    prompt, output = draw_lengths(what, n, workload.prompt, workload.output, workload.rank_correlation)
    return Trace(
        name=workload.spec,
        arrival_ps=workload.arrivals.draw(when, n),
        prompt_tokens=prompt.astype(np.int32),
        output_tokens=output.astype(np.int32),
        provenance={"format": "synthetic", "spec": workload.spec, "seed": workload.seed},
    )


def _parse(spec: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    process, _, rest = spec.partition(":")
    if process.strip() not in PROCESSES:
        raise unknown_name("arrival process", process.strip(), PROCESSES)
    knobs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        knob, equals, value = part.partition("=")
        if knob not in known:
            raise unknown_name(f"knob of {process}", knob, known)
        if not equals or not value or knob in knobs:
            raise InputError(f"{spec}: {part!r} must be {knob}=VALUE, once")
        knobs[knob] = value
    return process.strip(), knobs


def _arrivals(spec: str, process: str, knobs: Mapping[str, str]) -> Arrivals:
    return Arrivals(process, **{knob: _number(spec, knobs, knob, 0) for knob in ARRIVAL_KNOBS if knob in knobs})


def _requests(spec: str, arrivals: Arrivals, knobs: Mapping[str, str]) -> int:
    if "n" in knobs and "seconds" in knobs:
        raise InputError(f"{spec}: n and seconds both say how many requests; give one of them")
    n = _number(spec, knobs, "n", 1000.0)
    if "seconds" in knobs:
        n = round(_number(spec, knobs, "seconds", 0) * arrivals.rate)
    if not (1 <= n <= MOST_REQUESTS and n == int(n)):
        raise InputError(f"{spec}: {n:g} requests; give a whole number from 1 to {MOST_REQUESTS}")
    return int(n)


def _number(spec: str, knobs: Mapping[str, str], knob: str, default: float) -> float:
    try:
        value = float(knobs[knob]) if knob in knobs else float(default)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or (knob == "seed" and (value < 0 or value != int(value))):
        raise InputError(f"{spec}: {knob}={knobs[knob]} is not a {'seed' if knob == 'seed' else 'number'}")
    return value
