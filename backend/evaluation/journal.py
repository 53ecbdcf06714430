"""Samples as they are finished, line by line, so that an evaluation that was cut off goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leankv.serving.errors import InputError
from leankv.serving.quality import TASKS, has_quality, load_quality

NAME = "journal.jsonl"
GROWING = ("windows",)
"""Settings that may differ from call to call: more of them add samples and leave the others as they were."""
DIGESTS = ("model_sha256", "texts_sha256", "mmlu_sha256", "gsm8k_sha256")
"""What evaluations did not note at first: one without it is taken to be of the same."""
Row = dict[str, Any]


class Journal:
    """The rows of an evaluation in `folder` (None: in memory only), those of earlier calls included.

    identity: model, its weights, dtype and seed; settings: by task. Raises InputError where the folder's evaluation is
    of another identity, or of other settings of a task that is asked for.
    """

    def __init__(
        self, folder: Path | None, identity: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.folder, self.identity = folder, dict(identity)
        self.settings = {task: dict(each) for task, each in settings.items()}
        self.specifications: dict[str, str] = {}
        self._rows: dict[tuple[str, str, str], Row] = {}
        if folder is not None:
            self._read_finished(folder)
            self._read_lines(folder / NAME)

    def done(self, policy: str, task: str, sample_ids: Iterable[str]) -> bool:
        """Whether all of these samples are here."""
        return all((policy, task, sample) in self._rows for sample in sample_ids)

    def add(self, rows: Sequence[Row], specification: str) -> None:
        """Keep the rows of one batch of one policy, on disk before this returns."""
        self._take(rows, rows[0]["policy"], specification)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"identity": self.identity, "settings": self.settings, "specification": specification, "rows": rows}
        with (self.folder / NAME).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def rows(self, policies: Sequence[str]) -> list[Row]:
        """All rows: by policy in the order of `in_order`, by task, by sample."""
        order = list(self.in_order(policies))
        keys = sorted(self._rows, key=lambda key: (order.index(key[0]), TASKS.index(key[1]), key[2]))
        return [self._rows[key] for key in keys]

    def in_order(self, policies: Sequence[str]) -> dict[str, str]:
        """Specifications by policy, `policies` first in their order, then those of earlier calls."""
        names = dict.fromkeys([*policies, *self.specifications])
        return {name: self.specifications[name] for name in names if name in self.specifications}

    def close(self) -> None:
        """The rows are in the samples' table by now."""
        if self.folder is not None:
            (self.folder / NAME).unlink(missing_ok=True)

    def _take(self, rows: Sequence[Row], policy: str, specification: str) -> None:
        known = self.specifications.setdefault(policy, specification)
        if known != specification:
            raise InputError(f"{self.folder}: policy {policy} was another then; name another --output-dir")
        self._rows |= {(row["policy"], row["task"], row["sample_id"]): row for row in rows}

    def _read_finished(self, folder: Path) -> None:
        if not has_quality(folder):
            return
        before = load_quality(folder)
        self._require_same(
            {
                "model": before.model.name,
                "model_sha256": before.model_sha256,
                "dtype": before.dtype,
                "seed": before.seed,
            },
            before.settings,
            folder,
        )
        for policy, specification in before.specifications.items():
            self._take(before.of(policy).to_pylist(), policy, specification)

    def _read_lines(self, path: Path) -> None:
        """A last line that was cut off is dropped, and overwritten by what comes."""
        if not path.is_file():
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                line = json.loads(text)
                found = line["identity"], line["settings"], line["rows"], line["specification"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} line {number} is no batch of samples; remove the file") from error
            self._require_same(found[0], found[1], path)
            self._take(found[2], found[2][0]["policy"], found[3])

    def _require_same(
        self, identity: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]], where: Path
    ) -> None:
        for key, value in self.identity.items():
            if identity.get(key) != value and not (key in DIGESTS and identity.get(key) is None):
                held = f"{where} holds an evaluation with {key} {identity.get(key)}"
                raise InputError(f"{held}, not {value}; name another --output-dir")
        for task, each in settings.items():
            mine = self.settings.setdefault(task, dict(each))
            mine = {**mine, **_digests(each), **_digests(mine)}
            if _settled(mine) != {**_digests(mine), **_settled(each)}:
                raise InputError(f"{where} holds other settings of task {task}; name another --output-dir or remove it")
            self.settings[task] = mine | {name: max(mine[name], each[name]) for name in GROWING if name in mine}


def _settled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What may not differ from call to call."""
    return {name: value for name, value in settings.items() if name not in GROWING}


def _digests(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in DIGESTS}
