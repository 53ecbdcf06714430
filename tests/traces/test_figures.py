"""What describe says, held to textbook values; and the embedded trace, held to the figures it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.traces.compare import compare, compare_to_figures
from leankv.traces.describe import describe, hit_blocks, ks_distance, ks_to_quantiles, rank_correlation
from leankv.traces.measured import EMBEDDED_DEFAULT, generate_like, measure
from leankv.traces.open import open_trace
from leankv.traces.sizes import read_table
from leankv.traces.trace import PS_PER_S, PrefixBlocks, Trace


def test_figures_of_a_small_trace() -> None:
    arrivals = np.array([0, 1, 2, 6], np.int64) * PS_PER_S
    blocks = PrefixBlocks(np.array([0, 2, 4, 5, 6]), np.array([1, 2, 1, 2, 1, 9]), 100)
    trace = Trace("small", arrivals, np.array([150, 200, 100, 50]), np.array([4, 3, 2, 1]), blocks)
    figures = describe(trace)
    assert (figures.requests, figures.span_s, figures.rate_per_s) == (4, 6.0, 0.5)
    assert figures.gap_cv == pytest.approx(np.std([1, 1, 4]) / 2)
    assert figures.dispersion["1s"] == pytest.approx(np.var([1, 1, 1, 0, 0, 0]) / 0.5)
    assert figures.dispersion["60s"] is None
    assert figures.prompt.mean == 125 and figures.output.max == 4
    assert figures.rank_correlation == pytest.approx(0.8)
    # 200 tokens of the second request and 100 of the third were held before; 500 in all.
    assert figures.prefix_hit_rate == pytest.approx(300 / 500)
    assert hit_blocks(blocks).tolist() == [0, 2, 1, 0]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_rank_correlation_is_pearsons_on_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs).T
    ranks = [[np.mean(np.flatnonzero(np.sort(values) == value)) for value in values] for values in (first, second)]
    if min(np.std(ranks[0]), np.std(ranks[1])) == 0:
        assert rank_correlation(first, second) == 0
    else:
        assert rank_correlation(first, second) == pytest.approx(np.corrcoef(ranks)[0, 1])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_ks_distance_is_the_largest_gap_of_the_distribution_functions(first: list[int], second: list[int]) -> None:
    expected = max(abs(np.mean(np.array(first) <= x) - np.mean(np.array(second) <= x)) for x in range(10))
    assert ks_distance(np.array(first), np.array(second)) == pytest.approx(expected)


def test_ks_to_a_table_is_small_for_its_own_sample_and_large_for_another() -> None:
    sample = np.random.default_rng(0).integers(1, 500, 20_000)
    grid = np.linspace(0, 1, 1001)
    quantiles = np.quantile(sample, grid, method="inverted_cdf")
    assert ks_to_quantiles(sample, grid, quantiles) < 0.002
    assert ks_to_quantiles(sample + 100, grid, quantiles) > 0.15


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_embedded_trace_is_close_to_its_figures(seed: int) -> None:
    table = read_table(EMBEDDED_DEFAULT)
    trace = open_trace(seed=seed)
    figures, real = describe(trace).figures(), table["figures"]
    assert figures["requests"] == real["requests"] == 19_366
    assert figures["rate_per_s"] == pytest.approx(real["rate_per_s"], rel=0.01)
    assert figures["gap_cv"] == pytest.approx(real["gap_cv"], rel=0.06)
    assert figures["dispersion"]["60s"] == pytest.approx(real["dispersion"]["60s"], rel=0.02)
    for role in ("prompt", "output"):
        for figure, tolerance in (("mean", 0.03), ("median", 0.05), ("p90", 0.05), ("p99", 0.03)):
            assert figures[role][figure] == pytest.approx(real[role][figure], rel=tolerance), (role, figure)
    assert figures["rank_correlation"] == pytest.approx(real["rank_correlation"], abs=0.03)
    assert max(compare_to_figures(trace, table)["ks"].values()) < 0.025


def test_the_embedded_table_names_source_licence_and_citation() -> None:
    table = read_table(EMBEDDED_DEFAULT)
    assert (
        table["licence"] == "CC-BY-4.0" and "Splitwise" in table["citation"] and "AzurePublicDataset" in table["source"]
    )
    assert open_trace().provenance["licence"] == "CC-BY-4.0"


def test_a_measured_table_generates_a_trace_like_the_measured_one(tmp_path: Path) -> None:
    import json

    original = open_trace("gamma:rate=10,cv=1.5,n=20000,prompt=lognormal:300:1,output=lognormal:90:0.5,corr=0.4")
    path = tmp_path / "table.json"
    path.write_text(json.dumps(measure(original, "like-mine", {"licence": "mine"})))
    like = open_trace(str(path), seed=5)
    assert like.name == "like-mine" and len(like) == len(original)
    assert max(compare(like, original)["ks"].values()) < 0.05
    assert describe(like).rank_correlation == pytest.approx(describe(original).rank_correlation, abs=0.03)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "trace figures"}', "damaged table of figures"),
        ('{"kind": "else"}', "not a table of figures"),
        ("{", "not a table of figures"),
    ],
)
def test_a_damaged_table_is_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        generate_like(str(path))
