"""Which steps are measured: batches of ragged contexts, chunks of prompts, and both together, as real traffic has them.

Everything follows from three limits, so that a small model or a quick look gets a small grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from random import Random

from leankv.backend.calibration.rig import OUTPUT, REST, ChunkSpec

SCALES = (0.03, 0.1, 0.35, 0.85)
QUICK_SCALES = (0.1, 0.5)
SIZES = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048)
QUICK_SIZES = (1, 8, 24, 48)
EVERY = 8
"""One scene has every batch up to this: a library's kernels for few rows cost what they cost, now more, now less."""
MOST_CONTEXTS = 3
"""Of the longest context: the tokens that a scene holds at most."""
TOGETHER = ((0.25, 3), (0.06, 8))
"""Shares of the largest chunk, and how many prompts of it a step computes."""
AFTER_A_CONTEXT = ((0.1, 0.2, True), (0.4, 0.4, False), (0.1, 0.7, False), (0.25, 0.7, True))
"""Shares of the largest chunk and of the longest context, and whether the prompt ends with it."""


@dataclass(frozen=True)
class PointSpec:
    """One step, under its number: all that decode beside `chunks`; the first `batch` requests decode."""

    number: int
    batch: int
    chunks: tuple[ChunkSpec, ...] = ()


@dataclass(frozen=True)
class Scene:
    """Requests of `contexts` decode; points: in the order in which the batch shrinks."""

    contexts: tuple[int, ...]
    points: tuple[PointSpec, ...]


@dataclass(frozen=True)
class Grid:
    """decodes, prompts: how often a step without prompts and one with them are repeated.

    more_rounds: for the points that had no undisturbed step till then; filling caches anew takes longer than most
    steps, so nothing else is visited twice.
    """

    scenes: tuple[Scene, ...]
    decodes: int
    prompts: int
    more_rounds: int

    @property
    def tokens(self) -> int:
        """Tokens computed, prompts and decodes, in the first round: what the time it takes follows."""
        return sum(point_tokens(point) for scene in self.scenes for point in scene.points)


def point_tokens(point: PointSpec) -> int:
    return point.batch + sum(chunk.tokens for chunk in point.chunks)


def grid_of(max_num_seqs: int, max_num_batched_tokens: int, max_context: int, quick: bool, seed: int = 0) -> Grid:
    """The grid of one policy; the same for all, so that they can be compared."""
    numbers, draw = count(), Random(seed)
    longest = max_context - OUTPUT - REST
    scales = QUICK_SCALES if quick else SCALES
    scenes = [
        _scene(numbers, draw, scale * longest, longest, max_num_seqs, max_num_batched_tokens, 1 if place else EVERY)
        for place, scale in enumerate(scales)
    ]
    prompts = tuple(_prompts(numbers, max_num_batched_tokens, max_num_seqs, longest, quick))
    decodes, repeated, more_rounds = (2, 1, 0) if quick else (1, 1, 1)
    return Grid((Scene((), prompts), *scenes), decodes, repeated, more_rounds)


def _scene(
    numbers: Iterator[int], draw: Random, mean: float, longest: int, max_num_seqs: int, max_tokens: int, every: int
) -> Scene:
    """Contexts between half and three halves of the mean; every batch decodes, some of them beside a chunk.

    Fewer long contexts, since filling caches takes time: what they cost is linear in what is read.
    """
    count = max(1, min(max_num_seqs, int(MOST_CONTEXTS * longest / mean)))
    contexts = tuple(max(2, min(longest, round(mean * (0.5 + draw.random())))) for _ in range(count))
    batches = _batches(count, every)
    points = []
    for place, batch in enumerate(batches):
        points.append(PointSpec(next(numbers), batch))
        if place % 2:
            points.append(PointSpec(next(numbers), batch, (_beside(draw, batch, max_tokens, longest),)))
    return Scene(contexts, tuple(points))


def _batches(most: int, every: int) -> list[int]:
    """The most, powers of two below it down to 1, and all up to `every`."""
    powers = (1 << power for power in range(most.bit_length()))
    return sorted({most, *powers, *range(1, min(most, every) + 1)}, reverse=True)


def _beside(draw: Random, batch: int, max_tokens: int, longest: int) -> ChunkSpec:
    """A chunk that fits beside a batch, of any size up to half a full step; half of them after a context."""
    room = max(1, min(max_tokens - batch, longest // 2, max_tokens // 2))
    tokens = max(1, round(room ** (0.4 + 0.6 * draw.random())))
    context = draw.randrange(1, max(2, longest - tokens)) if draw.random() < 0.5 else 0
    return ChunkSpec(context, tokens, draw.random() < 0.75)


def _prompts(
    numbers: Iterator[int], max_tokens: int, max_num_seqs: int, longest: int, quick: bool
) -> Iterator[PointSpec]:
    """Whole prompts of every size, several at once, and chunks after a context."""
    sizes = [size for size in (QUICK_SIZES if quick else SIZES) if size <= min(max_tokens, longest)]
    for size in sizes:
        yield PointSpec(next(numbers), 0, (ChunkSpec(0, size),))
    for share, together in TOGETHER:
        size = round(share * min(max_tokens, longest))
        if size and together <= max_num_seqs and size * together <= max_tokens:
            yield PointSpec(next(numbers), 0, (ChunkSpec(0, size),) * together)
    for share, before, last in AFTER_A_CONTEXT:
        size, context = round(share * min(max_tokens, longest)), round(before * longest)
        if size and size + context <= longest:
            yield PointSpec(next(numbers), 0, (ChunkSpec(context, size, last),))
