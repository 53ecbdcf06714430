"""What each head keeps, on the page: by kind of text from a tuning, or by context from a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from leankv.app import profiles, tunings
from leankv.app.figures.quality import kept_by_head
from leankv.app.folderchoice import chosen_folder
from leankv.app.views import is_dark, numbers, show
from leankv.serving.errors import InputError
from leankv.serving.tuning import ended_at_the_grid

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.serving.profile import HeadRetention


ABOVE = ", above the bound"


def tuning_panel(model: str) -> dict[str, Any] | None:
    """The settings that a bound on quality allows, of a tuning of this model that is chosen here; returns it."""
    st.header(
        "Settings that a bound allows",
        anchor=False,
        help="Found on some windows of text, then scored on others that the search had not seen.",
    )
    folder = _chosen(model)
    if folder is None:
        st.caption(f"No tuning of {model} was found. `leankv tune --output-dir tuned` makes one: then type its folder.")
        return None
    try:
        tuning = tunings.opened(folder, model)
    except InputError as error:
        st.error(str(error), icon=":material/error:")
        return None
    st.caption(tunings.conditions(tuning, folder))
    for line in [*missed(tuning["found"]), *ended_at_the_grid(tuning["found"])]:
        st.warning(line, icon=":material/warning:")
    numbers(tuned(tuning["found"]), "tuned")
    return tuning


def head_panel(model: str, tuning: Mapping[str, Any] | None) -> None:
    """Draw the section from the tuning, else from a profile of this model; nothing where neither measured it."""
    measured = profiles.with_heads(model)
    if not measured and not (tuning and tuning["kept"]):
        return
    st.header("What each head keeps", anchor=False, help="Share of a prompt's tokens, in both tiers together.")
    if tuning and tuning["kept"]:
        _by_text(tuning["kept"])
    else:
        _by_context(measured)


def _chosen(model: str) -> Path | None:
    told = "One of this model that a job made or that ships, or a folder that `leankv tune` wrote: type it."
    return chosen_folder("Tuning", tunings.of_model(model), "tuning", told, "visible")


def _by_text(kept: Mapping[str, Mapping[str, Any]]) -> None:
    """One map a kind of text, and in words how much they differ."""
    name = st.selectbox("Setting", list(kept), key="heads", bind="query-params")
    kinds = kept.get(name or "") or next(iter(kept.values()))
    for column, (kind, tokens) in zip(st.columns(len(kinds)), kinds.items(), strict=True):
        with column:
            st.markdown(f"**{kind}**")
            show(kept_by_head(np.sum(tokens, axis=-1), kind, is_dark()), f"heads-{kind}")
    st.caption(unlike(kinds))


def _by_context(measured: Mapping[str, HeadRetention]) -> None:
    left, right = st.columns(2)
    policy = left.selectbox("Policy", list(measured), key="heads", bind="query-params")
    heads = measured.get(policy or "") or next(iter(measured.values()))
    context = right.select_slider("Context (tokens)", heads.contexts, heads.contexts[-1], key="context")
    tokens = heads.tokens[heads.contexts.index(context)]
    show(kept_by_head(np.sum(tokens, axis=-1) / context, f"{context:,} tokens", is_dark()), "heads")


def unlike(kinds: Mapping[str, Any]) -> str:
    """How two kinds of text differ in what their heads keep: on average, and whether the same heads are dense."""
    if len(kinds) < 2:
        return ""
    (first, one), (second, other) = [(kind, np.array(tokens).sum(-1)) for kind, tokens in list(kinds.items())[:2]]
    layer, head = np.unravel_index(int(np.abs(one - other).argmax()), one.shape)
    most = f"{one[layer, head]:.0%} and {other[layer, head]:.0%}"
    same = f"correlation {np.corrcoef(one.ravel(), other.ravel())[0, 1]:.2f}" if one.std() and other.std() else "flat"
    return (
        f"Kept of {first} {one.mean():.0%}, of {second} {other.mean():.0%}. Heads differ most in layer {layer}, head "
        f"{head}: {most}. Over all heads: {same}."
    )


def tuned(found: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A row a policy and bound: the setting, its compression, and its loss on the text that found it, and on other."""
    import pyarrow as pa

    return pa.Table.from_pylist([_row(each) for each in found])


def _row(each: Mapping[str, Any]) -> dict[str, Any]:
    held_in, held_out = each["held_in"], each["held_out"]
    return {
        "Policy": each["policy"],
        "Bound (%)": 100 * each["bound"],
        "Setting": each["spec"] or "none tried is mild enough",
        "Compression, physical": None if held_out is None else held_out["physical"],
        "Compression, nominal": None if held_out is None else held_out["nominal"],
        "Loss, held in": _loss(held_in),
        "Loss, held out": _loss(held_out) + (ABOVE if _above(each) else ""),
    }


def missed(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for every setting that loses more than its bound on text that the search had not seen."""
    return [
        f"{each['spec']} was found under a bound of {each['bound']:.2%} and loses {each['held_out']['loss']:.2%} on "
        "text that the search had not seen: the bound does not hold there."
        for each in found
        if _above(each)
    ]


def _above(each: Mapping[str, Any]) -> bool:
    return each["held_out"] is not None and each["held_out"]["loss"] > each["bound"]


def _loss(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return ""
    interval = figures["interval"]
    return f"{figures['loss']:+.2%}" + (f" ({interval[0]:+.2%} to {interval[1]:+.2%})" if interval else "")
