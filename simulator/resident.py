"""A request while it is simulated: what the closed form needs to know of it, in place of a per-token state."""

from __future__ import annotations

from leankv.serving.requests import Request


class Resident(Request):
    """`steps` below counts the decode steps that its replica has made since the start of the run.

    Its context after step number s is `s + offset`; its last token comes with step `finish_step`. Its read curve's
    current line is `read_value + read_slope * (s - read_step)` bytes for the step that follows step s.
    """

    __slots__ = (
        "admitted_ps",
        "decode_ps",
        "decode_step",
        "finish_step",
        "first_token_ps",
        "held",
        "last_token_ps",
        "offset",
        "read_slope",
        "read_step",
        "read_value",
        "reserved",
        "stay_ps",
        "stay_pages",
    )

    def __init__(self, request_id: int, arrival_ps: int, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(request_id, arrival_ps, prompt_tokens, output_tokens)
        self.admitted_ps = -1
        self.first_token_ps = -1
        self.last_token_ps = -1
        self.decode_ps = -1
        self.decode_step = -1
        self.finish_step = -1
        self.offset = 0
        self.held = 0
        self.reserved = 0
        self.stay_ps = -1
        self.stay_pages = 0
        self.read_value = 0
        self.read_slope = 0
        self.read_step = 0
