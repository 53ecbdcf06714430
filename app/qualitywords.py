"""What was measured of answers, as points, table and words. Pure functions of a quality folder's content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from leankv.app.figures.quality import Axis, Point
from leankv.serving.errors import InputError
from leankv.serving.paired import BASELINE
from leankv.serving.quality_amounts import preset_words, window_words
from leankv.serving.quality_scores import METRICS

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.serving.quality import PolicyQuality, Quality
    from leankv.serving.quality_scores import Score

# metric: (how it is shown, whether as the difference to fp16)
AXES: Mapping[str, tuple[Axis, bool]] = {
    "perplexity": (Axis("Perplexity against fp16", "%", True, cut=12.0), True),
    "needle": (Axis("Needles found", "%", False), False),
    "choice": (Axis("Choices right", "%", False), False),
    "answers": (Axis("Answers right", "%", False), False),
    "agreement": (Axis("Next tokens as fp16's", "%", False), False),
    "kl_nats": (Axis("Divergence from fp16", "nats", True), False),
}
HARMLESS, TOLERABLE, COLLAPSED = 0.01, 0.05, 0.30  # relative loss of perplexity


def metrics(quality: Quality) -> list[str]:
    """The metrics that were measured, those of the page's order."""
    return [name for name in AXES if any(name in each.scores for each in quality.policies.values())]


def points(quality: Quality, metric: str) -> list[Point]:
    """Each policy by this metric in percent or nats against its compression of the metric's task, with its interval,
    and whether no other beats it in both.
    """
    axis, as_difference = AXES[metric]
    scale = 100.0 if axis.unit == "%" else 1.0
    found = {}
    for name, policy in quality.policies.items():
        shown = _shown(name, policy.scores.get(metric), as_difference)
        if shown is not None:
            value, interval = shown
            low, high = (None, None) if interval is None else (scale * interval[0], scale * interval[1])
            ratio = policy.task_ratios[METRICS[metric].task][1]
            found[name] = Point(name, ratio, scale * value, low, high, False, policy.scores[metric].n)
    whole = [point for point in found.values() if point.policy not in fewer(quality, metric)]
    best = on_frontier({point.policy: (point.ratio, point.value) for point in whole}, axis.less_is_better)
    return [replace(point, on_frontier=name in best) for name, point in found.items()]


def fewer(quality: Quality, metric: str) -> dict[str, int]:
    """Policies with fewer samples of a metric than another has, and how many: they were scored on other text.

    fp16 is never one: it is held against each on the samples of both.
    """
    counts = {
        name: policy.scores[metric].n
        for name, policy in quality.policies.items()
        if name != BASELINE and metric in policy.scores
    }
    return {name: count for name, count in counts.items() if count < max(counts.values())}


def fewer_words(quality: Quality, metric: str) -> str | None:
    """One line that names them; None where all have as many."""
    few = fewer(quality, metric)
    if not few:
        return None
    most = max(policy.scores[metric].n for policy in quality.policies.values() if metric in policy.scores)
    of = "windows" if METRICS[metric].task == "perplexity" else "samples"
    named = ", ".join(f"{name} ({count})" for name, count in few.items())
    return f"Scored on fewer than {most} {of}, so neither on the line nor ranked: {named}."


def _shown(policy: str, score: Score | None, as_difference: bool) -> tuple[float, tuple[float, float] | None] | None:
    if score is None:
        return None
    if not as_difference:
        return score.value, score.interval
    if score.difference is not None:
        return score.difference, score.difference_interval
    return (0.0, None) if policy == BASELINE else None


def on_frontier(places: Mapping[str, tuple[float, float]], less_is_better: bool) -> set[str]:
    """The names whose (compression, figure) no other equals in both and beats in one."""
    sign = 1 if less_is_better else -1

    def beaten(name: str) -> bool:
        ratio, value = places[name]
        return any(
            other >= ratio and sign * (its - value) <= 0 and (other > ratio or sign * (its - value) < 0)
            for each, (other, its) in places.items()
            if each != name
        )

    return {name for name in places if not beaten(name)}


