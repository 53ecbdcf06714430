"""Negative samples on the page: how many by theta, and each with the question and every answer side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from leankv.app.figures.negatives import by_theta
from leankv.app.views import is_dark, show
from leankv.serving.paired import BASELINE

if TYPE_CHECKING:
    from leankv.serving.negative_samples import Answer, Benign, Count, NegativeSample
    from leankv.serving.quality import Quality

THETAS = (2, 5, 10, 20, 30, 50, 70, 90)  # percent
WIDEST = 3  # answers side by side
LONGEST = 1200  # characters of a text shown
BENIGN: dict[str, Benign] = {"at least the mean": "mean", "at least the median": "median"}


def negative_browser(quality: Quality) -> None:
    """Draw the section; nothing where fp16 or any other policy is missing."""
    from leankv.serving.negative_samples import counts, negative_samples

    others = [name for name in quality.policies if name != BASELINE]
    if BASELINE not in quality.policies or not others:
        return
    st.header(
        "Negative samples",
        anchor=False,
        help="Samples that fp16 does well on (it scores above 0, and as the switch says), and on which every policy of "
        "the set loses at least theta of its score. "
        "A mean can look fine while such samples exist (Rethinking KV Cache Compression, MLSys 2025).",
    )
    wide, left, right = st.columns([3, 2, 2], vertical_alignment="bottom")
    chosen = wide.multiselect("Wrong under every one of", others, others, key="set", bind="query-params") or others
    percent = left.select_slider(
        "Theta (%)", THETAS, 10, key="theta", help="How much of fp16's score must be lost.", bind="query-params"
    )
    theta = percent / 100
    usual = right.segmented_control(
        "fp16 scores", list(BENIGN), default=next(iter(BENIGN)), key="benign", required=True, bind="query-params"
    )
    benign: Benign = BENIGN.get(usual or "", "mean")
    found = negative_samples(quality.samples, chosen, theta, benign)
    by_set = counts(quality.samples, chosen, [each / 100 for each in THETAS], benign)
    chart, samples = st.columns([2, 3])
    with chart:
        show(by_theta(by_set, theta, is_dark()), "negatives")
    together = [each for each in by_set if each.policies == tuple(chosen) and each.theta == theta]
    with samples:
        _browse(found, len(chosen), together)
        for each in together:
            if each.left_out:
                st.caption(f"{each.task}: not given to {', '.join(each.left_out)}, so not asked of them.")


def _browse(found: list[NegativeSample], policies: int, together: list[Count]) -> None:
    """together: of the whole set at this theta, a count a task."""
    benign = sum(count.benign for count in together)
    if not found:
        _none(benign, sum(count.samples for count in together))
        return
    whole = not any(count.left_out for count in together)
    every = (
        "under it" if policies == 1 else f"under all {policies} policies" if whole else "under all that were given it"
    )
    lost = f"{len(found)} of {benign} samples that fp16 does well on {'fails' if len(found) == 1 else 'fail'}"
    st.markdown(f"**{lost} {every}.**")
    named = {f"{sample.task} {sample.sample_id}": sample for sample in found}
    name = st.selectbox("Sample", list(named), key="sample", bind="query-params")
    _sample(named.get(name or "") or found[0])


def _none(benign: int, samples: int) -> None:
    if benign:
        st.success(
            f"None of the {benign} samples that fp16 does well on is lost by every policy of the set at this theta. "
            "Take policies away: what does one alone lose?",
            icon=":material/check_circle:",
        )
    elif samples:
        st.info(
            f"fp16 scores 0 on all {samples} samples: none is left that a policy could lose.", icon=":material/info:"
        )
    else:
        st.info(
            "No sample was scored under fp16 and every policy of the set: nothing is known.", icon=":material/info:"
        )


def _sample(sample: NegativeSample) -> None:
    if sample.question:
        st.caption(f"Question ({sample.subject})" if sample.subject else "Question")
        _text(sample.question)
    if sample.reference:
        st.caption("Right answer")
        _text(sample.reference)
    answers = {BASELINE: sample.baseline, **sample.answers}
    names = list(answers)
    for start in range(0, len(names), WIDEST):
        for column, name in zip(st.columns(WIDEST), names[start : start + WIDEST], strict=False):
            with column:
                _answer(name, answers[name])


def _answer(name: str, answer: Answer) -> None:
    st.caption(f"**{name}** · score {answer.score:.3g}")
    if answer.answer is not None:
        _text(answer.answer or "(empty)")


def _text(text: str) -> None:
    shown = text if len(text) <= LONGEST else f"… {text[-LONGEST:]}"
    st.code(shown, language=None, wrap_lines=True)
