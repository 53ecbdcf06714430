"""Least squares with coefficients that are not negative, on numpy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TOLERANCE = 1e-10


def non_negative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """The x >= 0 that minimises |matrix x - target|: float64 [columns] for float64 [rows, columns] and [rows].

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23). Columns are scaled to
    length 1 first, so that units do not matter; a column of zeros gets 0.
    """
    lengths = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(lengths > 0, lengths, 1.0)
    solution = np.zeros(matrix.shape[1])
    free = np.zeros(matrix.shape[1], dtype=bool)
    enough = TOLERANCE * max(1.0, float(np.linalg.norm(target)))
    for _ in range(3 * matrix.shape[1]):
        descent = scaled.T @ (target - scaled @ solution)
        descent[free | (lengths == 0)] = -np.inf
        best = int(descent.argmax())
        if descent[best] <= enough:
            break
        free[best] = True
        _solve_free(scaled, target, solution, free)
    return solution / np.where(lengths > 0, lengths, 1.0)


def _solve_free(scaled: Floats, target: Floats, solution: Floats, free: npt.NDArray[np.bool_]) -> None:
    """Move to the least-squares solution of the free columns; columns that would turn negative stop at 0, for now."""
    while True:
        trial = np.zeros_like(solution)
        trial[free] = np.linalg.lstsq(scaled[:, free], target, rcond=None)[0]
        falling = free & (trial <= 0)
        if not falling.any():
            solution[:] = trial
            return
        share = float((solution[falling] / np.maximum(solution[falling] - trial[falling], 1e-300)).min())
        solution += share * (trial - solution)
        free &= solution > TOLERANCE
        solution[~free] = 0.0
