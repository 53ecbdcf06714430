"""One request as scheduler, simulator and live engine see it."""

from __future__ import annotations


class Request:
    """A prompt to prefill and a number of tokens to generate.

    Args:
        request_id: row of the trace, unique in a run.
        arrival_ps: arrival in picoseconds from the start of the run.
        prompt_tokens: length of the prompt, at least 1.
        output_tokens: tokens to generate, at least 1. A live engine that honours stop tokens may finish earlier.

    A prompt's last chunk yields the first token. `generated` tokens put `prompt_tokens + generated - 1` into the cache:
    the newest token is cached by the step that reads it.
    """

    __slots__ = (
        "arrival_ps",
        "computed",
        "generated",
        "output_tokens",
        "preemptions",
        "prefill_target",
        "prompt_tokens",
        "request_id",
    )

    def __init__(self, request_id: int, arrival_ps: int, prompt_tokens: int, output_tokens: int) -> None:
        self.request_id = request_id
        self.arrival_ps = arrival_ps
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.prefill_target = prompt_tokens
        self.computed = 0
        self.generated = 0
        self.preemptions = 0

    def restart(self) -> None:
        """Forget the cache; the next prefill recomputes the prompt and every generated token, and yields the next."""
        self.prefill_target = self.prompt_tokens + self.generated
        self.computed = 0
        self.preemptions += 1
