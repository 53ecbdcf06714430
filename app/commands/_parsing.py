"""A command line as a dataclass; what cannot be parsed is the user's error in one line, like any other."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import TypeVar

import tyro

T = TypeVar("T")
CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def parsed(form: type[T], prog: str, about: str, argv: Sequence[str]) -> T:
    """`argv` as an instance of the dataclass `form`, or of one out of a union of them; `--help` prints and exits.

    Raises:
        InputError: an unknown flag (with the nearest), or a value of the wrong type.
    """
    from leankv.serving.errors import InputError

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(form, prog=prog, description=about, args=list(argv), config=CONFIG)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise InputError(f"{_one_line(said.getvalue())}; see {prog} --help") from None


def _one_line(box: str) -> str:
    """The problem in the parser's framed message, and the first flag that it suggests.

    A frame of lines carries the title in its upper edge; without Unicode the title is a paragraph of its own.
    """
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"\n[─-]+\n", "\n".join(lines))
    problem = paragraphs[0] if box.startswith("╭") or len(paragraphs) == 1 else paragraphs[1]
    said = " ".join(problem.split()).rstrip(".")
    suggested = re.search(r"Perhaps you meant:\s+(--[\w-]+)", box.replace("│", ""))
    return f"{said}; did you mean {suggested[1]}?" if suggested else said
