"""Quality: what each policy costs in answers, measured through its own cache, beside what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from leankv.app import found, qualitywords
from leankv.app.figures import quality as figures
from leankv.app.folderchoice import chosen_folder
from leankv.app.headpanel import head_panel, tuning_panel
from leankv.app.navigation import link
from leankv.app.negativebrowser import negative_browser
from leankv.app.pairpanel import pair_panel
from leankv.app.views import download_csv, is_dark, show
from leankv.serving.errors import InputError
from leankv.serving.paired import BASELINE

if TYPE_CHECKING:
    from leankv.serving.quality import Quality

TEACHING = """\
leankv evaluate --output-dir quality
leankv evaluate --policy leankv --policy leankv-r --task perplexity --preset full --output-dir windows"""
FORMATS = {
    "Compression, physical": "%.2fx",
    "Compression, nominal": "%.2fx",
    "Perplexity": "%.2f",
    "Against fp16 (%)": "%+.2f",
    "KL (nats)": "%.4f",
    "Mean output": "%.0f",
    **{f"{name} (%)": "%.0f" for name in ("Needles", "Choices", "Answers", "Agreement", "Grown by half", "Cut off")},
}
HELP = {
    "Compression, physical": "Whole pages: scales, scores, positions, slack and half-empty pages too.",
    "Against fp16 (%)": "Perplexity against fp16's on the same windows; 0 loses nothing.",
    "95 % interval": "Paired bootstrap over the policy's windows, expanded where they are few.",
    "Windows": "Windows of text that the perplexity is of. Policies with fewer were scored on other text.",
    "Agreement (%)": "Share of tokens whose likeliest next token is fp16's.",
    "KL (nats)": "Mean divergence of the next token's distribution from fp16's.",
    "Grown by half (%)": "Share of answers at least half longer than fp16's; understated where answers were cut off.",
    "95 % of grown": "Wilson's interval of the share that grew by half (%).",
    "Prompts": "Prompts whose fp16 answer ended by itself: output lengths are of these.",
    "Cut off (%)": "Share of these whose answer under the policy ran into the cap: longer in truth.",
    "Left out": "Prompts whose fp16 answer ran into the cap: its length is not known.",
}


def page() -> None:
    """Draw the page."""
    with st.sidebar:
        folder = _chosen()
    st.title("What does it cost in answers?", anchor=False)
    if folder is None:
        _teach()
        return
    quality = _loaded(folder)
    if quality is not None:
        _draw(quality)


def _chosen() -> Path | None:
    st.subheader("Evaluation")
    told = "One that ships with this project, that a job made, or a folder that `leankv evaluate` wrote: type it."
    return chosen_folder("Evaluation", found.offered("quality"), "quality", told)


def _teach() -> None:
    st.info(
        "No evaluation here yet. One scores text, finds needles and answers questions through the cache of every "
        "policy, each beside fp16 on the same samples. Start it on the Jobs page, or in a terminal:",
        icon=":material/school:",
    )
    st.code(TEACHING, language="bash")
    link("jobs", "Start one on the Jobs page", ":material/work_history:", {"kind": "Evaluation"})


def _loaded(folder: Path) -> Quality | None:
    from leankv.serving.quality import load_quality

    try:
        return load_quality(folder)
    except InputError as error:
        st.error(str(error), icon=":material/error:")
        return None


def _draw(quality: Quality) -> None:
    st.caption(qualitywords.conditions(quality))
    with st.container(border=True, key="verdict"):
        st.markdown(qualitywords.verdict(quality))
    for line in qualitywords.warnings(quality):
        st.warning(line, icon=":material/warning:")
    _frontier(quality)
    _table(quality)
    pair_panel(quality)
    _tasks(quality)
    _needles(quality)
    negative_browser(quality)
    _lengths(quality)
    tuning = tuning_panel(quality.model.name)
    head_panel(quality.model.name, tuning)


def _frontier(quality: Quality) -> None:
    st.header(
        "Quality against compression",
        anchor=False,
        help="Up and right is better; compression is that of the task's own samples. Bars are 95 % intervals over "
        "samples, those against fp16 paired. Of the policies with the most samples, the broken line joins those that "
        "no other beats in both.",
    )
    titles = {qualitywords.AXES[metric][0].title: metric for metric in qualitywords.metrics(quality)}
    title = st.segmented_control(
        "By", list(titles), default=next(iter(titles)), key="by", required=True, bind="query-params"
    )
    metric = titles.get(title or "") or next(iter(titles.values()))
    axis = qualitywords.AXES[metric][0]
    show(figures.frontier(qualitywords.points(quality, metric), axis, is_dark()), "frontier")
    if few := qualitywords.fewer_words(quality, metric):
        st.caption(few)
    if axis.cut is not None:
        st.caption(f"Policies that lose more than {axis.cut:.0f} {axis.unit} stand at the edge, with their figure.")


def _table(quality: Quality) -> None:
    table = qualitywords.table(quality)
    settings: dict[str, Any] = {
        name: st.column_config.Column(help=HELP.get(name), pinned=name == "Policy") for name in table.column_names
    }
    for name, form in FORMATS.items():
        settings[name] = st.column_config.NumberColumn(format=form, help=HELP.get(name))
    st.dataframe(table, hide_index=True, width="stretch", column_config=settings, key="scores")
    download_csv(table, "quality")


def _tasks(quality: Quality) -> None:
    shown = [metric for metric in qualitywords.metrics(quality) if metric not in ("kl_nats", "agreement")]
    st.header("By task", anchor=False, help="From the least to the most compressing policy; the line is fp16.")
    places = [column for _ in range(0, len(shown), 2) for column in st.columns(2)]
    for column, metric in zip(places, shown, strict=False):
        with column:
            axis = qualitywords.AXES[metric][0]
            show(figures.by_policy(qualitywords.points(quality, metric), axis, is_dark()), f"task-{metric}")


def _needles(quality: Quality) -> None:
    policies = [name for name in quality.policies if len(quality.of(name, "needle"))]
    if not policies:
        return
    st.header("Needles by place", anchor=False, help="A sentence hidden in a long text, asked for at its end.")
    others = [name for name in policies if name != BASELINE]
    chosen = st.segmented_control(
        "Beside fp16", others, default=others[-1] if others else None, key="show", required=True, bind="query-params"
    )
    pair = dict.fromkeys(name for name in (BASELINE, chosen) if name in policies)
    for column, name in zip(st.columns(2), pair, strict=False):
        with column:
            st.markdown(f"**{name}**")
            show(figures.needles(name, quality.of(name, "needle"), is_dark()), f"needles-{name}")


def _lengths(quality: Quality) -> None:
    ratios = qualitywords.length_ratios(quality, list(quality.policies))
    if not ratios:
        return
    st.header(
        "How outputs grow",
        anchor=False,
        help="Answers of the same prompts against fp16's, of those that fp16 answered to the end. Longer outputs cost "
        "throughput.",
    )
    lengths = {name: policy.output_lengths for name, policy in quality.policies.items() if policy.output_lengths}
    show(figures.growth(ratios, lengths, is_dark()), "growth")
    st.caption(qualitywords.length_words(quality))
