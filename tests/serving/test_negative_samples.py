"""Negative samples: fewer with a larger theta and a larger set, and by hand on a small table."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.serving.negative_samples import counts, negative_samples
from leankv.serving.quality import samples_table

POLICIES = ("a", "b", "c")
scores = st.floats(0, 1).map(lambda score: round(score, 3))
tables = st.lists(st.tuples(scores, scores, scores, scores, st.sampled_from(["needle", "choice"])), min_size=1)


def table(rows: list[tuple]):
    """A sample a row: scores of fp16, a, b, c (None: not run), and the task."""
    return samples_table(
        [
            {
                "policy": policy,
                "task": task,
                "sample_id": f"s{place:03}",
                "score": score,
                "question": f"question {place}",
                "answer": f"{policy} on {place}",
                "output_tokens": 3,
            }
            for place, (*values, task) in enumerate(rows)
            for policy, score in zip(("fp16", *POLICIES), values, strict=True)
            if score is not None
        ]
    )


def ids(found) -> set[str]:
    return {each.sample_id for each in found}


@settings(max_examples=200, deadline=None)
@given(tables, st.floats(0, 1), st.floats(0, 1), st.sampled_from(["mean", "median"]))
def test_a_larger_theta_leaves_a_subset(rows, one, other, benign) -> None:
    low, high = sorted((one, other))
    samples = table(rows)
    assert ids(negative_samples(samples, POLICIES, high, benign)) <= ids(
        negative_samples(samples, POLICIES, low, benign)
    )


@settings(max_examples=200, deadline=None)
@given(tables, st.floats(0, 1), st.sets(st.sampled_from(POLICIES), min_size=1), st.sampled_from(POLICIES))
def test_a_larger_set_is_the_intersection(rows, theta, members, another) -> None:
    samples = table(rows)
    together = ids(negative_samples(samples, [*members, another], theta))
    alone = [ids(negative_samples(samples, [member], theta)) for member in {*members, another}]
    assert together == set.intersection(*alone)


@settings(max_examples=100, deadline=None)
@given(tables, st.floats(0, 1), st.sampled_from(["mean", "median"]))
def test_counts_are_those_of_the_samples(rows, theta, benign) -> None:
    samples = table(rows)
    for count in counts(samples, POLICIES, [theta], benign):
        listed = negative_samples(samples, count.policies, theta, benign, count.task)
        assert count.negative == len(listed) <= count.benign <= count.samples


def test_by_hand() -> None:
    """fp16's mean is 0.6: s000 and s002 are benign. b saves s002; a sample that c was not given counts for neither."""
    rows = [
        (1.0, 0.5, 0.89, 0.1, "needle"),
        (0.2, 0.0, 0.0, 0.0, "needle"),
        (1.0, 0.0, 0.95, 0.0, "needle"),
        (0.2, 0.2, 0.2, None, "needle"),
    ]
    samples = table(rows)
    (found,) = negative_samples(samples, POLICIES, 0.1)
    assert found.sample_id == "s000" and found.question == "question 0"
    assert found.baseline.answer == "fp16 on 0"
    assert {name: answer.score for name, answer in found.answers.items()} == {"a": 0.5, "b": 0.89, "c": 0.1}
    assert ids(negative_samples(samples, ["a", "c"], 0.1)) == {"s000", "s002"}
    together = counts(samples, POLICIES, [0.1, 0.95])[-2:]
    assert [(each.samples, each.benign, each.negative) for each in together] == [(3, 2, 1), (3, 2, 0)]


def test_a_task_that_one_policy_was_not_given_is_compared_among_the_others() -> None:
    """c has no choices: it says nothing of them, and hides nothing."""
    rows = [(1.0, 0.5, 0.5, 0.5, "needle"), (1.0, 0.0, 0.0, None, "choice"), (1.0, 0.0, 1.0, None, "choice")]
    samples = table(rows)
    assert ids(negative_samples(samples, POLICIES)) == {"s000", "s001"}
    together = {each.task: each for each in counts(samples, POLICIES, [0.1]) if each.policies == POLICIES}
    assert together["needle"].left_out == () and together["choice"].left_out == ("c",)
    assert (together["choice"].samples, together["choice"].benign, together["choice"].negative) == (2, 2, 1)
    assert {each.task for each in counts(samples, POLICIES, [0.1]) if each.policies == ("c",)} == {"needle"}


def test_the_median_is_a_switch() -> None:
    """Mean 0.55, median 0.5: the second sample is benign by the median alone."""
    rows = [(0.9, 0.1, 0.1, 0.1, "choice"), (0.5, 0.1, 0.1, 0.1, "choice"), (0.25, 0.1, 0.1, 0.1, "choice")]
    assert ids(negative_samples(table(rows), POLICIES)) == {"s000"}
    assert ids(negative_samples(table(rows), POLICIES, benign="median")) == {"s000", "s001"}


def test_what_fp16_scores_0_on_is_never_benign() -> None:
    """Of a task that fp16 gets all wrong the mean is 0, which every sample reaches."""
    rows = [(0.0, 0.0, 1.0, 0.0, "choice")] * 8 + [(1.0, 0.0, 1.0, 1.0, "needle")]
    for benign in ("mean", "median"):
        of_a = {each.task: each for each in counts(table(rows), ["a"], [0.1], benign)}
        assert (of_a["choice"].samples, of_a["choice"].benign, of_a["choice"].negative) == (8, 0, 0)
        assert (of_a["needle"].benign, of_a["needle"].negative) == (1, 1)


def test_what_cannot_be_is_said() -> None:
    samples = table([(1.0, 0.0, 0.0, 0.0, "needle")])
    with pytest.raises(InputError, match="theta"):
        negative_samples(samples, ["a"], 1.5)
    with pytest.raises(InputError, match="beside fp16"):
        negative_samples(samples, ["fp16"])
    with pytest.raises(InputError, match="evaluated policy"):
        negative_samples(samples, ["aa"])
