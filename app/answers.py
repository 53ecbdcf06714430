"""What was measured of the answers of a scenario's policies, for pages that compare throughput; nothing is inferred.

Figures are taken over only where model and policy, with all its knobs, are those that were evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leankv.app import found

HARM = 0.01  # a rise of perplexity beyond this is a loss of answers
RIGHT = {"needle": "needles found", "answers": "answers right"}  # shares that a winner may lose

LABELS = re.compile(r"^Policy\(name=.*?, (?=live=(?:True|False),)")
"""Name, paper and summary: `kivi` and `kivi:bits=2` are one policy."""


@dataclass(frozen=True)
class Answers:
    """Scores by policy of the scenario. scores: as in quality.json; other policies were not measured."""

    folder: Path
    name: str
    scores: Mapping[str, Mapping[str, Any]]

    def loss(self, policy: str) -> tuple[float, tuple[float, float] | None] | None:
        """Relative rise of perplexity over fp16's, and its 95 % interval; None where it was not measured."""
        score = self.scores.get(policy, {}).get("perplexity")
        if score is None:
            return None
        if score["difference"] is None:
            return (0.0, None) if policy == "fp16" else None
        interval = score["difference_interval"]
        return score["difference"], (interval[0], interval[1]) if interval else None

    def lost(self, policy: str) -> dict[str, tuple[float, float]]:
        """Shares of fp16 and of the policy, by metric of RIGHT, where the paired interval says that some were lost."""
        found = {}
        for metric in RIGHT:
            score = self.scores.get(policy, {}).get(metric) or {}
            interval = score.get("difference_interval")
            if interval and interval[1] < 0:
                found[metric] = score["value"] - score["difference"], score["value"]
        return found

    def asked(self, policy: str) -> list[str]:
        """The metrics of RIGHT that were measured."""
        return [metric for metric in RIGHT if metric in self.scores.get(policy, {})]

    def value(self, policy: str, metric: str) -> float | None:
        score = self.scores.get(policy, {}).get(metric)
        return None if score is None else float(score["value"])


def measured(model: str, specifications: Mapping[str, str]) -> Answers | None:
    """The evaluation of this model that has most of these policies (name -> specification); None without any."""
    candidates = [_read(name, folder, model, specifications) for name, folder in found.offered("quality").items()]
    fitting = [each for each in candidates if each is not None and each.scores]
    return max(fitting, key=lambda each: len(each.scores), default=None)


def evaluated_models() -> list[str]:
    """The models of which there is any evaluation."""
    contents = (_content(folder) for folder in found.offered("quality").values())
    return sorted({content["model"]["name"] for content in contents if content})


def _read(name: str, folder: Path, model: str, specifications: Mapping[str, str]) -> Answers | None:
    content = _content(folder)
    if content is None or content["model"]["name"] != model:
        return None
    there = {knobs(each["specification"]): each["scores"] for each in content["policies"].values()}
    scores = {policy: there[settings] for policy, text in specifications.items() if (settings := knobs(text)) in there}
    return Answers(folder, name, scores)


def _content(folder: Path) -> dict[str, Any] | None:
    """quality.json alone: its scores are made, so no sample has to be read."""
    try:
        content: dict[str, Any] = json.loads((folder / found.MARKS["quality"]).read_text(encoding="utf-8"))
        complete = content["model"]["name"] and content["policies"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if complete else None


def knobs(specification: str) -> str:
    """What a policy does, from its specification: without its name, and up to its retention, which is measured.

    A mix of policies is none of them.
    """
    if ") + Policy(" in specification:
        return specification
    return LABELS.sub("Policy(", specification.partition(", retention=")[0])


def sentence(answers: Answers | None, model: str, best: str, others: list[str]) -> str:
    """What is known of the winner's answers (Markdown)."""
    if answers is None:
        known = f" Measured: {', '.join(others)}." if others else ""
        return (
            f"**Answers**: no quality was measured for {model} under these policies, so a winner here may lose answers "
            f"and none is told.{known}"
        )
    if best not in answers.scores:
        return f"**Answers**: {best} was not evaluated on {model}; what it does to answers is not known."
    said = [_perplexity(answers, best)]
    said += [f"{answers.scores[best][metric]['value']:.0%} of {RIGHT[metric]}" for metric in answers.asked(best)]
    known = "; ".join(each for each in said if each) or "neither perplexity nor needles nor answers"
    only = "" if answers.asked(best) else " Needles and answers were not measured."
    return f"**Answers**: {best}: {known}, measured on {model} ({answers.name}).{only}"


def _perplexity(answers: Answers, policy: str) -> str:
    loss = answers.loss(policy)
    if loss is None:
        return ""
    change, interval = loss
    between = f" (95 %: {interval[0]:+.1%} to {interval[1]:+.1%})" if interval else ""
    return f"perplexity changes by {change:+.1%}{between}"


def warning(answers: Answers | None, best: str) -> str | None:
    """One line where the winner is known to lose answers: in perplexity, or in needles or answers beyond chance."""
    if answers is None:
        return None
    said = []
    loss = answers.loss(best)
    if loss is not None and loss[0] > HARM:
        sure = "" if loss[1] is None or loss[1][0] > 0 else ", which may be chance"
        said.append(f"perplexity rises by {loss[0]:.1%}{sure}")
    said += [
        f"{mine:.0%} of {RIGHT[metric]}, not {theirs:.0%}" for metric, (theirs, mine) in answers.lost(best).items()
    ]
    return f"{best} wins, but loses answers: {'; '.join(said)}. See the Quality page." if said else None
