"""Samples that every policy of a set gets wrong though fp16 gets them right, while averages look fine.

The negative-sample evaluator of Rethinking KV Cache Compression (MLSys 2025, arXiv 2503.24000): a sample
is benign if the baseline's score on it is at least its mean over the task, and negative if besides every policy's
score is below (1 - theta) of the baseline's. Departures: the median may take the mean's place, and a sample that the
baseline scores 0 on is never benign, as every one would be of a task that it gets all wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError, unknown_name
from leankv.serving.paired import BASELINE

if TYPE_CHECKING:
    import pyarrow as pa

Benign = Literal["mean", "median"]
Floats = npt.NDArray[np.float64]
THETA = 0.1


@dataclass(frozen=True)
class Answer:
    """What one policy made of a sample; texts and log-probability are None where the task has none."""

    score: float
    answer: str | None
    log_probability_nats: float | None
    output_tokens: int


@dataclass(frozen=True)
class NegativeSample:
    """A sample with the baseline's answer and each policy's, by name."""

    task: str
    sample_id: str
    subject: str | None
    question: str | None
    reference: str | None
    baseline: Answer
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class Count:
    """Of a task under a set of policies: samples that all have a score for, those benign, and those negative.

    left_out: policies of the set that were not given the task, so nothing is asked of them.
    """

    task: str
    policies: tuple[str, ...]
    theta: float
    samples: int
    benign: int
    negative: int
    left_out: tuple[str, ...] = ()


def negative_samples(
    samples: pa.Table,
    policies: Sequence[str],
    theta: float = THETA,
    benign: Benign = "mean",
    task: str | None = None,
) -> list[NegativeSample]:
    """The negative samples of a set of policies, by task and sample; of each task, of those that were given it.

    samples: a table of `quality.COLUMNS`. Raises InputError: a policy without samples, none but the baseline, theta
    outside 0 to 1.
    """
    chosen = _checked(samples, policies, theta)
    found = []
    for name, scores in _by_task(samples, chosen, task).items():
        for place in np.flatnonzero(scores.negative(theta, benign)):
            found.append(_negative(name, scores.ids[place], scores.rows))
    return found


def counts(samples: pa.Table, policies: Sequence[str], thetas: Sequence[float], benign: Benign = "mean") -> list[Count]:
    """How many there are: by task and theta, for each policy alone and, last, for all of them together."""
    chosen = _checked(samples, policies, *thetas)
    sets = [(policy,) for policy in chosen] + ([tuple(chosen)] if len(chosen) > 1 else [])
    found = []
    for members in sets:
        for task, scores in _by_task(samples, members, None).items():
            able = int(scores.benign(benign).sum())
            for theta in thetas:
                negative = int(scores.negative(theta, benign).sum())
                found.append(Count(task, members, theta, len(scores.ids), able, negative, scores.left_out))
    return found


@dataclass(frozen=True, eq=False)
class _Scores:
    """ids: samples that all have a score for. baseline float64[n], policies float64[n, policies]. rows: by policy.

    left_out: policies without a sample of the task.
    """

    ids: list[str]
    baseline: Floats
    policies: Floats
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    left_out: tuple[str, ...]

    def benign(self, by: Benign) -> npt.NDArray[np.bool_]:
        """Where the baseline does at least as well as it usually does, and better than 0."""
        usual = np.median(self.baseline) if by == "median" else self.baseline.mean()
        found: npt.NDArray[np.bool_] = (self.baseline >= usual) & (self.baseline > 0)
        return found

    def negative(self, theta: float, by: Benign) -> npt.NDArray[np.bool_]:
        """Benign samples on which even the best policy stays below (1 - theta) of the baseline."""
        found: npt.NDArray[np.bool_] = self.benign(by) & (self.policies.max(axis=1) < (1 - theta) * self.baseline)
        return found


def _by_task(samples: pa.Table, policies: Sequence[str], task: str | None) -> dict[str, _Scores]:
    """Tasks in the order of their first samples; those without a sample of every policy that has any are left out."""
    rows: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in samples.to_pylist():
        wanted = row["policy"] == BASELINE or row["policy"] in policies
        if wanted and row["score"] is not None and task in (None, row["task"]):
            rows.setdefault(row["task"], {}).setdefault(row["policy"], {})[row["sample_id"]] = row
    found = {name: _scores(by_policy, policies) for name, by_policy in rows.items()}
    return {name: scores for name, scores in found.items() if scores.ids}


def _scores(by_policy: Mapping[str, Mapping[str, Mapping[str, Any]]], policies: Sequence[str]) -> _Scores:
    given = [name for name in policies if name in by_policy]
    everyone = [BASELINE, *given]
    baseline = by_policy.get(BASELINE, {}) if given else {}
    common = [sample for sample in baseline if all(sample in by_policy[name] for name in given)]
    table = np.array([[by_policy[name][sample]["score"] for name in everyone] for sample in common], dtype=np.float64)
    table = table.reshape(-1, len(everyone))
    rows = {name: by_policy.get(name, {}) for name in everyone}
    left_out = tuple(name for name in policies if name not in given)
    return _Scores(common, table[:, 0], table[:, 1:], rows, left_out)


def _negative(task: str, sample: str, rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> NegativeSample:
    about = rows[BASELINE][sample]
    answers = {name: _answer(by_sample[sample]) for name, by_sample in rows.items()}
    return NegativeSample(
        task, sample, about["subject"], about["question"], about["reference"], answers.pop(BASELINE), answers
    )


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(row["score"], row["answer"], row["log_probability_nats"], row["output_tokens"])


def _checked(samples: pa.Table, policies: Sequence[str], *thetas: float) -> list[str]:
    """The policies without the baseline, each once. Raises InputError as the public functions say."""
    known = list(dict.fromkeys(samples["policy"].to_pylist()))
    for policy in policies:
        if policy not in known:
            raise unknown_name("evaluated policy", policy, known)
    if BASELINE not in known:
        raise InputError(f"no samples of {BASELINE}, against which negative samples are defined; evaluate it, too")
    chosen = [policy for policy in dict.fromkeys(policies) if policy != BASELINE]
    if not chosen:
        raise InputError(f"negative samples need a policy beside {BASELINE}; name one that was evaluated")
    for theta in thetas:
        if not 0 <= theta <= 1:
            raise InputError(f"theta is {theta:g}: give shares from 0 to 1, as 0.1")
    return chosen
