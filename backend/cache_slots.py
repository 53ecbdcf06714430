"""What a cache knows of its requests: a host record each, and by slot the tensors that decode steps read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from leankv.kernels.selectors import recent_tokens
from leankv.kernels.transforms import KeyTransform
from leankv.serving.policies.base import Policy
from leankv.serving.policies.budgets import MassTiers, Thresholds
from leankv.serving.policies.held_tokens import capacity
from leankv.serving.pool_plan import PolicyLayout


@dataclass
class Request:
    """One request on the host.

    policy: its index in the cache. done: positions cached so far, prompt first. scores: by layer, what the prompt's
    queries gave so far float32 [heads, done] (policies that score all queries). queries: by layer, the last few
    queries seen (policies that score a recent window).
    """

    layout: PolicyLayout
    policy: int
    prompt: int
    alphas: tuple[float, float] | None = None
    done: int = 0
    scores: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)

    @property
    def thresholds(self) -> tuple[float, float]:
        """alpha_low and alpha_high: the request's own, else the policy's."""
        if self.alphas is not None:
            return self.alphas
        budget = self.layout.policy.budget
        return (budget.alpha_low, budget.alpha_high) if isinstance(budget, Thresholds) else (0.0, 0.0)

    @property
    def policy_in_force(self) -> Policy:
        """The policy with the request's own thresholds."""
        policy = self.layout.policy
        if self.alphas is None or not isinstance(policy.budget, Thresholds):
            return policy
        low, high = self.alphas
        return replace(policy, budget=replace(policy.budget, alpha_low=low, alpha_high=high))

    @property
    def recompresses(self) -> bool:
        """Whether this decode step closes an interval of recompression."""
        budget = self.layout.policy.budget
        return (
            isinstance(budget, MassTiers)
            and self.done > self.prompt
            and (self.done - self.prompt) % budget.recompress_every == 0
        )


@dataclass(frozen=True, eq=False)
class SlotState:
    """By slot, on the device: int32 [slots], formats [slots, 2] as decode attention reads them, alphas float32.

    length: positions cached, the next token's position. policy: -1 where the slot does not decode. rotated, turning: 1
    where keys are stored rotated, and where they were centred by position.
    """

    length: Tensor
    prompt: Tensor
    policy: Tensor
    capacity: Tensor
    recent: Tensor
    rotated: Tensor
    turning: Tensor
    formats: Tensor
    alpha_low: Tensor
    alpha_high: Tensor

    @classmethod
    def empty(cls, slots: int, device: torch.device | str) -> SlotState:
        """No slot decodes."""

        def filled(value: int, *shape: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.int32, device=device)

        return cls(
            length=filled(0, slots),
            prompt=filled(0, slots),
            policy=filled(-1, slots),
            capacity=filled(0, slots),
            recent=filled(0, slots),
            rotated=filled(0, slots),
            turning=filled(0, slots),
            formats=filled(-1, slots, 2),
            alpha_low=torch.zeros(slots, device=device),
            alpha_high=torch.zeros(slots, device=device),
        )

    def open(self, slot: int, request: Request, formats: list[int], transform: KeyTransform) -> None:
        """The prompt of `slot` is complete: it decodes from now on."""
        policy = request.layout.policy
        self.length[slot] = self.prompt[slot] = request.prompt
        self.policy[slot] = request.policy
        self.capacity[slot] = capacity(policy, request.prompt)
        self.recent[slot] = recent_tokens(policy, request.prompt)
        self.rotated[slot] = int(transform.rotated)
        self.turning[slot] = int(transform.turns is not None)
        for tier, format in enumerate(formats):
            self.formats[slot, tier] = format
        self.alpha_low[slot], self.alpha_high[slot] = request.thresholds

    def clear(self, slots: Tensor) -> None:
        """`slots` (int [n]) no longer decode."""
        self.policy[slots.long()] = -1
        self.formats[slots.long()] = -1

    def advance(self, slots: Tensor) -> None:
        """One more position is cached in `slots` (int [batch], -1 is padding)."""
        self.length.index_add_(0, slots.clamp(min=0).long(), (slots >= 0).to(torch.int32))


def slot_numbers(slots: Sequence[int], device: torch.device) -> Tensor:
    """int32 [len(slots)] on the device, without waiting for it."""
    if device.type != "cuda":
        return torch.tensor(list(slots), dtype=torch.int32, device=device)
    return torch.tensor(list(slots), dtype=torch.int32, pin_memory=True).to(device, non_blocking=True)
