"""Headline cards and the table of a comparison."""

from __future__ import annotations

from types import SimpleNamespace

from leankv.app import scoreboard


def full(sample: SimpleNamespace, **changes: object) -> dict[str, object]:
    values = {"p99_ttft_ms": 800.0, "p99_tpot_ms": 40.0, "peak_kv_gib": 10.0, "usd_per_million_output_tokens": 0.25}
    return sample.summary(**{**values, **changes})


def test_cards_show_the_winner_against_fp16(sample: SimpleNamespace) -> None:
    found = scoreboard.cards(
        {
            "fp16": full(sample, request_goodput=5.0),
            "fp8": full(sample, request_goodput=7.5, peak_kv_gib=5.0, p99_tpot_ms=40.1),
        }
    )
    shown = {card.label: (card.value, card.delta, card.better) for card in found}
    assert shown["Best policy"] == ("fp8", "75% in time", "none")
    assert shown["Goodput"] == ("7.50/s", "+50% vs fp16", "more")
    assert shown["Peak KV memory"] == ("5.00 GiB", "-50% vs fp16", "less")
    assert shown["TPOT p99"] == ("40.1 ms", "same as fp16", "none")


def test_cards_of_the_baseline_alone_have_no_delta(sample: SimpleNamespace) -> None:
    assert [card.delta for card in scoreboard.cards({"fp16": full(sample)})][1:] == [None] * 5


def test_a_missing_latency_is_not_a_number_on_the_page(sample: SimpleNamespace) -> None:
    (card,) = [card for card in scoreboard.cards({"fp16": full(sample, p99_tpot_ms=None)}) if card.label == "TPOT p99"]
    assert card.value == "n/a"


def test_the_table_lists_the_best_first_and_the_unstable_last(sample: SimpleNamespace) -> None:
    table = scoreboard.table(
        {
            "fp16": sample.summary(request_goodput=9.0, stable=False),
            "fp8": sample.summary(request_goodput=2.0),
            "kivi": sample.summary(request_goodput=3.0),
        }
    )
    assert table["Policy"].to_pylist() == ["kivi", "fp8", "fp16"]
