"""The tables of `leankv bench cache`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def print_summary(conditions: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """One row a setting."""
    print(
        f"{conditions['model']}: {conditions['layers']} layers, {conditions['heads']} query and "
        f"{conditions['kv_heads']} KV heads of {conditions['head_dim']}; {conditions['texts']} texts of "
        f"{conditions['prompt']:,} tokens, {conditions['steps']} decoded after each, on the CPU's torch path"
    )
    print(
        "error of attention, relative to float64 over uncompressed keys and values; leankv LOW/HIGH: its thresholds\n"
    )
    print(
        f"{'':<20} {'error: mean':>12} {'median':>8} {'worst head':>11} | {'nominal':>8} {'physical':>9}"
        f" | {'high':>6} {'low':>6} {'pruned':>7}"
    )
    for line in lines:
        high, low = line["kept_shares"]
        print(
            f"{line['setting']:<20} {line['mean_error']:>12.2%} {line['median_error']:>8.2%} {line['max_error']:>11.1%}"
            f" | {line['nominal_ratio']:>7.2f}x {line['physical_ratio']:>8.2f}x"
            f" | {high:>6.1%} {low:>6.1%} {max(0.0, 1 - high - low):>7.1%}"
        )


def print_heads(line: Mapping[str, Any]) -> None:
    """One row a layer, by KV head: the mean error of its query heads, nominal and physical compression."""
    errors, nominal = line["error_by_layer_and_head"], line["nominal_by_layer_and_kv_head"]
    physical = line["physical_by_layer_and_kv_head"]
    kv_heads = len(nominal[0])
    group = len(errors[0]) // kv_heads
    print(f"\n{line['setting']} by layer and KV head: error of its {group} query heads, nominal, physical")
    print("layer " + " | ".join(f"{f'head {head}':^22}" for head in range(kv_heads)))
    for layer, row in enumerate(errors):
        cells = []
        for head in range(kv_heads):
            mean = sum(row[head * group : (head + 1) * group]) / group
            cells.append(f"{mean:>7.2%} {nominal[layer][head]:>6.2f}x {physical[layer][head]:>6.2f}x")
        print(f"{layer:>5} " + " | ".join(cells))


def print_retention(measured: Mapping[str, Any]) -> None:
    """Kept shares by prompt length."""
    print(f"{measured['model']}, {measured['texts']} texts: share of a prompt kept, by its length\n")
    for name, entry in measured["policies"].items():
        print(f"{name}: spread {entry['spread']:.1%} over texts, {entry['slack_pages']:.2f} pages of slack a tier")
        for context, kept in list(zip(entry["contexts"], entry["kept"], strict=True))[1:]:
            print(f"  {context:>6,} tokens: " + ", ".join(f"{each / context:6.1%}" for each in kept) + "  (high, low)")
