"""Simulating while the page waits: a run a policy, with progress, each kept, so that a change of view is free."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import streamlit as st

from leankv.app.runcache import RecentlyUsed
from leankv.app.scenario import Scenario, file_version, traffic
from leankv.serving.errors import InputError

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from leankv.serving.runs import Run
    from leankv.traces.trace import Trace

KEPT_REQUESTS = 2_000_000  # rows of runs kept in memory, over all sessions: about half a gigabyte


@st.cache_resource
def _runs() -> RecentlyUsed[Run]:
    return RecentlyUsed(KEPT_REQUESTS, lambda run: run.requests.num_rows)


@st.cache_resource(max_entries=4, show_spinner="Reading the trace")
def _opened(spec: str, version: str, seed: int) -> Trace:
    from leankv.traces.open import open_trace

    return open_trace(spec, seed=seed)


def opened_traffic(scenario: Scenario) -> Trace:
    """The scenario's requests. Raises InputError where the trace cannot be read."""
    opened = _opened(scenario.trace, file_version(scenario.trace), scenario.seed)
    return traffic(opened, scenario.rate_scale, scenario.limit)


def simulated(scenario: Scenario, trace: Trace) -> tuple[dict[str, Run], dict[str, str]]:
    """A run for each policy that can run, and for the others the line that says what to mend."""
    runs: dict[str, Run] = {}
    errors: dict[str, str] = {}
    place = st.empty()
    for index, policy in enumerate(scenario.policies):
        alone = replace(scenario, policies=(policy,))
        label = f"Simulating {policy} ({index + 1} of {len(scenario.policies)})"
        try:
            runs[policy] = _runs().get(
                (alone, *alone.versions.values()), partial(_simulate, alone, trace, place, label)
            )
        except InputError as error:
            errors[policy] = str(error)
    place.empty()
    return runs, errors


def _simulate(scenario: Scenario, trace: Trace, place: DeltaGenerator, label: str) -> Run:
    from leankv.simulator.run import simulate

    last = time.monotonic()

    def report(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > 0.1:
            last = time.monotonic()
            # drawing also lets a newer choice of the visitor stop this run
            place.progress(min(share, 1.0), label)

    (policy,) = scenario.policies
    return simulate(scenario.config(policy), trace, report)
