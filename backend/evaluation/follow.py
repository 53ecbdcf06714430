"""A batch of items through the live engine under one policy: prompts at once, then token by token through the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.engine import Engine
from leankv.backend.evaluation.items import Item, Outcome
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.step_log import Held
from leankv.backend.weights import Loaded
from leankv.serving.errors import InputError
from leankv.serving.formats import FP16
from leankv.serving.page_bounds import most_pages, most_prompt_pages
from leankv.serving.policies.base import Policy
from leankv.serving.pool_plan import ENTRY_BYTES, FIXED_BYTES, ROW_BYTES, live_layout, most_pages_a_row, page_bytes_of
from leankv.serving.scheduler import WATERMARK, SchedulerLimits

GREEDY = Sampling()

Reference = dict[tuple[int, int], Tensor]
"""The baseline's log-probabilities of the next token, float32 [vocab], by place in the batch and forced token."""


def follow(
    loaded: Loaded, policy: Policy, items: Sequence[Item], key_means: KeyMeans | None, reference: Reference
) -> list[Outcome]:
    """Serve the items together and alone; all prompts in the first step.

    reference: of the same items under the baseline. Where it is empty this policy is the baseline, and fills it.
    Batches of the same items give the same numbers. Raises InputError where the batch does not fit the memory.
    """
    longest = max(len(item.prompt) + item.output_tokens for item in items)
    watcher = _Watcher(items, reference)
    engine = Engine(
        loaded,
        policy,
        SchedulerLimits(len(items), max(len(items), sum(len(item.prompt) for item in items)), chunked_prefill=False),
        memory_bytes=pool_bytes(loaded, policy, items),
        max_tokens=longest,
        key_means=key_means,
        on_logits=watcher,
    )
    for place, item in enumerate(items):
        engine.add(LiveRequest(place, item.prompt, item.output_tokens, GREEDY, forced=item.forced))
    held: dict[int, list[Held]] = {place: [] for place in range(len(items))}
    while not engine.idle:
        for request in engine.scheduler.decoding.values():
            held[request.request_id].append(engine.held(request))
        before = len(engine.log.final)
        for request, final in zip(engine.step(), engine.log.final[before:], strict=True):
            _finish(engine, watcher.outcomes[request.request_id], request, held[request.request_id] or [final])
    if engine.preemptions:
        raise RuntimeError("a batch was preempted in a pool that was sized for it")
    return watcher.outcomes


def require_context(loaded: Loaded, items: Sequence[Item]) -> None:
    """Raise InputError where an item is longer than the model reads."""
    longest = max(len(item.prompt) + item.output_tokens for item in items)
    if longest > loaded.max_context:
        raise InputError(
            f"a sample takes {longest:,} tokens, {loaded.name} reads {loaded.max_context:,}; ask for shorter contexts"
        )


def pool_bytes(loaded: Loaded, policy: Policy, items: Sequence[Item]) -> int:
    """Memory in which all items run at once, never short of a page. Raises InputError for a policy not live."""
    rows = loaded.layers * loaded.kv_heads
    try:
        laid, page = live_layout(policy, loaded.head_dim), page_bytes_of([policy], loaded.head_dim)
    except ValueError as error:
        raise InputError(f"{policy.name} on {loaded.name}: {error}") from error
    lengths = [(len(item.prompt), len(item.prompt) + item.output_tokens) for item in items]
    bounds = (max(most_prompt_pages(laid, prompt), most_pages(laid, prompt, total)) for prompt, total in lengths)
    pages = int(sum(bounds) * rows / (1 - 2 * WATERMARK)) + 1
    columns = most_pages_a_row([laid], max(total for _, total in lengths))
    tables = len(items) * rows * (ENTRY_BYTES * columns + ROW_BYTES) + FIXED_BYTES
    return pages * (page + ENTRY_BYTES) + tables


def _finish(engine: Engine, outcome: Outcome, request: LiveRequest, held: Sequence[Held]) -> None:
    """held: as each decode step of the request began, which is what its tokens were predicted from."""
    shape, steps = engine.cache.shape, len(held)
    heads, tiers = shape.layers * shape.kv_heads, engine.cache.policies[0].tiers
    outcome.output = request.output[len(request.forced) :]
    outcome.stopped = bool(outcome.output) and outcome.output[-1] in engine.eos
    outcome.fp16_bytes = round(sum(each.cached for each in held) * heads * FP16.payload_bytes(shape.head_dim) / steps)
    payload = sum(
        tokens * layout.format.payload_bytes(shape.head_dim)
        for each in held
        for tokens, layout in zip(each.tokens, tiers, strict=False)
    )
    outcome.payload_bytes = round(payload / steps)
    outcome.page_bytes = round(sum(each.pages for each in held) * engine.cache.page_bytes / steps)


class _Watcher:
    """Reads what is asked of each step's logits into the outcomes, by the request's number in the batch."""

    def __init__(self, items: Sequence[Item], reference: Reference) -> None:
        self.items, self.reference = items, reference
        self.outcomes = [Outcome() for _ in items]
        self.is_baseline = not reference

    def __call__(self, requests: Sequence[LiveRequest], logits: Tensor) -> None:
        rows = [row for row, request in enumerate(requests) if self._scored(request)]
        if not rows:
            return
        places = [(requests[row].request_id, len(requests[row].output)) for row in rows]
        log_probabilities = torch.log_softmax(logits[rows].float(), -1)
        self._score(places, log_probabilities)
        self._compare(places, log_probabilities)

    def _scored(self, request: LiveRequest) -> bool:
        item = self.items[request.request_id]
        return item.scored_from <= len(request.output) < len(item.forced)

    def _score(self, places: Sequence[tuple[int, int]], log_probabilities: Tensor) -> None:
        wanted = torch.tensor([self.items[place].forced[at] for place, at in places], device=log_probabilities.device)
        likeliest = log_probabilities.argmax(-1).tolist()
        given = log_probabilities.gather(1, wanted[:, None])[:, 0].tolist()
        for row, (place, at) in enumerate(places):
            item, outcome = self.items[place], self.outcomes[place]
            outcome.log_probabilities.append(given[row])
            outcome.likeliest.append(likeliest[row])
            if item.options and at == len(item.forced) - 1:
                outcome.options = log_probabilities[row, list(item.options)].tolist()

    def _compare(self, places: Sequence[tuple[int, int]], log_probabilities: Tensor) -> None:
        for row, key in enumerate(places):
            if not self.items[key[0]].compared:
                continue
            mine = log_probabilities[row]
            if self.is_baseline:
                self.reference[key] = mine.clone()
                continue
            theirs, outcome = self.reference[key], self.outcomes[key[0]]
            outcome.agreed.append(int(mine.argmax()) == int(theirs.argmax()))
            outcome.divergences.append(float((theirs.exp() * (theirs - mine)).sum()))
