"""A fixed piece of work, timed around every measured step: when it is slow, something else had the machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leankv.serving.step_samples import StepSample

LIMIT = 1.5
"""A step counts if the work before and after it took at most so many times its best.

On two cores that another job used half of the time, single steps whose reference was below 1.5 lasted alike, whatever
it was, and those above it 1.5 times as long: one reference tells who was disturbed, but not by how much.
"""
AROUND = 11
"""Steps over which the machine's pace is averaged.

Over so many steps of a quiet machine that others share, logarithms of step times (over the fit) and of references had a
correlation of 0.84 with a slope of 0.8, over a whole round of one policy 0.77 with 1.1; of single steps 0.60 with 0.5.
"""
QUIET, TOO_NOISY = 0.9, 0.1
"""Undisturbed steps, as a share of all, that make a machine quiet; points without any, likewise, that are too many."""
BEST = 0.1
"""The reference's best time is this quantile of all: one lucky sample should not make the others look disturbed."""
ROWS = 4
LEAST, MOST = 1 << 12, 1 << 23
"""Elements of a matrix, and of all together."""


class Reference:
    """Products of a few rows with the model's own first matrices: a short step's reads, threads and launches."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        taken = 0
        for matrix in model.parameters():
            if matrix.ndim == 2 and matrix.numel() >= LEAST and taken + matrix.numel() <= MOST:
                taken += matrix.numel()
                rows = torch.full((ROWS, matrix.shape[1]), 1e-3, dtype=matrix.dtype, device=matrix.device)
                self.pairs.append((rows, matrix.detach()))
        assert self.pairs, "a model has matrices"

    @torch.inference_mode()
    def seconds(self) -> float:
        self._wait()
        began = time.perf_counter()
        for rows, matrix in self.pairs:
            torch.nn.functional.linear(rows, matrix)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.pairs[0][0].is_cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Noise:
    """How disturbed a machine was. steps: timed; undisturbed: share of them; lost: share of the points that have no
    undisturbed step; slowest_tenth: the reference's ninth decile over its best; drift: its median in the slowest round
    over that in the fastest; rounds: how many there were; verdict: quiet, noisy or too noisy. usual_s: the reference's
    median under all policies, in seconds: what a pace of 1 means.
    """

    steps: int
    undisturbed: float
    lost: float
    slowest_tenth: float
    drift: float
    rounds: int
    verdict: str
    usual_s: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judged(samples: Sequence[StepSample], steady: bool = False) -> tuple[list[StepSample], dict[str, Noise]]:
    """Which steps of all policies and rounds count, at which pace of the machine they ran, and how disturbed it was
    under each policy.

    The reference is the same work under every policy, so its best time, and its usual one, is that of all of them.

    steady: the machine has one pace, as a GPU has: there the reference tells how fast the host launches, which decides
    whether a step was disturbed, but not how long it lasts.
    """
    best = best_s([sample.reference_s for sample in samples])
    scaled = [replace(sample, reference=sample.reference_s / best) for sample in samples]
    kept = kept_of([sample.reference for sample in scaled], [(sample.policy, sample.point) for sample in scaled])
    judgements = zip(scaled, kept, [1.0] * len(scaled) if steady else paces(scaled), strict=True)
    marked = [replace(sample, kept=good, pace=pace) for sample, good, pace in judgements]
    usual_s = float(np.median([sample.reference_s for sample in samples]))
    by_policy: dict[str, list[StepSample]] = {}
    for sample in marked:
        by_policy.setdefault(sample.policy, []).append(sample)
    return marked, {policy: noise_of(each, usual_s) for policy, each in by_policy.items()}


def paces(samples: Sequence[StepSample]) -> list[float]:
    """How slow the machine was around each step: the geometric mean of the references before and after it in the same
    round of the same policy, over the median of all.
    """
    logs = np.log([sample.reference_s for sample in samples])
    blocks: dict[tuple[str, int], list[int]] = {}
    for place, sample in enumerate(samples):
        blocks.setdefault((sample.policy, sample.round), []).append(place)
    around = np.empty(len(samples))
    for places in blocks.values():
        mine, reach = logs[places], AROUND // 2
        around[places] = [mine[max(0, at - reach) : at + reach + 1].mean() for at in range(len(mine))]
    found: list[float] = np.exp(around - np.median(logs)).tolist()
    return found


def best_s(references_s: Sequence[float]) -> float:
    return float(np.quantile(references_s, BEST))


def noise_of(samples: Sequence[StepSample], usual_s: float) -> Noise:
    """Of one policy's steps, whose `reference` is known."""
    references = [sample.reference for sample in samples]
    good = [reference <= LIMIT for reference in references]
    found = {sample.point for sample, each in zip(samples, good, strict=True) if each}
    share, lost = float(np.mean(good)), 1 - len(found) / len({sample.point for sample in samples})
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        rounds.setdefault(sample.round, []).append(sample.reference)
    medians = [float(np.median(each)) for each in rounds.values()]
    verdict = "too noisy" if lost > TOO_NOISY else "quiet" if share >= QUIET else "noisy"
    slowest = float(np.quantile(references, 0.9))
    return Noise(len(good), share, lost, slowest, max(medians) / min(medians), len(rounds), verdict, usual_s)


def kept_of(references: Sequence[float], points: Sequence[Any]) -> list[bool]:
    """Which steps count: undisturbed ones, and of a point that has none the least disturbed."""
    least: dict[Any, float] = {}
    for reference, point in zip(references, points, strict=True):
        least[point] = min(reference, least.get(point, np.inf))
    pairs = zip(references, points, strict=True)
    return [reference <= max(LIMIT, least[point]) for reference, point in pairs]
