"""A request while it is simulated: what the closed form needs to know of it, in place of a per-token state."""

from __future__ import annotations

from leankv.serving.requests import Request


class Resident(Request):
    """A request with its integers of the closed form.

    `steps` below counts the decode steps that its replica has made since the start of the run. The context after step
    number s is `s + offset`; the last token comes with step `finish_step`. The read curve's current line is
    `read_value + read_slope * (s - read_step)` bytes for the step that follows step s. These five are set when decoding
    starts.

    `resume_step`: the step that gives the first token of a stay, which is the prompt's last unless generated tokens are
    fed again after it.

    Pages: `need` to reserve for the prompt, `reserved` now; `first_held` at the first decode step, `held` at the
    ledger's last count; `held_pages` when it last lost its cache, as far as was known. They count what follows the
    first `shared_tokens`, whose blocks belong to the prefix cache; `hit_tokens` of those were found computed. Times are
    in ps, -1 while not reached.
    """

    offset: int
    resume_step: int
    finish_step: int
    read_value: int
    read_slope: int
    read_step: int

    __slots__ = (
        "admitted_ps",
        "decode_ps",
        "decode_step",
        "finish_step",
        "first_held",
        "first_token_ps",
        "held",
        "held_pages",
        "hit_tokens",
        "last_token_ps",
        "need",
        "offset",
        "read_slope",
        "read_step",
        "read_value",
        "reserved",
        "resume_step",
        "shared_tokens",
        "stay_ps",
    )

    def __init__(
        self,
        request_id: int,
        arrival_ps: int,
        prompt_tokens: int,
        output_tokens: int,
        need: int,
        first_held: int,
        shared_tokens: int = 0,
    ) -> None:
        super().__init__(request_id, arrival_ps, prompt_tokens, output_tokens)
        self.need = need
        self.first_held = first_held
        self.shared_tokens = shared_tokens
        self.hit_tokens = 0
        self.held = self.held_pages = self.reserved = 0
        self.admitted_ps = self.stay_ps = self.first_token_ps = self.last_token_ps = -1
        self.decode_ps = self.decode_step = -1

    @property
    def gives_token(self) -> bool:
        """Whether the prompt to compute ends with all that was generated, so that its last chunk gives a new token."""
        return self.prefill_target == self.prompt_tokens + self.generated
