"""Every format is recognised by its content and read exactly; every bad file is one line that names row and mend."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leankv.serving.errors import InputError
from leankv.traces.arrivals import Arrivals
from leankv.traces.generic import parse_columns
from leankv.traces.open import open_trace
from leankv.traces.recognise import read_trace, recognise
from leankv.traces.source import Source

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-17 00:00:00.0000001,91,16
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 23:59:59.009930+00:00,2162,5
2024-05-11 00:00:00+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
BURSTGPT_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log
19440161.5,,2,ChatGPT,36,29,65,API log
"""
VIDUR_LENGTHS = """num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
3742,284,4026,0.0758
18,243,261,13.5
"""
VIDUR_ARRIVALS = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n5.8926549999999995,91,16\n"
MOONCAKE = "".join(
    json.dumps({"timestamp": tick, "input_length": 600, "output_length": 7, "hash_ids": hashes}) + "\n"
    for tick, hashes in ((0, [0, 1]), (0, [0, 2]), (3000, [0, 1]), (6000, [5, 6]))
)
DATASET = {"0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{3: 1.0}", "reason_ratio": "{}"}}
CHUNKS = {
    "chunk-0-trace.csv": "0,0.5,1.0,Gamma,1.0,2.0\n600,0,0,,0,0\n1200,1.0,2.0,Weibull,0.6,1.0\n",
    "chunk-0-dataset.json": json.dumps(DATASET),
}


def written(folder: Path, name: str, text: str, packed: bool = False) -> Path:
    path = folder / (name + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


def archive(path: Path, members: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("text", "kind", "arrivals_s", "prompts", "outputs"),
    [
        (AZURE_2023, "azure", [0, 4.314579, 20653.3194101], [374, 396, 91], [44, 109, 16]),
        (AZURE_2024, "azure", [0, 0.99007], [2162, 2399], [5, 6]),
        (BURSTGPT, "burstgpt", [0, 113], [472, 417], [18, 276]),
        (BURSTGPT_3, "burstgpt", [0, 51.5], [906, 36], [446, 29]),
        (VIDUR_ARRIVALS, "csv", [0, 5.892655], [374, 91], [44, 16]),
        (MOONCAKE, "mooncake", [0, 1.5, 3, 6], [600] * 4, [7] * 4),
    ],
)
def test_a_format_is_recognised_and_read_to_the_picosecond(
    tmp_path: Path, packed: bool, text: str, kind: str, arrivals_s: list[float], prompts: list[int], outputs: list[int]
) -> None:
    path = written(tmp_path, "misleading.txt", text, packed)
    trace = read_trace(path)
    assert recognise(Source(path)) == kind
    assert trace.arrival_ps.tolist() == [round(second * 10**7) * 10**5 for second in arrivals_s]
    assert trace.prompt_tokens.tolist() == prompts
    assert trace.output_tokens.tolist() == outputs


def test_windows_line_ends_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    text = "\ufeff" + AZURE_2023.replace("\n", "\r\n") + "\r\n\r\n"
    assert len(read_trace(written(tmp_path, "crlf.csv", text))) == 3


def test_failed_burstgpt_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "burst.csv", BURSTGPT))
    assert any("1 failed requests (0 response tokens) left out" in line for line in trace.warnings)


def test_length_files_get_arrivals_and_say_so(tmp_path: Path) -> None:
    path = written(tmp_path, "lengths.csv", VIDUR_LENGTHS)
    trace = read_trace(path)
    assert recognise(Source(path)) == "lengths"
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([3742, 18], [284, 243])
    assert any("has no arrivals" in line for line in trace.warnings)
    chosen = read_trace(path, arrivals=Arrivals("even", rate=4))
    assert chosen.arrival_ps.tolist() == [250 * 10**9, 500 * 10**9] and not chosen.warnings