def verdict(quality: Quality) -> str:
    """Of the policies with the most windows: which compresses most without harm, which break the model (Markdown)."""
    few = fewer(quality, "perplexity")
    losses = {
        name: (policy.physical_ratio, policy.scores["perplexity"])
        for name, policy in quality.policies.items()
        if name != BASELINE
        and name not in few
        and "perplexity" in policy.scores
        and policy.scores["perplexity"].difference is not None
    }
    if not losses:
        return "**Perplexity was not measured against fp16 here**; see the tasks below."
    said = [_most(losses, HARMLESS, f"within {HARMLESS:.0%} of fp16's perplexity")]
    wider = _best(losses, TOLERABLE)
    if wider and wider != _best(losses, HARMLESS):
        ratio, score = losses[wider]
        said.append(f"Within {TOLERABLE:.0%}: {wider}, {ratio:.2f} times at {_loss(score)}.")
    broken = [name for name, (_, score) in losses.items() if (score.difference or 0) > COLLAPSED]
    if broken:
        said.append(f"{', '.join(broken)} {'breaks' if len(broken) == 1 else 'break'} the model.")
    if few:
        said.append(str(fewer_words(quality, "perplexity")))
    return " ".join(said)


Losses = Mapping[str, tuple[float, "Score"]]


def _best(losses: Losses, bound: float) -> str | None:
    held = {name: ratio for name, (ratio, score) in losses.items() if (score.difference or 0) <= bound}
    return max(held, key=held.__getitem__) if held else None


def _most(losses: Losses, bound: float, told: str) -> str:
    best = _best(losses, bound)
    if best is None:
        return f"**No policy stays {told}.**"
    ratio, score = losses[best]
    lead = f"**{best} compresses most {told}: {ratio:.2f} times, pages counted**, at {_loss(score)}"
    beyond = score.difference_interval is not None and score.difference_interval[1] > bound
    return f"{lead}; its interval reaches beyond the bound." if beyond else f"{lead}."


def _loss(score: Score) -> str:
    interval = score.difference_interval
    between = f" ({interval[0]:+.1%} to {interval[1]:+.1%})" if interval else ""
    return f"{score.difference or 0:+.1%}{between}"


def warnings(quality: Quality) -> list[str]:
    """What a reader must know before believing the figures."""
    said = []
    if quality.model.name.startswith("random:"):
        said.append("The model has random weights: its answers mean nothing.")
    if BASELINE not in quality.policies:
        said.append("fp16 was not evaluated, so nothing can be held against it.")
    counts = [policy.scores["perplexity"].n for policy in quality.policies.values() if "perplexity" in policy.scores]
    if counts and min(counts) < 40:
        least, most = min(counts), max(counts)
        windows = f"{least}" if least == most else f"{least} to {most}, by policy,"
        said.append(f"Perplexity is of {windows} windows of text: read the intervals, not the order of near ones.")
    if lost := _mild_but_blind(quality):
        said.append(f"Perplexity hides lost needles: {', '.join(lost)}. fp16 finds {_needles(quality, BASELINE)}.")
    return said


def _mild_but_blind(quality: Quality) -> list[str]:
    """Policies of tolerable perplexity that surely find fewer needles than fp16, with what they find."""
    blind = []
    for name, policy in quality.policies.items():
        loss, needle = policy.scores.get("perplexity"), policy.scores.get("needle")
        if loss is None or loss.difference is None or needle is None or needle.difference_interval is None:
            continue
        if loss.difference <= TOLERABLE and needle.difference_interval[1] < 0:
            blind.append(f"{name} finds {_needles(quality, name)}")
    return blind


def _needles(quality: Quality, policy: str) -> str:
    return f"{quality.policies[policy].scores['needle'].value:.0%}"


