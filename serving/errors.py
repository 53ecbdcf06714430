"""What goes wrong on the user's side, said in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Input that the user can mend. The message is one line naming the file, the row and the mend; commands exit 2."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name` (case aside), or None where nothing resembles it."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[matches[0]] if matches else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among `known`: suggests the nearest one, else lists them all."""
    names = list(known)
    suggestion = nearest(name, names)
    mend = f"did you mean {suggestion!r}?" if suggestion else f"choose one of: {', '.join(names)}"
    return InputError(f"unknown {kind} {name!r}; {mend}")