def test_mooncake_ticks_spread_evenly_randomly_or_not(tmp_path: Path) -> None:
    path = written(tmp_path, "mooncake.jsonl", MOONCAKE)
    kept = read_trace(path, spread="none")
    assert kept.arrival_ps.tolist() == [0, 0, 3 * 10**12, 6 * 10**12]
    assert any("share the timestamp" in line for line in kept.warnings)
    first, again, other = (read_trace(path, spread="random", seed=seed).arrival_ps for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert (first[:2] < 3 * 10**12).all() and (np.diff(first) >= 0).all()
    assert kept.prefix_hashes is not None
    assert kept.prefix_hashes.offsets.tolist() == [0, 2, 4, 6, 8]
    assert kept.prefix_hashes.hashes.tolist() == [0, 1, 0, 2, 0, 1, 5, 6]
    assert kept.prefix_hashes.block_tokens == 512


def test_sorting_carries_prefix_hashes_along(tmp_path: Path) -> None:
    lines = MOONCAKE.splitlines()
    trace = read_trace(written(tmp_path, "late.jsonl", "\n".join([lines[3], lines[0], lines[2]])), spread="none")
    assert trace.prefix_hashes is not None
    assert trace.prefix_hashes.hashes.tolist() == [0, 1, 0, 1, 5, 6]
    assert any("first at row 2); sorted by arrival" in line for line in trace.warnings)


@pytest.mark.parametrize("packed", [False, True])
def test_servegen_folders_and_archives_give_each_window_its_count(tmp_path: Path, packed: bool) -> None:
    if packed:
        path = archive(tmp_path / "clients.tar.gz", {f"./{name}": text for name, text in CHUNKS.items()})
    else:
        path = tmp_path / "clients"
        path.mkdir()
        for name, text in CHUNKS.items():
            (path / name).write_text(text)
    trace = read_trace(path, seed=3)
    counts = np.bincount(trace.arrival_ps // (600 * 10**12), minlength=3)
    assert counts.tolist() == [300, 0, 600]
    assert set(trace.prompt_tokens.tolist()) == {10, 20} and set(trace.output_tokens.tolist()) == {3}
    assert abs((trace.prompt_tokens == 10).mean() - 0.5) < 0.07
    assert np.array_equal(trace.arrival_ps, read_trace(path, seed=3).arrival_ps)
    assert not np.array_equal(trace.arrival_ps, read_trace(path, seed=4).arrival_ps)


def test_an_archive_of_several_models_needs_one_named(tmp_path: Path) -> None:
    members = {f"main/data/{model}/{name}": text for model in ("a", "b") for name, text in CHUNKS.items()}
    path = archive(tmp_path / "all.tar.gz", members)
    with pytest.raises(InputError, match=r"several models \(main/data/a, main/data/b\)"):
        read_trace(path)
    assert len(read_trace(path, folder="data/b")) == 900


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_other_files_are_read_by_named_columns(tmp_path: Path, kind: str) -> None:
    rows = {"when": [100, 1600], "in": [3, 4], "out": [5, 6]}
    path = tmp_path / f"other.{kind}"
    if kind == "csv":
        path.write_text("in,note,when,out\n3,x,100,5\n4,y,1600,6\n")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({k: v[i] for k, v in rows.items()}) + "\n" for i in range(2)))
    else:
        pq.write_table(pa.table(rows), path)
    trace = open_trace(str(path), parse_columns("arrival=when:ms,prompt=in,output=out"))
    assert trace.arrival_ps.tolist() == [0, 1500 * 10**9]
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([3, 4], [5, 6])


@pytest.mark.parametrize(
    ("times", "expected_ps"),
    [
        (["0.000000000001", "2.000000000003"], [0, 2 * 10**12 + 2]),
        (["1e-3", "2E0"], [0, 1999 * 10**9]),
        (["1700000000.123456789", "1700000000.123456790"], [0, 1000]),
        (["2024-01-01T00:00:00Z", "2024-01-01T00:00:01.5Z"], [0, 1500 * 10**9]),
    ],
)
def test_times_are_exact_whatever_their_writing(tmp_path: Path, times: list[str], expected_ps: list[int]) -> None:
    lines = "".join(f"{time},1,1\n" for time in times)
    path = written(tmp_path, "times.csv", f"arrival,prompt,output\n{lines}")
    assert open_trace(str(path)).arrival_ps.tolist() == expected_ps


