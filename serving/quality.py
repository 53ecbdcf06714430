"""What policies cost in answers, measured: one folder with `quality.json` and `samples.parquet`.

quality.json: what was evaluated on what, and each policy's scores. samples.parquet: a row a policy, task and sample,
from which every score follows. Neither holds a time, so that the same evaluation gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.serving.errors import InputError
from leankv.serving.files import atomic_write
from leankv.serving.models import ModelSpec
from leankv.serving.quality_scores import OutputLengths, Score, of_policy, output_lengths, ratios, score_all
from leankv.serving.runs import commit, config_hash

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
QUALITY_FILE, SAMPLES_FILE = "quality.json", "samples.parquet"
TASKS = ("perplexity", "needle", "choice", "answers")
COLUMNS: Mapping[str, str] = {
    "policy": "string",
    "task": "string",
    "sample_id": "string",
    "subject": "string",
    "prompt_tokens": "int32",
    "output_tokens": "int32",
    "context_tokens": "int32",
    "depth": "float64",
    "score": "float64",
    "log_probability_nats": "float64",
    "scored_tokens": "int32",
    "agreement": "float64",
    "kl_nats": "float64",
    "stopped": "bool",
    "question": "string",
    "reference": "string",
    "answer": "string",
    "kv_fp16_bytes": "int64",
    "kv_payload_bytes": "int64",
    "kv_page_bytes": "int64",
}
"""Columns of the samples with their types. Null where a task has no such figure.

task: one of TASKS. sample_id: the same sample under every policy. subject: the text, or the kind of question.
context_tokens, depth: a needle's. score: from 0 to 1, higher is better: 1/perplexity of a window, else whether the
answer is right. log_probability_nats: summed over the reference's `scored_tokens`, each after the true ones before it.
agreement: share of the scored tokens whose likeliest token is the baseline's (a choice: whether the same option wins).
kl_nats: mean divergence of the next token's distribution from the baseline's, KL(baseline || policy).
stopped: whether a generated answer ended by itself. kv_*_bytes: of the cache, its positions in FP16, the payload held,
and the pages held: mean over the sample's decode steps, as each began; at the sample's end in evaluations whose
settings do not note "kv_bytes".
"""
OBJECTS = ("model", "device", "versions", "settings", "specifications")
KV_BYTES = "mean over decode steps"
"""What an evaluation notes of its bytes: what was held while tokens were scored, not what a last step left."""


@dataclass(frozen=True)
class PolicyQuality:
    """One policy. Ratios are of the task "perplexity", else of all samples; `task_ratios` has them by task.

    specification: the policy with all its knobs, in full. scores: by name of `quality_scores.METRICS`.
    """

    policy: str
    specification: str
    nominal_ratio: float
    physical_ratio: float
    task_ratios: Mapping[str, tuple[float, float]]
    scores: Mapping[str, Score]
    output_lengths: OutputLengths | None


@dataclass(frozen=True, eq=False)
class Quality:
    """An evaluation. device: where it ran, in words. settings: by task, what its samples depend on.

    specifications: by policy. samples: a table of COLUMNS. model_sha256: of the weights, None where it was not noted.
    """

    model: ModelSpec
    device: Mapping[str, Any]
    versions: Mapping[str, str]
    dtype: str
    seed: int
    preset: str
    settings: Mapping[str, Mapping[str, Any]]
    specifications: Mapping[str, str]
    samples: pa.Table
    model_sha256: str | None = None

    @cached_property
    def policies(self) -> Mapping[str, PolicyQuality]:
        """By policy, in the order of `specifications`; those without a sample are left out."""
        scored = {policy: self._policy(policy) for policy in self.specifications}
        return {policy: found for policy, found in scored.items() if found is not None}

    @property
    def bytes_of(self) -> str:
        """Of when the ratios are, in words."""
        noted = {str(each.get("kv_bytes", "at the samples' end")) for each in self.settings.values()}
        return " or ".join(sorted(noted)) or KV_BYTES

    def of(self, policy: str, task: str | None = None) -> pa.Table:
        """The samples of a policy, and of a task where named."""
        return of_policy(self.samples, policy, task)

    def _policy(self, policy: str) -> PolicyQuality | None:
        from leankv.serving.paired import BASELINE

        mine = self.of(policy)
        if not len(mine):
            return None
        by_task = {task: ratios(rows) for task in TASKS if len(rows := of_policy(mine, policy, task))}
        nominal, physical = by_task.get("perplexity") or ratios(mine)
        lengths = output_lengths(of_policy(mine, policy, "answers"), self.of(BASELINE, "answers"))
        specification, scores = self.specifications[policy], score_all(self.samples, policy)
        return PolicyQuality(policy, specification, nominal, physical, by_task, scores, lengths)


def samples_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of COLUMNS as a table; a column that a row lacks is null."""
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=_schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, getattr(pa, "bool_" if kind == "bool" else kind)()) for name, kind in COLUMNS.items()])


def save_quality(quality: Quality, folder: str | Path) -> Path:
    """Write both files, replacing older ones; the samples first, so that `quality.json` speaks of what is there.

    Raises InputError where the folder cannot be written.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    header = _header(quality)
    stamp = {"schema_version": SCHEMA_VERSION, "config_hash": config_hash(header), "commit": commit()}
    with atomic_write(folder / SAMPLES_FILE) as beside:
        described = quality.samples.replace_schema_metadata({key: str(value) for key, value in stamp.items()})
        pq.write_table(described, beside, compression="zstd")
    policies = {name: asdict(policy) for name, policy in quality.policies.items()}
    with atomic_write(folder / QUALITY_FILE) as beside:
        content = {**stamp, **header, "specifications": dict(quality.specifications), "policies": policies}
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def load_quality(folder: str | Path) -> Quality:
    """Read a quality folder.

    Raises InputError: a file is missing or unreadable, of a newer schema, or without a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    content = _read_json(folder / QUALITY_FILE)
    path = folder / SAMPLES_FILE
    try:
        samples = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {path}: not a table of samples; run leankv evaluate again") from error
    wrong = [field for field in _schema() if field not in samples.schema]
    if wrong:
        raise InputError(f"{path} has no column {wrong[0].name!r} of {wrong[0].type}; run leankv evaluate again")
    try:
        return Quality(
            model=ModelSpec(**content["model"]),
            samples=samples.select(list(COLUMNS)),
            model_sha256=content.get("model_sha256"),
            **{
                name: content[name]
                for name in ("device", "versions", "dtype", "seed", "preset", "settings", "specifications")
            },
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / QUALITY_FILE} lacks {error}; run leankv evaluate again") from error


def has_quality(folder: str | Path) -> bool:
    """Whether a finished evaluation lies in the folder."""
    return (Path(folder) / QUALITY_FILE).is_file()


def _header(quality: Quality) -> dict[str, Any]:
    return {
        "model": asdict(quality.model),
        "model_sha256": quality.model_sha256,
        "device": dict(quality.device),
        "versions": dict(quality.versions),
        "dtype": quality.dtype,
        "seed": quality.seed,
        "preset": quality.preset,
        "settings": {task: dict(each) for task, each in quality.settings.items()},
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        newer = content["schema_version"] > SCHEMA_VERSION
        broken = [name for name in OBJECTS if not newer and not isinstance(content[name], dict)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {path}: not a quality file; name a folder that evaluate wrote") from error
    if broken:
        raise InputError(f"cannot read {path}: its {broken[0]} is no object; run leankv evaluate again")
    if newer:
        raise InputError(f"{path} has schema {content['schema_version']}, this version reads {SCHEMA_VERSION}: update")
    return content
