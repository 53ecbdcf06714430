"""`leankv tune`: the knobs of LeanKV with the smallest cache that a bound on quality allows, for one model.

Loss is the relative rise of perplexity over fp16, window by window through the engine's own cache in decode mode. The
search sees held-in windows alone; what it finds is then scored on windows that it never saw. Under each bound the
answer is the smallest cache of all trials that are known, those of the other bounds and of earlier calls included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.evaluation.follow import follow, require_context
from leankv.backend.evaluation.items import Item
from leankv.backend.evaluation.shared_prompts import SharedPrompts
from leankv.backend.evaluation.tune_search import Judge, Knobs, Point, Trial, search, smallest
from leankv.backend.weights import Loaded
from leankv.kernels.selectors import scored_queries
from leankv.serving.errors import InputError
from leankv.serving.paired import BASELINE
from leankv.serving.policies.base import Policy
from leankv.serving.policies.registry import policy_named
from leankv.serving.runs import config_hash
from leankv.serving.sample_bootstrap import KIND, expanded_interval_of_mean

Floats = npt.NDArray[np.float64]
Progress = Callable[[float], None]
Measure = Callable[[Policy, Point], Trial]
BATCH = 16
"""Windows that are scored together; a decode step costs nearly the same for more."""
JOURNAL = "tune-journal.jsonl"
Levels = tuple[float, ...]
GRIDS: Mapping[str, tuple[tuple[str, str], Levels, Levels]] = {
    "leankv": (
        ("alpha_low", "alpha_high"),
        (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8),
        (0, 0.3, 1, 2, 3, 5, 8, 16, 32, 64),
    ),
    "leankv-r": (
        ("prune", "low_mass"),
        (0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
        (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 0.95, 1),
    ),
}
"""Knobs and their levels. The last ones are ends that no search passes, far beyond what is published: alpha_low 8 drops
what has less than eight times the average attention, alpha_high 64 holds low what has less than 64 times it. A level is
tried only where milder ones are allowed, so a high end costs no trial elsewhere."""
USUAL_TRIALS, MORE_TRIALS = 20, 14
"""Of the first bound and of each further one, about. For the progress alone."""
HELD_OUT_SHARE = 0.1
"""Of the progress: what the scores on held-out windows are taken to be."""


def knobs_of(spec: str) -> Knobs:
    """The two knobs of `leankv` or `leankv-r` that are tuned; what follows a colon is held fixed.

    Raises InputError for another policy, or where a knob to be tuned is fixed.
    """
    name, _, fixed = spec.partition(":")
    policy_named(spec)
    if name not in GRIDS:
        raise InputError(f"--policy {spec} has no thresholds to tune; choose from {', '.join(GRIDS)}")
    names, first, second = GRIDS[name]
    for knob in names:
        if any(setting.startswith(f"{knob}=") for setting in fixed.split(",")):
            raise InputError(f"--policy {spec}: {knob} is what is tuned; leave it out")
    return Knobs(spec, names, first, second)


class Meter:
    """Scores policies on fixed windows against fp16, which is scored first.

    items: two or more forced windows, all with as many scored tokens. means: for policies that
    centre keys. Raises InputError for windows longer than the model reads.
    """

    def __init__(
        self, loaded: Loaded, items: Sequence[Item], means: KeyMeans | None, policies: Sequence[Policy]
    ) -> None:
        require_context(loaded, items)
        queries = max(scored_queries(policy, loaded.max_context) for policy in policies)
        plain = [replace(item, compared=False) for item in items]
        self._batches = [
            (replace(loaded, model=SharedPrompts(loaded.model, queries)), plain[first : first + BATCH])
            for first in range(0, len(items), BATCH)
        ]
        self._means = means
        self._scored = len(items[0].forced) - items[0].scored_from
        self._baseline = self._nats(policy_named(BASELINE))[0]

    def measure(self, policy: Policy, point: Point) -> Trial:
        """Run the policy on all windows."""
        nats, plain, payload, pages = self._nats(policy)
        # Differences of whole windows are resampled, so that a window's own difficulty is in neither.
        rises = (nats - self._baseline) / self._scored
        low, high = expanded_interval_of_mean(rises)
        interval = float(np.expm1(low)), float(np.expm1(high))
        return Trial(point, float(np.expm1(rises.mean())), interval, plain / payload, plain / pages)

    def _nats(self, policy: Policy) -> tuple[Floats, int, int, int]:
        """Negative log-probability of each window, and its bytes in FP16, in payload and in pages, summed."""
        outcomes = [
            outcome for loaded, items in self._batches for outcome in follow(loaded, policy, items, self._means, {})
        ]
        nats = -np.array([sum(outcome.log_probabilities) for outcome in outcomes])
        sums = (sum(getattr(each, f"{part}_bytes") for each in outcomes) for part in ("fp16", "payload", "page"))
        plain, payload, pages = sums
        return nats, plain, payload, pages


class Trials:
    """Trials by policy with all its knobs, remembered on disk as they are made: a search that was cut off goes on.

    settings: all that a trial depends on but the policy. Earlier trials under other settings are left alone.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = None if folder is None else folder / JOURNAL
        # A trial keeps its interval, not its windows: intervals of different kinds must not be told as one.
        self._settings = config_hash({**settings, "intervals": KIND})
        self._known: dict[str, Trial] = {}
        if self._path is not None and self._path.is_file():
            self._read(self._path)

    def get(self, policy: Policy, measure: Callable[[], Trial]) -> Trial:
        """The trial of a policy, measured now if it is new."""
        specification = repr(policy)
        if specification not in self._known:
            self._known[specification] = measure()
            self._write(specification)
        return self._known[specification]

    def of(self, knobs: Knobs) -> dict[str, Trial]:
        """By setting, all trials of these knobs, those of earlier calls included."""
        found = {}
        for specification, trial in self._known.items():
            spec = knobs.spec(trial.point)
            with suppress(InputError):  # another policy's knobs, out of range for this one
                if repr(policy_named(spec)) == specification:
                    found[spec] = trial
        return found

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                line = json.loads(text)
                if line["settings"] == self._settings:
                    self._known[line["policy"]] = trial_of(line["trial"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} line {number} is no trial; remove the file") from error
        if len(whole) < len(data):
            os.truncate(path, len(whole))

    def _write(self, specification: str) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        trial = asdict(self._known[specification])
        line = {"settings": self._settings, "policy": specification, "trial": trial}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def trial_of(stored: Mapping[str, Any]) -> Trial:
    """A trial as JSON gives it back."""
    pairs = {name: (float(stored[name][0]), float(stored[name][1])) for name in ("point", "interval")}
    return Trial(**{**stored, **pairs})


@dataclass(frozen=True)
class Found:
    """One policy at one bound. `held_out` is None where nothing was allowed.

    at_end: knobs, as name=value, at the last level of their grid: a smaller cache may lie beyond, which is never tried.
    """

    policy: str
    bound: float
    spec: str | None
    held_in: Trial | None
    held_out: Trial | None
    trials: Mapping[str, Trial]
    at_end: Sequence[str] = ()


def tune(
    knobs: Knobs,
    bounds: Sequence[float],
    measures: Sequence[Measure],
    trials: Sequence[Trials],
    judge: Judge,
    progress: Progress,
) -> list[Found]:
    """Search at every bound, take for each the best of all trials, and score it on held-out text.

    measures, trials: of held-in text, then of held-out text.
    """
    seen: dict[str, Trial] = {}
    expected = USUAL_TRIALS + MORE_TRIALS * (len(bounds) - 1)

    def evaluate(point: Point) -> Trial:
        spec, policy = knobs.spec(point), policy_named(knobs.spec(point))
        seen[spec] = trials[0].get(policy, partial(measures[0], policy, point))
        progress((1 - HELD_OUT_SHARE) * min(1.0, len(seen) / expected))
        return seen[spec]

    search(knobs, evaluate, bounds, judge)
    # Of earlier calls with other bounds: after the search, so that one that was cut off ends as if it had not been.
    known = {**trials[0].of(knobs), **seen}
    found = []
    for bound in bounds:
        best = smallest(known.values(), bound, judge)
        if best is None:
            found.append(Found(knobs.policy, bound, None, None, None, known))
            continue
        spec = knobs.spec(best.point)
        policy = policy_named(spec)
        confirmed = trials[1].get(policy, partial(measures[1], policy, best.point))
        found.append(Found(knobs.policy, bound, spec, best, confirmed, known, knobs.at_end(best.point)))
    progress(1.0)
    return found
