"""`leankv bench cache`: the model, its texts and the lines of the report, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leankv.backend.cache_report import GRID, QUICK, HeadFigures, Progress, exact_outputs, measure, settings
from leankv.backend.capture import Captured, capture
from leankv.backend.key_means import mean_keys, rope_frequencies
from leankv.backend.retention_report import CONTEXTS, retention
from leankv.backend.texts import essays, read_texts, windows
from leankv.backend.weights import Loaded, load
from leankv.serving.errors import InputError, unknown_name
from leankv.serving.policies.base import Policy
from leankv.serving.policies.registry import policy_named

SCORE_DRIVEN = ("leankv", "leankv-r")


@dataclass
class CacheBench:
    """One run of the command.

    grid: None for the default. full: all lines, not the quick ones and those of a grid or policy that was asked for.
    only: labels of the lines wanted instead, empty for those.

    Raises InputError for unknown policies and lines.
    """

    model: str
    text_files: Sequence[Path]
    limit: int
    grid: Sequence[tuple[float, float]] | None
    policies: Sequence[str]
    only: Sequence[str]
    full: bool = True
    captured: list[Captured] = field(default_factory=list)
    prompt: int = 0
    loaded: Loaded | None = None

    def __post_init__(self) -> None:
        every = settings(GRID if self.grid is None else self.grid, self.policies)
        known = [line.label for line in every]
        usual = {line.label for line in settings(GRID if self.grid is None else ())} - set(self.policies)
        for label in self.only:
            if label not in known:
                raise unknown_name("line", label, known)
        wanted = self.only or [label for label in known if self.full or label in QUICK or label not in usual]
        self.settings = [line for line in every if line.label in wanted]

    @property
    def labels(self) -> list[str]:
        return [line.label for line in self.settings]

    def read(self, prompt: int, steps: int, progress: Progress) -> None:
        """Run the model over the texts, and over one more whose mean keys serve the policies that centre keys."""
        self.prompt = prompt
        found = self._captured(prompt + steps, self.limit + 1, progress)
        self.key_means = mean_keys([found.pop()], rope_frequencies(self._loaded()))
        self.captured = found

    def lines(self, progress: Progress) -> list[dict[str, Any]]:
        """One measured line a setting."""
        exact = [exact_outputs(text, self.prompt) for text in self.captured]
        lines: list[HeadFigures] = []
        for number, setting in enumerate(self.settings):

            def report(share: float, number: int = number) -> None:
                progress((number + share) / len(self.settings))

            lines.append(measure(setting, self.captured, exact, self.prompt, self.key_means, report))
        return [line.to_dict() for line in lines]

    def retention(self, contexts: Sequence[int], progress: Progress) -> dict[str, Any]:
        """What the score-driven policies keep by prompt length, as `Retention.from_dict` reads it."""
        loaded = self._loaded()
        possible = [each for each in sorted(contexts or CONTEXTS) if each <= loaded.max_context]
        if not possible or possible[0] < 1:
            raise InputError(f"--contexts: {self.model} reads 1 to {loaded.max_context:,} tokens; give some of those")
        chosen: dict[str, Policy] = {name: policy_named(name) for name in (*SCORE_DRIVEN, *self.policies)}
        texts = self._captured(possible[-1], self.limit, lambda share: progress(0.9 * share))
        source = f"measured on {loaded.name}"
        entries = {name: retention(policy, texts, possible, source).to_dict() for name, policy in chosen.items()}
        return {"schema_version": 1, "model": loaded.name, "texts": len(texts), "policies": entries}

    def conditions(self) -> dict[str, Any]:
        """What the figures hold for."""
        loaded = self._loaded()
        return {
            "model": loaded.name,
            "layers": loaded.layers,
            "heads": loaded.heads,
            "kv_heads": loaded.kv_heads,
            "head_dim": loaded.head_dim,
            "texts": len(self.captured),
            "prompt": self.prompt,
            "steps": self.captured[0].tokens - self.prompt if self.captured else 0,
            "backend": "cpu",
        }

    def _loaded(self) -> Loaded:
        if self.loaded is None:
            self.loaded = load(self.model)
        return self.loaded

    def _captured(self, tokens: int, count: int, progress: Progress) -> list[Captured]:
        texts = read_texts(self.text_files) if self.text_files else essays()
        loaded = self._loaded()
        if tokens > loaded.max_context:
            raise InputError(
                f"{tokens:,} tokens are more than {self.model} reads ({loaded.max_context:,}); ask for fewer"
            )
        found = []
        for number, window in enumerate(windows(texts, loaded.tokenizer, tokens, count)):
            found.append(capture(loaded, window))
            progress((number + 1) / count)
        return found
