"""The unified KV cache: requests under any mix of live policies in one pool of equal pages.

Per request, layer and KV head a list of pages in at most two tiers. The page manager, scores and positions live on the
device. A prompt comes in chunks: `begin_chunk`, then for each layer `prefix` and `store_chunk`, then `end_chunk`. A
decode step is `prepare_step`, `begin_step`, `decode` layer by layer, `end_step`.

What belongs to whom, on CUDA:

    begin_step, decode           on the device: they read a slot tensor and device memory, launch and allocate the same
                                 whatever these hold, and look at nothing on the host that changes between steps; a
                                 CUDA graph can hold them, captured with a static slot tensor of at most `largest_batch`
                                 entries (-1 is padding). The step that `begin_step` opens may be replayed without it.
    prepare_step, end_step       on the host, before and after a step or its replay: from the requests' lengths they
                                 know whose window is full and who is classified again, and launch that for those alone.
    admit, begin_chunk, prefix,  on the host, at shapes that follow from lengths; of prompts that are compressed the
    store_chunk, end_chunk,      device decides what stays.
    free
    met, measure, pages_of,      wait for the device; so does reading `faults` or `free_pages`, which are left there.
    check_integrity

Nothing in the first three groups waits for the device. Neither a shortage nor a bad key raises there: `faults` tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leankv.backend import cache_measure, cache_prompt, cache_residual, cache_step
from leankv.backend.cache_buffers import StepBuffers, largest_batch, step_buffers
from leankv.backend.cache_measure import Measured
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.backend.cache_slots import Request, SlotState, slot_numbers
from leankv.kernels import pages as pg
from leankv.kernels.attention import decode_attention
from leankv.kernels.layout import new_pool
from leankv.kernels.paths import Path, path_for
from leankv.kernels.rope import turns_of
from leankv.kernels.selectors import decode_rule
from leankv.kernels.transforms import AS_THEY_ARE, KeyTransform
from leankv.serving.policies.base import Policy
from leankv.serving.policies.budgets import MassTiers, Residual
from leankv.serving.pool_plan import most_pages_a_row, page_bytes_of, pages_in, policy_layouts


class KVCache:
    """See the module. `key_means` are needed by policies that centre keys.

    memory_bytes: for the pool, its tables and counters, and on CUDA what the kernels write between their launches.
    slots: requests at once. max_tokens: longest request.
    Raises ValueError where the memory holds no page, a policy does not run live, or key means are missing.
    """

    def __init__(
        self,
        shape: CacheShape,
        policies: Sequence[Policy],
        *,
        slots: int,
        memory_bytes: int,
        max_tokens: int,
        device: torch.device | str = "cpu",
        key_means: KeyMeans | None = None,
        path: Path | None = None,
    ) -> None:
        self.shape, self.max_tokens = shape, max_tokens
        self.page_bytes = page_bytes_of(policies, shape.head_dim)
        self.policies = policy_layouts(policies, shape.head_dim, self.page_bytes)
        self.rules = tuple(decode_rule(policy) for policy in policies)
        self.largest_batch = largest_batch(slots)
        self.path = path_for(torch.empty(0, device=device), path)
        self._buffers: StepBuffers | None = None
        if self.path == "triton":
            self._buffers = step_buffers(shape, policies, slots, max_tokens, torch.device(device))
            memory_bytes -= self._buffers.nbytes
        columns = most_pages_a_row(self.policies, max_tokens)
        pages = pages_in(memory_bytes, self.page_bytes, slots * shape.layers * shape.kv_heads, columns)
        if pages < 1:
            raise ValueError(
                f"{max(0, memory_bytes)} bytes hold no page beside the page tables; give more, or fewer slots"
            )
        self.pool = new_pool(pages, self.page_bytes, device)
        self.tables = pg.page_tables(slots, shape.layers, shape.kv_heads, columns, pages, device)
        self.layouts = tuple(dict.fromkeys(layout for laid in self.policies for layout in laid.tiers))
        self.state = SlotState.empty(slots, device)
        self.requests: dict[int, Request] = {}
        self.errors = torch.zeros(1, dtype=torch.int32, device=device)
        self._transforms = tuple(self._transform_of(policy, key_means) for policy in policies)
        self.rotates = any(transforms[0].rotated for transforms in self._transforms)
        turning = [number for number, transforms in enumerate(self._transforms) if transforms[0].turns is not None]
        self.turning = self._transforms[turning[0]] if turning else None
        self._step: cache_step.Step | None = None

    def admit(self, slot: int, prompt: int, policy: int = 0, alphas: tuple[float, float] | None = None) -> None:
        """Open `slot` for a request of `prompt` tokens; `alphas`: its own (alpha_low, alpha_high) thresholds."""
        assert slot not in self.requests, f"slot {slot} is taken"
        self.requests[slot] = Request(self.policies[policy], policy, prompt, alphas)

    def free(self, slots: Sequence[int]) -> None:
        """Give back all pages of `slots`: finished requests, or preempted ones that will be computed again."""
        number = slot_numbers(slots, self.pool.device)
        pg.free(self.tables, pg.rows_of(self.tables, number), path=self.path)
        self.state.clear(number)
        for slot in slots:
            del self.requests[slot]

    def begin_chunk(self, slot: int, tokens: int) -> None:
        """Take the pages for the next `tokens` prompt tokens, in all layers; `met` tells whether there were enough."""
        pg.forget_unmet(self.tables)
        cache_prompt.reserve(self, slot, tokens)

    def prefix(self, slot: int, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values float32 [n, kv_heads, head_dim] of the prompt's earlier chunks as the cache holds them."""
        tokens = cache_prompt.prefix(self, slot, layer)
        return tokens.keys, tokens.values

    def store_chunk(self, slot: int, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> None:
        """Store a chunk of a prompt: queries [n, heads, head_dim], keys and values [n, kv_heads, head_dim], after RoPE.

        The last chunk of a policy that scores prompts compresses the layer, which takes and frees pages; a layer that
        finds too few stays as it was.
        """
        cache_prompt.store_chunk(self, slot, layer, queries, keys, values, scale)

    def end_chunk(self, slot: int, tokens: int) -> None:
        """All layers of the chunk are stored."""
        request = self.requests[slot]
        request.done += tokens
        cache_prompt.settle(self, slot)
        if request.done == request.prompt:
            formats = [self.layouts.index(layout) for layout in request.layout.tiers]
            self.state.open(slot, request, [*formats, -1][:2], self._transforms[request.policy][0])

    def prepare_step(self, slots: Sequence[int]) -> None:
        """On the host, before the step of `slots`: full windows of KIVI's requests pass a block on."""
        cache_residual.flush_full_windows(self, slots)

    def begin_step(self, slots: Tensor) -> None:
        """Make room for one new token of each of `slots` (int32 [batch], -1 is padding) in every layer and head.

        If pages do not suffice nothing changes: `met` is false, and what the step computes counts for nothing.
        """
        pg.forget_unmet(self.tables)
        self._step = cache_step.begin(self, slots)

    def decode(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
    ) -> Tensor:
        """Store the batch's new tokens of one layer, attend, and update scores; returns [batch, heads, head_dim].

        queries [batch, heads, head_dim], keys and values [batch, kv_heads, head_dim], in the order of `begin_step`.
        """
        assert self._step is not None, "begin_step comes first"
        cache_step.store_new(self, self._step, layer, keys, values)
        output = torch.empty_like(queries)
        view, gains = cache_step.layer_view(self, layer), self._step.contributions
        workspace = self.buffers.attention.for_batch(len(queries)) if self.path == "triton" else None
        decode_attention(queries, view, self._step.slots, scale, output, gains, workspace, self.path)
        cache_step.update(self, self._step, layer)
        return output

    def end_step(self, slots: Sequence[int]) -> None:
        """On the host, after the step of `slots`: heads whose turn it is are compressed again."""
        self._step = None
        for slot in slots:
            self.requests[slot].done += 1
        cache_step.recompress_due(self, slots)

    def rehearse(self) -> None:
        """Do once for no request what steps do only now and then, so that nothing is compiled when they do."""
        nobody = torch.full((1,), -1, dtype=torch.int32, device=self.pool.device)
        for policy, laid in enumerate(self.policies):
            if isinstance(laid.policy.budget, MassTiers):
                cache_step.recompress_slots(self, policy, laid.policy.budget, nobody)
            elif isinstance(laid.policy.budget, Residual):
                cache_residual.flush(self, laid, pg.rows_of(self.tables, nobody).flatten())

    @property
    def met(self) -> bool:
        """Whether all layers found the pages they needed since the last `begin_step` or `begin_chunk`. Waits."""
        return bool(pg.all_met(self.tables))

    def faults(self) -> Tensor:
        """What went wrong in the cache's life so far, int32 [3] on the device; all zeros in a sound one.

        The largest shortage in pages, the largest excess of a head over its page table, and how many rows of keys or
        values were not finite or beyond float16's range (on a CPU these raise ValueError at once).
        """
        return torch.cat([self.tables.state[pg.DEFICIT : pg.UNMET], self.errors])

    @property
    def free_pages(self) -> Tensor:
        """Free pages, int32 scalar on the device: copy it asynchronously to schedule by it one step later."""
        return self.tables.state[pg.FREE]

    @property
    def pages(self) -> int:
        return self.tables.pages

    def measure(self) -> Measured:
        """Pages and ratios at this moment. Waits for the device."""
        return cache_measure.measure(self)

    def pages_of(self, slot: int) -> tuple[int, int]:
        """Pages of a request by tier, over all layers and heads. Waits for the device."""
        rows = self.rows_of(slot)
        high, low = pg.pages_held(self.tables.counts[rows], self.tables.tokens_per_page[rows]).sum(0).tolist()
        return high, low

    def check_integrity(self) -> None:
        """Every page in one place, and no page in a slot without a request. Raises PageIntegrityError."""
        pg.check_integrity(self.tables)
        held = self.tables.counts.view(self.tables.slots, -1).sum(1).nonzero().flatten().tolist()
        strays = set(held) - set(self.requests)
        if strays:
            raise pg.PageIntegrityError(f"slots {sorted(strays)} hold pages and no request")

    def transform(self, policy: int, layer: int) -> KeyTransform:
        """How keys of a layer are stored under a policy."""
        return self._transforms[policy][layer]

    def rows_of(self, slot: int, layers: slice = slice(None)) -> Tensor:
        """Rows of the page tables of a slot, int32 [layers * kv_heads], without a copy from the host."""
        number = torch.full((1,), slot, dtype=torch.int32, device=self.pool.device)
        return pg.rows_of(self.tables, number, layers).flatten()

    @property
    def buffers(self) -> StepBuffers:
        """What the kernels write between their launches."""
        if self._buffers is None:
            policies = [laid.policy for laid in self.policies]
            self._buffers = step_buffers(
                self.shape, policies, self.tables.slots, self.max_tokens, self.pool.device
            )  # fmt: skip
        return self._buffers

    def _transform_of(self, policy: Policy, means: KeyMeans | None) -> tuple[KeyTransform, ...]:
        rotated = "rotated" in policy.key_transform
        if "centred" not in policy.key_transform:
            return (KeyTransform(rotated=rotated) if rotated else AS_THEY_ARE,) * self.shape.layers
        if means is None:
            raise ValueError(f"policy {policy.name} centres keys: give the model's mean keys")
        if "rope" not in policy.key_transform:
            return tuple(KeyTransform(mean, rotated) for mean in means.plain.to(self.pool.device))
        if means.before_rope is None or means.frequencies is None:
            raise ValueError(
                "keys cannot be centred before RoPE, as the model has no one rotary embedding for all layers; choose "
                "key_transform=centred+rotated"
            )
        turns = turns_of(means.frequencies, self.max_tokens).to(self.pool.device)
        return tuple(KeyTransform(mean, rotated, turns) for mean in means.before_rope.to(self.pool.device))