def azure(*rows: str) -> str:
    return "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.68,374,44", *rows, ""])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; give a trace"),
        ("\n\n", "is empty; give a trace"),
        (azure().splitlines()[0], "holds no requests; give"),
        (azure("2023-11-16 18:15:47,nan,4"), r"row 2 \(line 3\) has no ContextTokens \(NaN or empty\)"),
        (azure("2023-11-16 18:15:47,5,"), r"row 2 \(line 3\) has no GeneratedTokens"),
        (azure("", "2023-11-16 18:15:47,-3,4", "2023-11-16 18:15:48,0,4"), r"row 2 \(line 4\) .* = -3 \(2 such rows"),
        (azure("2023-11-16 18:15:47,5,0"), r"row 2 \(line 3\) has GeneratedTokens = 0; mend or remove"),
        (azure("2023-11-16 18:15:47,5.5,4"), "ContextTokens = 5.5"),
        (azure("2023-11-16 18:15:47,1e12,4"), r"ContextTokens = 1e\+12"),
        (azure("2023-11-16 18:15:47,five,4"), "ContextTokens = 'five', which is not a number"),
        (azure("yesterday,5,4"), r"row 2 \(line 3\) has TIMESTAMP = 'yesterday', which is not a date"),
        (azure(",5,4"), r"row 2 \(line 3\) has no TIMESTAMP"),
        (azure("2023-11-16 18:15:47,5"), r"row 2 \(line 3\) has 2 fields where the header has 3"),
        ("a,b,c\n1,2,3\n", "no column recognised as arrival or prompt or output .it has a, b, c.; name the columns"),
        ("# A heading\n\nSome text\n", "no column recognised"),
        ("[1, 2]\n", "no column recognised"),
        ("\0\1\2binary", "no trace in a known format"),
        ("{broken\n", r"row 1 \(line 1\) is not a JSON object"),
        (MOONCAKE + '{"timestamp": 7000, "input_le', r"row 5 \(line 5\) is not a JSON object"),
        (MOONCAKE.replace('"input_length": 600', '"input_length": NaN', 1), r"row 1 \(line 1\) has no input_length"),
        (MOONCAKE + MOONCAKE.splitlines()[0].replace("600", '"x"'), r'row 5 \(line 5\) has input_length = "x"'),
        (MOONCAKE + MOONCAKE.splitlines()[0].replace(": 7", ": 0"), r"row 5 \(line 5\) has output_length = 0"),
        ("PAR1 and then nothing", "not a readable Parquet file"),
        ("arrival,prompt,output\n-1,5,5\nnan,5,5\n", r"row 2 \(line 3\) has no arrival"),
        ("arrival,prompt,output\n0,5,5\n9300000,5,5\n", "spans over 106 days"),
        ("arrival,prompt,prompt,output\n0,5,5,5\n", "has column prompt twice"),
        ("arrival_ps,prompt,output\n-5,5,5\n", "row 1 .* has a negative arrival_ps"),
    ],
)
def test_bad_input_is_one_line_with_file_row_and_mend(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, "bad.txt", text)
    with pytest.raises(InputError, match=words) as caught:
        open_trace(str(path))
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "; " in message


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (gzip.compress(AZURE_2023.encode() * 5000)[:-2000], r"cut short after line \d+; fetch it again"),
        (b"\x1f\x8b" + b"nonsense" * 9, "not a readable gzip|damaged"),
    ],
)
def test_a_gzip_cut_short_or_damaged_is_told(tmp_path: Path, packed: bytes, words: str) -> None:
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(packed)
    with pytest.raises(InputError, match=words):
        open_trace(str(path))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("chunk-0-trace.csv", "0,0.5,1.0,Pareto,1,1\n", "chunk-0-trace.csv row 1 has pattern 'Pareto'"),
        ("chunk-0-trace.csv", "0,0,0,,0,0\n600,x,1,Gamma,1,1\n", "chunk-0-trace.csv row 2 has no number in field 2"),
        ("chunk-0-trace.csv", "0,-1,1,Gamma,1,1\n", "row 1 has -1.0 in field 2"),
        ("chunk-0-trace.csv", "0,0,0,,0,0\n", "no window with requests"),
        ("chunk-0-dataset.json", "{", "chunk-0-dataset.json cannot be read"),
        ("chunk-1-trace.csv", "0,0.5,1.0,Gamma,1,1\n", "chunk-1 lacks"),
    ],
)
def test_bad_servegen_data_is_told(tmp_path: Path, name: str, text: str, words: str) -> None:
    for chunk, content in {**CHUNKS, name: text}.items():
        (tmp_path / chunk).write_text(content)
    with pytest.raises(InputError, match=words):
        open_trace(str(tmp_path))


def test_a_folder_without_client_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no chunk-N-trace\.csv"):
        open_trace(str(tmp_path))


def test_shared_timestamps_are_kept_and_counted(tmp_path: Path) -> None:
    trace = open_trace(str(written(tmp_path, "same.csv", azure("2023-11-16 18:15:46.68,5,6"))))
    assert trace.arrival_ps.tolist() == [0, 0]
    assert any("1 requests share the timestamp" in line for line in trace.warnings)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("azure-conv-2023-lik", "did you mean 'azure-conv-2023-like'"),
        ("mooncake_conversation.jsonl", "did you mean 'mooncake-conversation'"),
        ("poison:rate=4", "did you mean 'poisson:"),
        ("qqqqqq", "no such file and no such name; give a path"),
    ],
)
def test_a_missing_trace_suggests_the_nearest_name(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_trace(spec)


def test_a_mistyped_file_suggests_the_one_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "monday.csv", AZURE_2023)
    with pytest.raises(InputError, match=r"did you mean '.*/monday\.csv'"):
        open_trace(str(tmp_path / "mondey.csv"))


@pytest.mark.parametrize(("text", "words"), [("arrival", "is not role=name"), ("promt=x", "did you mean 'prompt'")])
def test_wrong_column_mappings_are_told(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_columns(text)


def test_a_million_rows_are_read_in_seconds(tmp_path: Path) -> None:
    from time import perf_counter

    rows = "".join(f"{second}.{second % 10},374,44\n" for second in range(1_000_000))
    path = written(tmp_path, "million.csv", f"arrival,prompt,output\n{rows}")
    start = perf_counter()
    trace = open_trace(str(path))
    assert len(trace) == 1_000_000
    # Measured at 1 s; a reader that goes row by row in Python needs far more than this.
    assert perf_counter() - start < 10
