"""Output lengths predicted from prompts, policy by policy: the length predictor of Rethinking KV Cache Compression.

Departure from the paper (MLSys 2025, arXiv 2503.24000), which tunes a language model on thousands of
prompts: a forest over simple features of the text, since an evaluation has a hundred. Beside it stand two plain
guesses, the median of the policy's other outputs and that median by kind of question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError
from leankv.serving.length_shift import TASK

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
FOLDS = 5
FEWEST_PROMPTS = 20
TREES = 200
LEAF = 3
Row = dict[str, Any]
Predict = Callable[[Sequence[Row]], Floats]


@dataclass(frozen=True)
class Predictor:
    """Held-out accuracy: 1 minus the mean relative error, over prompts that were not learned from.

    by_policy: the forest's, by policy. median, median_by_kind: of the plain guesses.
    """

    prompts: int
    rows: int
    accuracy: float
    median: float
    median_by_kind: float
    by_policy: dict[str, float]

    @property
    def beats_guesses(self) -> bool:
        return self.accuracy > max(self.median, self.median_by_kind)

    @property
    def best(self) -> tuple[str, float]:
        """The most accurate of the three, in words, and its accuracy."""
        each = {
            "the forest": self.accuracy,
            "the policy's median": self.median,
            "the median by kind of question": self.median_by_kind,
        }
        return max(each.items(), key=lambda named: named[1])


def evaluate_predictor(samples: pa.Table) -> Predictor:
    """Cross-validate over prompts: all outputs of a prompt, whatever the policy, are learned from or held out together.

    samples: a table of `quality.COLUMNS`. Outputs that ran into the cap are left out, their length is not known.
    Raises InputError: too few prompts, or scikit-learn is missing.
    """
    rows = [row for row in samples.to_pylist() if row["task"] == TASK and row["stopped"] and row["output_tokens"] > 0]
    prompts = sorted({row["sample_id"] for row in rows})
    if len(prompts) < FEWEST_PROMPTS:
        raise InputError(
            f"{len(prompts)} prompts with outputs that ended by themselves are too few to learn lengths from; evaluate "
            f"at least {FEWEST_PROMPTS}"
        )
    fold = {prompt: place % FOLDS for place, prompt in enumerate(_shuffled(prompts))}
    folds = np.array([fold[row["sample_id"]] for row in rows])
    true = np.array([row["output_tokens"] for row in rows], dtype=np.float64)
    guesses = {
        "forest": _held_out(rows, folds, _forest),
        "median": _held_out(rows, folds, _medians(("policy",))),
        "median_by_kind": _held_out(rows, folds, _medians(("policy", "subject"))),
    }
    correct = {name: 1 - np.abs(guess - true) / true for name, guess in guesses.items()}
    policies = np.array([row["policy"] for row in rows])
    return Predictor(
        len(prompts),
        len(rows),
        float(correct["forest"].mean()),
        float(correct["median"].mean()),
        float(correct["median_by_kind"].mean()),
        {str(name): float(correct["forest"][policies == name].mean()) for name in dict.fromkeys(policies)},
    )


def features(row: Row, policies: Sequence[str]) -> list[float]:
    """Of a prompt and the policy that answers it: sizes, shares of digits and capitals, marks; the policy one-hot."""
    text = row["question"] or ""
    words = text.split()
    size = max(1, len(text))
    described = [
        row["prompt_tokens"],
        len(text),
        len(words),
        len(text) / max(1, len(words)),
        sum(map(str.isdigit, text)) / size,
        sum(map(str.isupper, text)) / size,
        text.count("?"),
        text.count("."),
        text.count(","),
        text.count("\n"),
    ]
    return [*map(float, described), *(float(row["policy"] == name) for name in policies)]


def _shuffled(prompts: Sequence[str]) -> list[str]:
    return [prompts[place] for place in np.random.default_rng(0).permutation(len(prompts))]


def _held_out(rows: Sequence[Row], folds: npt.NDArray[np.int64], fit: Callable[[Sequence[Row]], Predict]) -> Floats:
    """Each row's length as predicted by what was fitted to the other folds."""
    found = np.zeros(len(rows))
    for fold in range(FOLDS):
        predict = fit([row for row, its in zip(rows, folds, strict=True) if its != fold])
        found[folds == fold] = predict([row for row, its in zip(rows, folds, strict=True) if its == fold])
    return found


def _forest(rows: Sequence[Row]) -> Predict:
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError as error:
        raise InputError("the length predictor needs scikit-learn: pip install 'leankv[quality]'") from error
    policies = sorted({row["policy"] for row in rows})
    forest = RandomForestRegressor(TREES, min_samples_leaf=LEAF, random_state=0)
    forest.fit([features(row, policies) for row in rows], np.log([row["output_tokens"] for row in rows]))

    def predict(asked: Sequence[Row]) -> Floats:
        lengths: Floats = np.exp(forest.predict([features(row, policies) for row in asked]))
        return lengths

    return predict


def _medians(keys: tuple[str, ...]) -> Callable[[Sequence[Row]], Predict]:
    """A fit that predicts the median length of the rows that agree in `keys`; of all rows where none does."""

    def fit(rows: Sequence[Row]) -> Predict:
        lengths: dict[tuple[Any, ...], list[int]] = {}
        for row in rows:
            lengths.setdefault(tuple(row[key] for key in keys), []).append(row["output_tokens"])
        medians = {group: float(np.median(each)) for group, each in lengths.items()}
        overall = float(np.median([row["output_tokens"] for row in rows]))
        return lambda asked: np.array([medians.get(tuple(row[key] for key in keys), overall) for row in asked])

    return fit
