"""What `leankv tune` found, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leankv.app.commands._run_tables import wide_console
from leankv.serving.tuning import ended_at_the_grid

MOST_UNLIKE = 5


def print_found(found: Sequence[Mapping[str, Any]], caption: str) -> None:
    """A row a policy and bound: the setting, its compression, and its loss on held-in and held-out text."""
    from rich.table import Table

    table = Table(title="Smallest cache under a bound on the loss", caption=caption)
    for name in ("policy", "bound", "setting", "nominal", "physical", "loss, held in", "loss, held out"):
        table.add_column(name, justify="left" if name in ("policy", "setting") else "right")
    for each in found:
        first, second = each["held_in"], each["held_out"]
        setting = each["spec"].partition(":")[2] if each["spec"] else "none tried is mild enough"
        ratios = ("-", "-") if second is None else (f"{second['nominal']:.2f}x", f"{second['physical']:.2f}x")
        table.add_row(
            each["policy"],
            f"{100 * each['bound']:g} %",
            setting,
            *ratios,
            _loss(first),
            _held_out(second, each["bound"]),
        )
    console = wide_console()
    console.print(table)
    for line in ended_at_the_grid(found):
        console.print(line, highlight=False)


def print_kept(spec: str, kinds: Mapping[str, Any]) -> None:
    """Kept shares by layer, mean over its heads, for each kind of text; then the heads where the kinds differ most.

    kinds: by kind of text, [layers][kv_heads][tiers].
    """
    from rich.table import Table

    shares = {kind: np.array(values).sum(-1) for kind, values in kinds.items()}
    (first, one), (second, other) = shares.items()
    table = Table(title=f"{spec}: share of a prompt's positions kept, in percent")
    columns = 10
    table.add_column("layers", justify="right")
    table.add_column("text")
    for column in range(columns):
        table.add_column(str(column), justify="right")
    for start in range(0, len(one), columns):
        for kind, share in shares.items():
            by_layer = [f"{100 * value:.0f}" for value in share[start : start + columns].mean(1)]
            table.add_row(f"{start}+", kind, *by_layer, *[""] * (columns - len(by_layer)))
    console = wide_console()
    console.print(table)
    unlike = np.argsort(-np.abs(one - other), axis=None)[:MOST_UNLIKE]
    heads = [np.unravel_index(index, one.shape) for index in unlike]
    named = [
        f"layer {layer} head {head}: {100 * one[layer, head]:.0f} and {100 * other[layer, head]:.0f} %"
        for layer, head in heads
    ]
    console.print(f"most unlike, {first} and {second}: {'; '.join(named)}")
    # Over all heads: whether the same heads are the dense ones, whatever the text.
    correlation = float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) if one.std() and other.std() else float("nan")
    console.print(
        f"all heads: {100 * one.mean():.1f} and {100 * other.mean():.1f} % kept; correlation by head {correlation:.2f}"
    )


def _held_out(trial: Mapping[str, Any] | None, bound: float) -> str:
    above = trial is not None and trial["loss"] > bound
    return f"{_loss(trial)}, above the bound" if above else _loss(trial)


def _loss(trial: Mapping[str, Any] | None) -> str:
    if trial is None:
        return "-"
    low, high = trial["interval"]
    return f"{100 * trial['loss']:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}]"
