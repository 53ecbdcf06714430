"""How much longer outputs get under each policy, from an evaluation, and how well lengths can be predicted."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from leankv.app.commands._outputs import require_place_for_file
from leankv.app.commands._parsing import parsed

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.backend.evaluation.length_predictor import Predictor
    from leankv.serving.length_shift import Shift

ABOUT = """\
Output lengths under fp16 and under every other policy, prompt by prompt, with natural stopping.

  leankv evaluate --task answers --output-dir quality
  leankv lengths quality
  leankv evaluate --task answers --preset full --output-dir longer        # prompts enough for the predictor
  leankv lengths longer
  leankv simulate --model smollm2-135m --policy fp16 --policy leankv --length-shift quality     # what longer answers do

D = (L_fp16 - L_policy) / L_fp16: -0.5 is an output that grew by half. Where lengths only vary, as many outputs grow by
half as shrink to 2/3, and the ratio of total tokens, which simulate scales outputs by, is 1. Then the length
predictor's held-out accuracy, beside that of plain guesses (pip install 'leankv[quality]'); with simulate
--length-shift, routers that predict are as accurate as the best of these.
"""


@dataclass(frozen=True)
class Lengths:
    quality: Annotated[Path, tyro.conf.Positional]
    """The folder that an evaluation wrote."""
    predictor: bool = True
    """Fit and test the length predictor, too, where at least 20 prompts were answered to their end."""
    json: Path | None = None
    """Write all figures to this file."""


def main(argv: Sequence[str]) -> int:
    """Run `leankv lengths`; raises InputError for bad input."""
    command = parsed(Lengths, "leankv lengths", ABOUT, argv)
    require_place_for_file(command.json)
    from leankv.serving.paired import BASELINE
    from leankv.serving.quality import load_quality

    samples = load_quality(command.quality).samples
    policies = [name for name in samples["policy"].unique().to_pylist() if name != BASELINE]
    shifts, skipped = _shifts(samples, policies)
    _print_shifts(shifts)
    for reason in dict.fromkeys(skipped.values()):
        print(f"left out: {', '.join(policy for policy in skipped if skipped[policy] == reason)}: {reason}")
    predictor = _predictor(samples) if command.predictor else None
    if command.json is not None:
        _write(command.json, shifts, skipped, predictor)
    return 0


def _shifts(samples: pa.Table, policies: Sequence[str]) -> tuple[list[Shift], dict[str, str]]:
    """Those of the policies that have lengths, and why the others have none. Raises InputError where none has."""
    from leankv.serving.errors import InputError
    from leankv.serving.length_shift import TASK, paired_lengths, shift
    from leankv.serving.quality_scores import of_policy

    found, skipped = [], {}
    for policy in policies:
        if not len(of_policy(samples, policy, TASK)):
            skipped[policy] = f"the task {TASK} was not evaluated"
            continue
        try:
            found.append(shift(policy, paired_lengths(samples, policy)))
        except InputError as error:
            skipped[policy] = str(error)
    if not found:
        reason = next(iter(skipped.values()), "only fp16 was evaluated; name policies beside it")
        raise InputError(f"no output lengths to compare: {reason}")
    return found, skipped


def _predictor(samples: pa.Table) -> Predictor | None:
    """Fitted, tested and told; None, with the reason told, where there is too little to learn from or with."""
    from leankv.backend.evaluation.length_predictor import evaluate_predictor
    from leankv.serving.errors import InputError

    try:
        predictor = evaluate_predictor(samples)
    except InputError as error:
        print(f"no length predictor: {error}")
        return None
    _print_predictor(predictor)
    return predictor


def _print_shifts(shifts: Sequence[Shift]) -> None:
    from rich.table import Table

    from leankv.app.commands._run_tables import wide_console
    from leankv.serving.length_shift import QUANTILES

    table = Table(title="D = (L_fp16 - L_policy) / L_fp16, with 95 % intervals")
    table.add_column("policy", overflow="fold")
    for name in (
        "n",
        "mean D",
        " / ".join(f"p{100 * q:g}" for q in QUANTILES),
        "grown by half",
        "shrunk to 2/3",
        "total ratio",
        "capped",
    ):
        table.add_column(name, justify="right")
    for each in shifts:
        table.add_row(
            each.policy,
            str(each.n),
            f"{each.mean:+.3f} {_bounds(each.mean_interval)}",
            " / ".join(f"{value:+.2f}" for value in each.quantiles),
            f"{100 * each.grown_by_half:.1f} % {_bounds(each.grown_by_half_interval, 100)}",
            f"{100 * each.shrunk:.1f} % {_bounds(each.shrunk_interval, 100)}",
            f"{each.total_ratio:.3f} {_bounds(each.total_ratio_interval)}",
            f"{100 * each.capped:.0f} %",
        )
    console = wide_console()
    console.print(table)
    console.print(
        "\\[ ] of means: bootstrap over prompts, expanded for few; no width where all prompts have one ratio. "
        "Outputs that ran into the cap are longer in truth, so growth is understated."
    )
    left_out = max((each.left_out for each in shifts), default=0)
    if left_out:
        console.print(f"{left_out} prompts left out: their fp16 output ran into the cap, so its length is not known")


def _print_predictor(found: Predictor) -> None:
    print(
        f"length predictor, held out by prompt ({found.prompts} prompts, {found.rows} outputs): accuracy "
        f"{found.accuracy:.3f}; the policy's median {found.median:.3f}, by kind of question {found.median_by_kind:.3f}"
    )
    if not found.beats_guesses:
        print("it does not beat the better of the two plain guesses: on these prompts, use the guess")


def _bounds(interval: tuple[float, float] | None, scale: float = 1) -> str:
    digits = 1 if scale > 1 else 3
    return "" if interval is None else f"[{scale * interval[0]:.{digits}f}, {scale * interval[1]:.{digits}f}]"


def _write(path: Path, shifts: Sequence[Shift], skipped: Mapping[str, str], predictor: Predictor | None) -> None:
    from leankv.serving.files import atomic_write

    content = {
        "schema_version": 1,
        "shifts": [asdict(each) for each in shifts],
        "skipped": dict(skipped),
        "predictor": None if predictor is None else asdict(predictor),
    }
    with atomic_write(path) as beside:
        beside.write_text(json_module.dumps(content, indent=1) + "\n", encoding="utf-8")
