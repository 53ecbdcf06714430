"""Show what an evaluation found: every policy beside fp16, or beside any policy that you name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from leankv.app.commands._parsing import parsed

ABOUT = """\
Read an evaluation's folder and print its tables again; nothing runs, and no model is needed.

  leankv quality profiles/quality/smollm2-135m
  leankv quality profiles/quality/smollm2-135m --against leankv

With --against also each policy's differences to the one that you name. They are paired: taken sample by sample, so
that what makes a sample hard is in neither, and the interval is narrower than those of the two policies against fp16.
Compare policies whose physical compression is alike.
"""


@dataclass(frozen=True)
class Options:
    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that `leankv evaluate` wrote."""
    against: str | None = None
    """A policy of the folder, by the name that the first table shows."""


def main(argv: Sequence[str]) -> int:
    """Run `leankv quality`; raises InputError for a folder or a policy that is not there."""
    options = parsed(Options, "leankv quality", ABOUT, argv)
    from leankv.app.commands._quality_tables import print_against, print_quality
    from leankv.serving.errors import unknown_name
    from leankv.serving.quality import load_quality

    quality = load_quality(options.folder)
    if options.against is not None and options.against not in quality.policies:
        raise unknown_name("policy", options.against, quality.policies)
    print_quality(quality)
    if options.against is not None:
        print_against(quality, options.against)
    return 0
