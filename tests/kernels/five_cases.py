"""LeanKV's five cases at their edges, for every form of the decode step."""

from __future__ import annotations

from leankv.kernels.decode_rules import APPEND, DEMOTE, DEMOTE_OVER, OVERWRITE

Means = dict[int, float]

FIVE_CASES: list[tuple[Means, Means, int, int, int, list[int]]] = [
    # p = 20: pruned below 0.025, low below 0.1; positions above 16 are in the window.
    ({17: 0.0, 18: 0.0, 19: 0.0}, {}, APPEND, 3, -1, [4, 0]),
    ({3: 0.5, 16: 0.01, 17: 0.0}, {}, OVERWRITE, 1, -1, [3, 0]),
    ({3: 0.5, 16: 0.01, 17: 0.0}, {2: 0.02}, OVERWRITE, 1, -1, [3, 1]),
    ({3: 0.05, 16: 0.5}, {1: 0.3, 2: 0.02}, DEMOTE_OVER, 0, 1, [2, 2]),
    ({3: 0.02, 16: 0.5}, {1: 0.01}, DEMOTE_OVER, 0, 0, [2, 1]),
    ({3: 0.5, 5: 0.06}, {1: 0.03}, DEMOTE, 1, 1, [2, 2]),
    ({3: 0.5, 5: 0.06}, {}, DEMOTE, 1, 0, [2, 1]),
    ({3: 0.5, 5: 0.2}, {1: 0.01}, APPEND, 2, -1, [3, 1]),
    ({9: 0.0, 3: 0.0, 5: 0.0}, {}, OVERWRITE, 1, -1, [3, 0]),
    ({9: 0.0625, 3: 0.0625}, {8: 0.0, 4: 0.0}, DEMOTE_OVER, 1, 1, [2, 2]),
]
"""Means by position in the high and the low tier, and the plan: case, place, spare, tokens a tier afterwards."""


def sums(means: dict[int, float], p: int, prompt: int) -> list[tuple[int, float]]:
    """(position, sum) whose mean over the queries that saw the token is the given one."""
    return [(i, mean * (max(0, min(prompt - i, 4)) + p - max(i, prompt))) for i, mean in means.items()]
