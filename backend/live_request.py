"""A request of the live engine: its tokens, how the next is chosen, and when things happened to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from leankv.serving.requests import Request

NO_SLOT = -1


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when to stop before `output_tokens`.

    temperature: 0 takes the likeliest token. top_p: the least set of tokens of at least this probability. seed: of the
    request's own draws, so that neither its neighbours nor a preemption change them.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False


GREEDY = Sampling()


class LiveRequest(Request):
    """A `Request` with token ids; times in ps since the start of the run, -1 until then.

    `cached` positions are in the cache. A preempted request keeps its `output`: where that is longer than what is
    cached, decode steps feed it again instead of choosing anew. `forced`: its first tokens, whatever the logits say
    (teacher forcing); they count as generated, and none of them ends it. `held_pages`: what it may have held when it
    last gave them back. `interrupted`: whether it lost its cache since its last token, at `last_token_ps`.
    """

    __slots__ = (
        "admitted_ps",
        "cached",
        "finish_ps",
        "first_token_ps",
        "forced",
        "held_pages",
        "interrupted",
        "last_token_ps",
        "output",
        "prompt",
        "random",
        "sampling",
        "slot",
    )

    def __init__(
        self,
        request_id: int,
        prompt: Sequence[int],
        output_tokens: int,
        sampling: Sampling = GREEDY,
        arrival_ps: int = 0,
        forced: Sequence[int] = (),
    ) -> None:
        super().__init__(request_id, arrival_ps, len(prompt), output_tokens)
        self.prompt = list(prompt)
        self.output: list[int] = []
        self.sampling = sampling
        self.forced = list(forced)
        self.random = Random(sampling.seed)
        self.slot = NO_SLOT
        self.cached = 0
        self.held_pages = 0
        self.admitted_ps = self.first_token_ps = self.last_token_ps = self.finish_ps = -1
        self.interrupted = False

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of positions `start` to `stop` of prompt and output together."""
        if stop <= self.prompt_tokens:
            return self.prompt[start:stop]
        return (self.prompt + self.output)[start:stop]

    @property
    def wants_token(self) -> bool:
        """Whether all its tokens are cached, so that the last one's logits choose a new one."""
        return self.cached == self.prompt_tokens + len(self.output)

    @property
    def next_forced(self) -> int | None:
        """The new token where it is given, None where it is to be chosen."""
        return self.forced[len(self.output)] if len(self.output) < len(self.forced) else None

    def take(self, token: int, ends: frozenset[int]) -> bool:
        """Append a new token; whether it was the last. ends: tokens that end a text, unless it ignores them."""
        chosen = self.next_forced is None
        self.output.append(token)
        self.generated += 1
        stops = token in self.sampling.stop_tokens or (token in ends and not self.sampling.ignore_eos)
        return self.generated >= self.output_tokens or (chosen and stops)
