"""The real traces in the shared folder, against the figures published with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leankv.traces.catalogue import public_trace
from leankv.traces.compare import compare
from leankv.traces.describe import describe
from leankv.traces.measured import measure
from leankv.traces.open import open_trace
from leankv.traces.servegen import chunk_files, read_servegen
from leankv.traces.sizes import read_table
from leankv.traces.source import Source

AZURE = "AzureLLMInferenceTrace_conv_2023.csv.gz"
MOONCAKE = "mooncake_conversation_trace.jsonl.gz"
SERVEGEN = "servegen_deepseek-r1.tar.gz"
SHAREGPT = "sharegpt_val_10k_llama2_lengths.csv.gz"
ARXIV = "arxiv_summarization_lengths_llama2.csv.gz"


def real(shared: Path, name: str) -> str:
    path = shared / "traces" / name
    if not path.is_file():
        pytest.skip(f"{name} is not in the shared folder")
    return str(path)


@pytest.mark.parametrize(
    ("name", "requests", "prompt", "output"),
    [
        (AZURE, 19_366, (1155, 1020, 4142), (211, 129, 601)),
        (MOONCAKE, 12_031, (12_035, 6909, 85_400), (343, 350, 1119)),
        (SHAREGPT, 10_000, (246, 35, 2862), (326, 286, 1000)),
        (ARXIV, 28_257, (2588, 2730, 3933), (291, 167, 3271)),
    ],
)
def test_requests_and_lengths_are_the_published_ones(
    shared: Path, name: str, requests: int, prompt: tuple[int, ...], output: tuple[int, ...]
) -> None:
    figures = describe(open_trace(real(shared, name)))
    assert figures.requests == requests
    for found, published in ((figures.prompt, prompt), (figures.output, output)):
        # Published as whole tokens; percentiles may be taken one rank aside.
        assert (found.mean, found.median, found.p99) == pytest.approx(published, abs=1.5)


def test_azure_arrivals_are_the_published_ones(shared: Path) -> None:
    trace = open_trace(real(shared, AZURE))
    figures = describe(trace)
    assert figures.rate_per_s == pytest.approx(5.53, abs=0.005)
    assert figures.gap_cv == pytest.approx(1.09, abs=0.005)
    assert figures.span_s / 60 == pytest.approx(58, abs=0.5)
    # 18:15:46.6805900 and 18:15:50.9951690
    assert trace.arrival_ps[:2].tolist() == [0, 4_314_579_000_000]
    assert not trace.warnings


def test_mooncake_has_its_ticks_its_spread_and_its_sharing(shared: Path) -> None:
    path = real(shared, MOONCAKE)
    ticks, spread = open_trace(path, spread="none"), open_trace(path)
    assert describe(ticks).gap_cv == pytest.approx(3.03, abs=0.01)
    assert len(np.unique(ticks.arrival_ps)) == 1180
    assert describe(ticks).rate_per_s == pytest.approx(3.40, abs=0.005)
    assert describe(spread).gap_cv < 0.5 and (np.diff(spread.arrival_ps) > 0).all()
    assert np.abs(spread.arrival_ps - ticks.arrival_ps).max() < 3 * 10**12
    assert describe(spread).prefix_hit_rate == pytest.approx(0.374, abs=0.001)


def test_servegen_samples_have_the_counts_and_means_of_the_client_data(shared: Path) -> None:
    source = Source(Path(real(shared, SERVEGEN)))
    figures = describe(read_servegen(source))
    assert len(chunk_files(source)) == 73
    # The sum of rate x window over all windows.
    assert figures.requests == 1_383_669
    assert figures.rate_per_s == pytest.approx(16.0, abs=0.05)
    assert figures.span_s == pytest.approx(86_400, abs=1)
    # The means of the histograms, weighted by the requests of their windows.
    assert figures.prompt.mean == pytest.approx(1268.25, rel=0.01)
    assert figures.output.mean == pytest.approx(1527.4, rel=0.01)


def test_the_embedded_table_is_what_measuring_the_real_trace_gives(shared: Path) -> None:
    shipped = read_table("azure-conv-2023-like")
    origin = {key: shipped[key] for key in ("of", "source", "licence", "citation")}
    assert measure(open_trace(real(shared, AZURE)), shipped["name"], origin) == shipped


def test_the_embedded_trace_is_close_to_the_real_one(shared: Path) -> None:
    distances = compare(open_trace("azure-conv-2023-like"), open_trace(real(shared, AZURE)))["ks"]
    assert max(distances.values()) < 0.025, distances


@pytest.mark.parametrize(
    ("name", "file"),
    [("azure-conv-2023", AZURE), ("mooncake-conversation", MOONCAKE), ("arxiv-summarization", ARXIV)],
)
def test_the_catalogues_checksums_are_those_of_the_copies(shared: Path, name: str, file: str) -> None:
    import hashlib

    content = Source(Path(real(shared, file))).content()
    assert hashlib.sha256(content).hexdigest() == public_trace(name).sha256
