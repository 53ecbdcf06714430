"""The kinds of live work that the app starts: each a `leankv` command, its settings as fields, its command line.

A kind adds nothing to its command: what it shows is what a terminal would run.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

FieldKind = Literal["choice", "text", "number", "count", "policies", "trace", "profile", "switch", "several"]
RESULTS = "results"
LIVE_EXTRA = ("torch", "transformers")


@dataclass(frozen=True)
class Field:
    """One setting: its flag, how the page asks for it, and what it is where nobody says otherwise.

    `options` are the values of a choice, or those that a text suggests. An empty value leaves the flag away, or says
    `otherwise` in its place.
    """

    flag: str
    label: str
    kind: FieldKind
    default: Any = None
    help: str = ""
    options: tuple[str, ...] = ()
    least: float = 0
    otherwise: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.flag.strip("-").replace("-", "_")

    def words(self, value: Any) -> list[str]:
        """The setting as words of a command line."""
        if value is None or value == "" or value == ():
            return list(self.otherwise)
        if self.kind == "switch":
            return [self.flag] if value else []
        if self.kind in ("policies", "several"):
            return [word for each in value for word in (self.flag, str(each))]
        return [self.flag, f"{value:g}" if isinstance(value, float) else str(value)]


@dataclass(frozen=True)
class Kind:
    """One command. `about` says what it is for and how long it takes; `verb` names it in a sentence."""

    name: str
    title: str
    icon: str
    about: str
    fields: tuple[Field, ...]

    @property
    def command(self) -> str:
        return self.name

    def argv(self, params: Mapping[str, Any], output_dir: Path) -> list[str]:
        """The words after `leankv`."""
        words = [word for field in self.fields for word in field.words(params.get(field.name, field.default))]
        return [self.command, *words, "--output-dir", str(output_dir)]

    def line(self, params: Mapping[str, Any], output_dir: Path) -> str:
        """The command as a terminal takes it."""
        return shlex.join(["leankv", *self.argv(params, output_dir)])

    def summary(self, params: Mapping[str, Any]) -> str:
        """The settings that are not as they come, in one line."""
        changed = []
        for field in self.fields:
            value = params.get(field.name, field.default)
            if value in (None, "", (), [], False) or (_plain(value) == _plain(field.default) and field.name != "model"):
                continue
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            changed.append(field.label if value is True else f"{field.label.lower()} {shown}")
        return " · ".join(changed)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def live_missing() -> str | None:
    """One line on what live work needs and this environment lacks; None where nothing is missing."""
    lacking = [name for name in LIVE_EXTRA if find_spec(name) is None]
    if not lacking:
        return None
    return f"Live work needs {' and '.join(lacking)}, not installed here: `pip install 'leankv[live]'`"


MODEL = Field(
    "--model",
    "Model",
    "text",
    "smollm2-135m",
    "smollm2-135m, a folder with config.json, a .gguf file, or a Hugging Face name.",
    ("smollm2-135m",),
)
BACKEND = Field(
    "--backend",
    "Runs on",
    "choice",
    "auto",
    "auto: a GPU if there is one.",
    ("auto", "cpu", "cuda"),
)
SHAPES = ("llama-3-8b", "llama-3.1-8b", "qwen3-8b", "mistral-7b")
TRACE = Field("--trace", "Trace", "trace", "azure-conv-2023-like", "Which requests arrive when, how long.")
RATE = Field("--rate-scale", "Rate scale", "number", 1.0, "Arrivals this many times as fast.", least=0.01)
KV_HELP = "Less of it brings memory pressure to any machine."
KV = Field("--kv-memory-gib", "KV memory (GiB)", "number", None, KV_HELP, least=0.001)
CONTEXT_HELP = "Measure contexts of up to so many. Empty: 1024 on a CPU, 2048 on a GPU."
REPEATS_HELP = "Live runs of each policy and load. Empty: 3, or as many as fit into ten minutes a load."
PROMPT = Field("--max-prompt", "Prompt tokens at most", "count", 256, "Longer prompts are cut.", least=1)
OUTPUT = Field("--max-output", "Output tokens at most", "count", 32, "Longer answers are cut.", least=1)


def limit(requests: int) -> Field:
    return Field("--limit", "Requests", "count", requests, "Only the first so many requests of the trace.", least=1)


def policies(*default: str) -> Field:
    help = "Only policies that run live are offered; knobs follow a colon: kivi:bits=2."
    return Field("--policy", "Policies", "policies", default, help)


_KINDS = (
    Kind(
        "run",
        "Live run",
        ":material/play_circle:",
        "Serves a trace in real time on a real model, under each policy in turn: a run folder a policy, of the same "
        "kind that the simulator writes.",
        (MODEL, policies("fp16", "leankv"), TRACE, limit(40), RATE, PROMPT, OUTPUT, KV, BACKEND),
    ),
    Kind(
        "calibrate",
        "Calibration",
        ":material/tune:",
        "Measures this machine and model in minutes: step times, memory, and what each policy keeps of real texts. The "
        "profile it writes is what simulations of this machine follow. Leave the machine alone meanwhile.",
        (
            MODEL,
            policies("fp16", "int8", "kivi", "leankv"),
            Field("--max-num-seqs", "Requests at once", "count", None, "Measure batches of up to so many.", least=1),
            Field("--max-context", "Context (tokens)", "count", None, CONTEXT_HELP, least=128),
            BACKEND,
            Field("--quick", "Quick", "switch", False, "A small grid, once: to see that it works. Figures are rough."),
        ),
    ),
    Kind(
        "validate",
        "Validation",
        ":material/balance:",
        "Runs a trace live under several policies and loads, simulates the same from a profile of this machine, and "
        "says how far off the simulation is.",
        (
            Field(
                "--profile",
                "Profile",
                "profile",
                None,
                "What `calibrate` measured on this machine and model. None: one is measured between the repeats.",
                otherwise=("--calibrate",),
            ),
            policies("fp16", "int8", "kivi", "leankv"),
            TRACE,
            Field(
                "--load",
                "Loads",
                "several",
                ("low", "knee", "overload"),
                "The knee is the highest rate served in time; low is two thirds of it, overload half as much again.",
                ("low", "knee", "overload"),
            ),
            Field("--repeats", "Repeats", "count", None, REPEATS_HELP, least=1),
            limit(40),
            PROMPT,
            OUTPUT,
            KV,
            BACKEND,
        ),
    ),
    Kind(
        "evaluate",
        "Evaluation",
        ":material/grading:",
        "Scores text, finds needles and answers questions through the cache of every policy, each beside fp16 on the "
        "same samples.",
        (
            MODEL,
            policies("fp16", "int8", "int4", "kivi:bits=4", "leankv", "leankv-r"),
            Field(
                "--task",
                "Tasks",
                "several",
                ("perplexity", "needle", "choice", "answers"),
                "Text scored token by token, needles in long texts, multiple choice, generated answers.",
                ("perplexity", "needle", "choice", "answers"),
            ),
            Field(
                "--preset", "Preset", "choice", "quick", "quick: minutes on two cores; full: more.", ("quick", "full")
            ),
            BACKEND,
        ),
    ),
    Kind(
        "tune",
        "Tuning",
        ":material/instant_mix:",
        "Finds the settings of LeanKV with the smallest cache whose loss in perplexity stays under a bound, and scores "
        "them on text that the search has not seen.",
        (
            MODEL,
            Field("--policy", "Policies", "policies", ("leankv",), "leankv or leankv-r; both can be chosen."),
            Field("--max-loss", "Loss at most", "number", 0.01, "Relative rise of perplexity over fp16.", least=0.001),
            Field("--windows", "Windows searched", "count", 8, "Windows of text that the search scores.", least=2),
            Field("--held-out", "Windows held out", "count", 16, "Windows that what it found is scored on.", least=2),
        ),
    ),
    Kind(
        "gpu-job",
        "GPU job",
        ":material/memory:",
        "All that needs a GPU, in ten minutes: the kernels' correctness and speed, a profile of a model with its "
        "validation, and a large model's step times with random weights.",
        (
            MODEL,
            Field("--shape", "Large shape", "text", "llama-3-8b", "Its step times, with random weights.", SHAPES),
            Field("--minutes", "Minutes", "number", 10.0, "Time for everything.", least=1.0),
            BACKEND,
            Field("--quick", "Quick", "switch", False, "Tiny, to see that every part runs: its figures mean nothing."),
        ),
    ),
)


def kinds() -> dict[str, Kind]:
    """The kinds whose command this version has, by name."""
    from leankv.app.cli import commands

    present = commands()
    return {kind.name: kind for kind in _KINDS if kind.command in present}
