"""Times the steps of a grid under one policy, with a reference before and after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from leankv.backend.calibration.design import Grid, PointSpec, Scene, point_tokens
from leankv.backend.calibration.reference import LIMIT, Reference, best_s
from leankv.backend.calibration.rig import Rig, Timed
from leankv.backend.engine import Engine
from leankv.serving.policies.base import Policy
from leankv.serving.policies.budgets import Residual
from leankv.serving.step_samples import StepSample

Progress = Callable[[float], None]


def time_steps(rig: Rig, grid: Grid, reference: Reference, number: int, progress: Progress) -> list[StepSample]:
    """Measure the grid, in the round of this number. Points that the pool cannot hold are left out; those that were
    disturbed are measured again, so a quiet machine takes less time. What counts is judged later, over all rounds.

    On a GPU every point is taken once before it is timed, since kernels are compiled when a shape first needs them.
    """
    timing = _Timing(rig, grid, reference, number, progress, rehearse=rig.engine.device.type == "cuda")
    for scene in grid.scenes:
        timing.scene(scene)
    for scene in grid.scenes * grid.more_rounds:
        if (part := timing.disturbed(scene)).points:
            timing.scene(part)
    return timing.samples


class _Timing:
    """Samples so far, and how far it has come."""

    def __init__(
        self, rig: Rig, grid: Grid, reference: Reference, number: int, progress: Progress, rehearse: bool = False
    ) -> None:
        self.rig, self.grid, self.reference, self.number, self.progress = rig, grid, reference, number, progress
        self.rehearse = rehearse
        self.samples: list[StepSample] = []
        self.rehearsed: set[int] = set()
        self.done = 0
        self.reference.seconds()

    def scene(self, scene: Scene) -> None:
        """Every point of a scene in its order; one step comes first that does not count."""
        self.rig.fill(scene.contexts)
        if scene.contexts:
            self.rig.step()
        for point in scene.points:
            self.rig.keep(point.batch)
            if len(self.rig.decoding) == point.batch:
                self._rehearse(point)
                for _ in range(self.grid.prompts if point.chunks else self.grid.decodes):
                    self._point(point)
            self.done += point_tokens(point)
            self.progress(min(1.0, self.done / self.grid.tokens))
        self.rig.keep(0)

    def disturbed(self, scene: Scene) -> Scene:
        """The scene's points that have no undisturbed step."""
        best = best_s([sample.reference_s for sample in self.samples])
        good = {sample.point for sample in self.samples if sample.reference_s <= LIMIT * best}
        return replace(scene, points=tuple(point for point in scene.points if point.number not in good))

    def _rehearse(self, point: PointSpec) -> None:
        if self.rehearse and point.number not in self.rehearsed:
            self.rehearsed.add(point.number)
            self.rig.step(point.chunks)

    def _point(self, point: PointSpec) -> None:
        before = self.reference.seconds()
        timed = self.rig.step(point.chunks)
        after = self.reference.seconds()
        if timed is not None:
            sample = _sample(self.rig.engine, point, timed, max(before, after))
            self.samples.append(replace(sample, round=self.number))


def move_every(policy: Policy) -> int:
    """Decode steps from one time that a request's tokens change tier in bulk to the next; 1 where they never do."""
    if isinstance(policy.budget, Residual):
        return policy.budget.block
    return max(1, policy.trigger.steps)


def _sample(engine: Engine, point: PointSpec, timed: Timed, reference_s: float) -> StepSample:
    """Whether it counts is not known yet."""
    row, policy, head_dim = timed.row, engine.policy, engine.cache.shape.head_dim
    widths = [tier.format.bytes_per_token(head_dim) for tier in policy.tiers]
    read = [held * width for held, width in zip(timed.held, [*widths, 0.0], strict=False)]
    return StepSample(
        policy=policy.name,
        regime="prefill" if not row.decoding else "mixed" if row.chunks else "decode",
        point=point.number,
        round=0,
        seconds=timed.seconds,
        reference_s=reference_s,
        reference=1.0,
        pace=1.0,
        kept=True,
        tokens=row.decoding + sum(tokens for _, tokens in row.chunks),
        rows=row.sequences + len(row.completed),
        decoding=row.decoding,
        attended=row.attended,
        read_bytes_tier0=read[0],
        read_bytes_tier1=read[1],
        chunks=len(row.chunks),
        chunk_tokens=sum(tokens for _, tokens in row.chunks),
        context_tokens=sum(context for context, _ in row.chunks),
        pairs=sum(tokens * context + tokens * (tokens + 1) / 2 for context, tokens in row.chunks),
        completed=len(row.completed),
        completed_tokens=sum(row.completed),
        moved=timed.fewer if move_every(policy) > 1 else 0,
        pages=row.staging + row.tier0 + row.tier1,
    )
