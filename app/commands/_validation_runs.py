"""The runs of a validation: their order, their folders, and what is kept of an earlier call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write
from leankv.serving.runs import Run, config_hash, load_run, save_run
from leankv.simulator.validation import Case

if TYPE_CHECKING:
    from leankv.serving.policies.base import Policy

SIMULATED, KNEE = "simulated", "knee.json"
DISTURBED = 0.15
"""A live run beside which others took more than this share of the cores does not count where another repeat does."""


@dataclass(frozen=True)
class LiveRun:
    """One live run."""

    load: str
    policy: Policy
    repeat: int


def in_turns(repeats: Mapping[str, int], policies: Sequence[Policy]) -> Iterator[LiveRun]:
    """Every run once, repeat by repeat, each time with another policy first: a machine that drifts favours none.

    repeats: by load.
    """
    for repeat in range(max(repeats.values())):
        for number, load in enumerate(repeats):
            first = (repeat + number) % len(policies)
            for policy in (*policies[first:], *policies[:first]) if repeat < repeats[load] else ():
                yield LiveRun(load, policy, repeat)


@dataclass(frozen=True)
class Folders:
    """Where runs lie: ROOT/<load>/<policy>/simulated and live-1, live-2, ...; nowhere without a root.

    Beside them the knee, as the first call found it.
    """

    root: Path | None

    def live(self, run: LiveRun) -> Path | None:
        return self._of(run.load, run.policy.name, f"live-{run.repeat + 1}")

    def kept(self, run: LiveRun, config: Mapping[str, Any]) -> Run | None:
        """The live run that an earlier call finished. Raises InputError for one of other settings in its place."""
        folder = self.live(run)
        if folder is None or not folder.is_dir() or not any(folder.iterdir()):
            return None
        found = load_run(folder)
        if config_hash(found.config) != config_hash(config):
            raise InputError(
                f"{folder} holds a run of other settings; name another --output-dir, remove it, or give the --knee and "
                "--kv-memory-gib that it was made with"
            )
        return found

    def knee(self, asked: Mapping[str, Any]) -> float | None:
        """The rate scale that an earlier call found for what is asked; None where there was none."""
        try:
            found = json.loads((self.root / KNEE).read_text()) if self.root is not None else {}
            return float(found["rate_scale"]) if found.get("of") == config_hash(asked) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save_knee(self, asked: Mapping[str, Any], rate_scale: float) -> None:
        if self.root is not None:
            with atomic_write(self.root / KNEE) as beside:
                beside.write_text(json.dumps({"of": config_hash(asked), "rate_scale": rate_scale}), encoding="utf-8")

    def save_live(self, run: LiveRun, made: Run) -> None:
        if (folder := self.live(run)) is not None:
            save_run(made, folder)

    def save_simulated(self, load: str, policy: str, made: Run) -> None:
        """Replaces what an earlier call simulated: it costs nothing to do again, and the simulator may have changed."""
        if (folder := self._of(load, policy, SIMULATED)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            save_run(made, folder)

    def _of(self, load: str, policy: str, name: str) -> Path | None:
        if self.root is None:
            return None
        return self.root / load / policy.replace(":", "-").replace(",", "-").replace("=", "") / name


def undisturbed(runs: Mapping[int, Run]) -> Mapping[int, Run]:
    """The repeats that others left alone; all of them where there is none such."""
    calm = {repeat: run for repeat, run in runs.items() if (run.summary["machine"]["others"] or 0.0) <= DISTURBED}
    return calm or runs


@dataclass
class Results:
    """What has been simulated and measured so far, by (load, policy); paced: as `Case` has it."""

    simulated: dict[tuple[str, str], Run] = field(default_factory=dict)
    live: dict[tuple[str, str], dict[int, Run]] = field(default_factory=dict)
    paced: dict[tuple[str, str], dict[int, Run]] = field(default_factory=dict)

    def expected_s(self, load: str) -> float:
        """How long one run of each policy should take."""
        return sum(run.summary["duration_s"] for (at, _), run in self.simulated.items() if at == load)

    def add(self, run: LiveRun, made: Run) -> None:
        self.live.setdefault((run.load, run.policy.name), {})[run.repeat] = made

    def repeats(self, load: str) -> int:
        """Live runs of the policy that has most of them."""
        return max((len(runs) for (at, _), runs in self.live.items() if at == load), default=0)

    def cases(self) -> list[Case]:
        """Those that ran live, in the order of the simulated ones; of disturbed runs as few as can be."""
        return [
            Case(policy, load, run, undisturbed(self.live[load, policy]), self.paced.get((load, policy), {}))
            for (load, policy), run in self.simulated.items()
            if (load, policy) in self.live
        ]

    def paces(self, usual_s: float | None) -> dict[tuple[str, str, int], float]:
        """By load, policy and repeat: how slow the machine was, for which the reference usually takes `usual_s`."""
        references = {
            (*case, repeat): run.summary["machine"].get("reference_s")
            for case, runs in self.live.items()
            for repeat, run in runs.items()
        }
        return {case: each / usual_s for case, each in references.items() if each and usual_s}

    def machine(self, usual_s: float | None) -> list[dict[str, Any]]:
        """The machine around each live run, see `leankv.simulator.validation`."""
        paces = self.paces(usual_s)
        rows = []
        for (load, policy), runs in self.live.items():
            calm = undisturbed(runs)
            for repeat, run in runs.items():
                told = {"pace": paces.get((load, policy, repeat)), "counts": repeat in calm}
                rows.append({"load": load, "policy": policy, "repeat": repeat, **run.summary["machine"], **told})
        return rows

    def as_json(self) -> list[dict[str, Any]]:
        """Every summary, simulated and live."""
        runs: list[dict[str, Any]] = []
        for case in self.cases():
            told = {"policy": case.policy, "load": case.load}
            runs.append({**told, "source": "simulated", "summary": dict(case.simulated.summary)})
            runs += [
                {**told, "source": "live", "repeat": repeat, "summary": dict(run.summary)}
                for repeat, run in case.live.items()
            ]
        return runs