def conditions(quality: Quality) -> str:
    """What was evaluated, in one line (Markdown)."""
    windows = window_words(quality.settings, [each.scores for each in quality.policies.values()])
    parts = (
        f"**{quality.model.name}** on {quality.device['name']} ({quality.dtype})",
        f"preset {preset_words(quality.preset, quality.settings)}; seed {quality.seed}",
        *([windows] if windows else []),
        f"{len(quality.samples):,} samples of {len(quality.policies)} policies",
        "every score through the policy's own cache",
        f"compression: {quality.bytes_of}",
    )
    return " · ".join(parts)


def table(quality: Quality) -> pa.Table:
    """A row a policy, the least compressing first."""
    import pyarrow as pa

    ordered = sorted(quality.policies.items(), key=lambda each: each[1].physical_ratio)
    return pa.Table.from_pylist([_row(name, policy) for name, policy in ordered])


def _row(name: str, policy: PolicyQuality) -> dict[str, Any]:
    lengths = policy.output_lengths
    return {
        "Policy": name,
        "Compression, physical": policy.physical_ratio,
        "Compression, nominal": policy.nominal_ratio,
        "Perplexity": _value(policy, "perplexity"),
        "Against fp16 (%)": 0.0 if name == BASELINE else _difference(policy, "perplexity"),
        "95 % interval": _interval(policy),
        "Windows": policy.scores["perplexity"].n if "perplexity" in policy.scores else None,
        "Needles (%)": _value(policy, "needle", 100),
        "Choices (%)": _value(policy, "choice", 100),
        "Answers (%)": _value(policy, "answers", 100),
        "Agreement (%)": _value(policy, "agreement", 100),
        "KL (nats)": _value(policy, "kl_nats"),
        "Grown by half (%)": None if lengths is None else 100 * lengths.grown_by_half,
        "95 % of grown": "" if lengths is None else _percents(lengths.grown_by_half_interval),
        "Prompts": None if lengths is None else lengths.n,
        "Cut off (%)": None if lengths is None else 100 * lengths.unfinished,
        "Left out": None if lengths is None else lengths.left_out,
        "Mean output": None if lengths is None else lengths.mean_tokens,
    }


def _percents(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f}"


def _value(policy: PolicyQuality, metric: str, scale: float = 1.0) -> float | None:
    score = policy.scores.get(metric)
    return None if score is None else scale * score.value


def _difference(policy: PolicyQuality, metric: str) -> float | None:
    score = policy.scores.get(metric)
    return None if score is None or score.difference is None else 100 * score.difference


def _interval(policy: PolicyQuality) -> str:
    score = policy.scores.get("perplexity")
    interval = None if score is None else score.difference_interval
    return "" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def length_words(quality: Quality) -> str:
    """Of how many prompts output lengths are, how many were left out, and which policies' answers were cut off."""
    known = {
        name: policy.output_lengths
        for name, policy in quality.policies.items()
        if name != BASELINE and policy.output_lengths is not None
    }
    said = [f"{_range([each.n for each in known.values()])} prompts a policy"]
    if any(each.left_out for each in known.values()):
        left_out = _range([each.left_out for each in known.values()])
        said.append(f"{left_out} more left out, since fp16's answer was cut off and its length is not known")
    cut = [f"{name} {each.unfinished:.0%}" for name, each in known.items() if each.unfinished]
    if cut:
        said.append(f"cut off, so longer in truth and growth understated: {', '.join(cut)}")
    return f"{'; '.join(said)}."


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def length_ratios(quality: Quality, policies: Sequence[str]) -> dict[str, list[float]]:
    """Each policy's output lengths over fp16's of the same prompts, where fp16's ended by itself."""
    from leankv.serving.length_shift import paired_lengths

    found = {}
    for policy in policies:
        with suppress(InputError):  # no prompt that both answered to the end: nothing to tell
            lengths = paired_lengths(quality.samples, policy)
            found[policy] = (lengths.policy / lengths.baseline).tolist()
    found.pop(BASELINE, None)
    return found
