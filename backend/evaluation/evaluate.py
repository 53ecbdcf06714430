"""An evaluation: every task's samples, batch by batch, under every policy in turn.

A batch's composition depends on the task alone, so its numbers do not depend on where an evaluation was cut off. A
batch's prompts are computed once and stored into each policy's cache (`shared_prompts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.evaluation.follow import Reference, follow, require_context
from leankv.backend.evaluation.items import Item, Outcome, Task
from leankv.backend.evaluation.journal import Journal
from leankv.backend.evaluation.shared_prompts import SharedPrompts
from leankv.backend.key_means import fingerprint
from leankv.backend.texts import DIGEST
from leankv.backend.weights import Loaded
from leankv.kernels.selectors import scored_queries
from leankv.serving.models import ModelSpec
from leankv.serving.paired import BASELINE
from leankv.serving.policies.base import Policy
from leankv.serving.policies.registry import policy_named
from leankv.serving.quality import KV_BYTES, Quality, samples_table, save_quality

Progress = Callable[[float], None]
BATCH = 8
PROMPT_TOKENS_A_STEP = 64
"""Prompt tokens that take about as long as a decode step; for the progress alone."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What to evaluate. policies: the baseline is added where it is missing, since all else is held against it.

    device: in words. versions: of the libraries. key_means: for policies that centre keys. batch: samples that run
    together; part of the settings, as it may move the last digit.
    """

    loaded: Loaded
    model: ModelSpec
    device: Mapping[str, Any]
    versions: Mapping[str, str]
    policies: Sequence[Policy]
    tasks: Sequence[Task]
    preset: str
    seed: int = 0
    key_means: KeyMeans | None = None
    batch: int = BATCH

    @property
    def everyone(self) -> list[Policy]:
        """The policies, the baseline first."""
        baseline = [policy for policy in self.policies if policy.name == BASELINE] or [policy_named(BASELINE)]
        return baseline + [policy for policy in self.policies if policy.name != BASELINE]

    @property
    def dtype(self) -> str:
        return str(self.loaded.model.dtype).removeprefix("torch.")


def evaluate(evaluation: Evaluation, folder: Path | None, progress: Progress) -> Quality:
    """Evaluate what `folder` does not hold yet, write it there, and return all that is known.

    Raises InputError: the folder's evaluation is of other settings; texts too short; a batch that does not fit.
    """
    alike = {"batch": evaluation.batch, "kv_bytes": KV_BYTES}
    settings = {task.name: {**task.settings(), **alike} for task in evaluation.tasks}
    weights = fingerprint(evaluation.loaded)[:DIGEST]
    model = {"model": evaluation.model.name, "model_sha256": weights, "dtype": evaluation.dtype}
    identity = {**model, "seed": evaluation.seed}
    journal = Journal(folder, identity, settings)
    names = [policy.name for policy in evaluation.everyone]
    work = list(_batches(evaluation))
    require_context(evaluation.loaded, [item for _, items in work for item in items])
    total = sum(_cost(evaluation, items) for _, items in work)
    spent = _spent_before(evaluation, journal, work)
    progress(spent / total)
    shared = _shared(evaluation)
    for task, items in work:
        for policy, outcomes, baseline in _outcomes(evaluation, shared, journal, task, items):
            rows = [_row(evaluation, policy, task, *each) for each in zip(items, outcomes, baseline, strict=True)]
            journal.add(rows, repr(policy))
            spent += _cost(evaluation, items) / len(names)
            progress(spent / total)
    quality = Quality(
        model=evaluation.model,
        device=evaluation.device,
        versions=evaluation.versions,
        dtype=evaluation.dtype,
        seed=evaluation.seed,
        preset=evaluation.preset,
        settings=journal.settings,
        specifications=journal.in_order(names),
        samples=samples_table(journal.rows(names)),
        model_sha256=weights,
    )
    if folder is not None:
        save_quality(quality, folder)
        journal.close()
    return quality


def _shared(evaluation: Evaluation) -> Loaded:
    """The model with prompts that are computed once for all policies."""
    queries = max(scored_queries(policy, evaluation.loaded.max_context) for policy in evaluation.everyone)
    return replace(evaluation.loaded, model=SharedPrompts(evaluation.loaded.model, queries))


def _batches(evaluation: Evaluation) -> Iterator[tuple[Task, list[Item]]]:
    for task in evaluation.tasks:
        items = task.items(evaluation.loaded.tokenizer)
        for first in range(0, len(items), evaluation.batch):
            yield task, items[first : first + evaluation.batch]


def _outcomes(
    evaluation: Evaluation, shared: Loaded, journal: Journal, task: Task, items: Sequence[Item]
) -> Iterator[tuple[Policy, list[Outcome], list[Outcome]]]:
    """What each policy that is still to be run makes of a batch, with the baseline's outcomes.

    The baseline runs again where only its successors are missing: what it was compared by is not kept.
    """
    ids = [item.sample_id for item in items]
    missing = [policy for policy in evaluation.everyone if not journal.done(policy.name, task.name, ids)]
    if not missing:
        return
    reference: Reference = {}
    baseline = follow(shared, evaluation.everyone[0], items, None, reference)
    for policy in missing:
        if policy.name == BASELINE:
            yield policy, baseline, baseline
        else:
            yield policy, follow(shared, policy, items, evaluation.key_means, reference), baseline


def _row(
    evaluation: Evaluation, policy: Policy, task: Task, item: Item, outcome: Outcome, baseline: Outcome
) -> dict[str, Any]:
    return {
        "policy": policy.name,
        "task": task.name,
        "sample_id": item.sample_id,
        "prompt_tokens": len(item.prompt),
        "output_tokens": item.output_tokens,
        "kv_fp16_bytes": outcome.fp16_bytes,
        "kv_payload_bytes": outcome.payload_bytes,
        "kv_page_bytes": outcome.page_bytes,
        **item.about,
        **task.graded(item, outcome, baseline, evaluation.loaded.tokenizer),
    }


def _cost(evaluation: Evaluation, items: Sequence[Item]) -> float:
    prompts = sum(len(item.prompt) for item in items) / PROMPT_TOKENS_A_STEP
    return prompts + len(evaluation.everyone) * max(item.output_tokens for item in items)


def _spent_before(evaluation: Evaluation, journal: Journal, work: Sequence[tuple[Task, Sequence[Item]]]) -> float:
    """The cost of what the journal holds already, in the unit of `_cost`."""
    everyone, held = evaluation.everyone, 0.0
    for task, items in work:
        ids = [item.sample_id for item in items]
        done = sum(journal.done(policy.name, task.name, ids) for policy in everyone)
        held += _cost(evaluation, items) * done / len(everyone)
    return held


def library_versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    import transformers

    from leankv import __version__

    return {"leankv": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
