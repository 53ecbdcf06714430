"""What a calibration needs before it starts: the model on its device, texts with what attention saw of them, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.calibration.design import Grid, grid_of
from leankv.backend.calibration.stored import Text
from leankv.backend.capture import capture
from leankv.backend.key_means import mean_keys, rope_frequencies
from leankv.backend.live_setup import GIB, described, device_named, free_bytes, loaded_on, pool_bytes
from leankv.backend.processor import with_processor
from leankv.backend.prompts import prompts_of
from leankv.backend.texts import essays
from leankv.backend.weights import Loaded
from leankv.serving.errors import InputError
from leankv.serving.formats import FP16
from leankv.serving.models import ModelSpec, model_of_config
from leankv.serving.policies.base import Policy
from leankv.serving.pool_plan import page_bytes_of
from leankv.serving.scheduler import SchedulerLimits

TEXTS, QUICK_TEXTS = 4, 2
FREE_SHARE = 0.7


@dataclass(frozen=True, eq=False)
class Calibration:
    """device: in words, with memory_bytes. kv_memory_bytes: the pool that a server would have; what is measured may use
    another, so that its batches fit.
    """

    loaded: Loaded
    model: ModelSpec
    device: Mapping[str, Any]
    texts: Sequence[Text]
    key_means: KeyMeans
    limits: SchedulerLimits
    max_context: int
    kv_memory_bytes: int
    quick: bool

    @property
    def grid(self) -> Grid:
        limits = self.limits
        return grid_of(limits.max_num_seqs, limits.max_num_batched_tokens, self.max_context, self.quick)

    def bench_bytes(self, policy: Policy) -> int:
        """A pool in which the grid's largest batch fits uncompressed, or what is free."""
        largest = max(sum(scene.contexts) for scene in self.grid.scenes) + self.max_context
        rows = self.loaded.layers * self.loaded.kv_heads
        plain = largest * rows * FP16.payload_bytes(self.loaded.head_dim)
        ends = 4 * self.limits.max_num_seqs * rows * page_bytes_of([policy], self.loaded.head_dim)
        wanted = int(1.5 * plain) + ends + (1 << 24)
        free = free_bytes(self.loaded.model.device.type)
        return wanted if free is None else min(wanted, int(FREE_SHARE * free))


def calibration(
    model: str, backend: str, limits: SchedulerLimits, max_context: int, kv_memory_gib: float | None, quick: bool
) -> Calibration:
    """Load everything.

    Raises InputError: no such model or GPU, a model or pool that does not fit, a text package that is missing, a
    context too short to measure.
    """
    device = device_named(backend)
    loaded = loaded_on(model, device)
    spec = model_of_config(loaded.model.config.to_dict(), loaded.name, loaded.source)
    tokens = prompts_of(essays(), loaded.tokenizer, [min(max_context, loaded.max_context)] * _texts(quick))
    return calibration_of(loaded, spec, tokens, limits, pool_bytes(device, kv_memory_gib), quick)


def calibration_of(
    loaded: Loaded,
    model: ModelSpec,
    tokens: Sequence[Sequence[int]],
    limits: SchedulerLimits,
    kv_memory_bytes: int,
    quick: bool,
) -> Calibration:
    """From a model that is loaded and texts in token ids, all of one length: the longest context to measure."""
    longest = len(tokens[0])
    if longest < SHORTEST:
        raise InputError(f"--max-context {longest}: give at least {SHORTEST}; the model has {loaded.max_context}")
    texts = [Text(each, capture(loaded, torch.tensor(each))) for each in tokens]
    kind = loaded.model.device.type
    where = {**with_processor(described(loaded, kind)), "memory_bytes": _memory_bytes(kind)}
    means = mean_keys([text.captured for text in texts], rope_frequencies(loaded))
    return Calibration(loaded, model, where, texts, means, limits, longest, kv_memory_bytes, quick)


SHORTEST = 128


def _texts(quick: bool) -> int:
    return QUICK_TEXTS if quick else TEXTS


def _memory_bytes(kind: str) -> int:
    """Memory of the whole device."""
    if kind == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 16 * GIB
