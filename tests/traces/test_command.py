"""`leankv traces`: what the commands write and print, and that bad input costs one line and exit 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from leankv.app.cli import main
from leankv.traces.open import open_trace

CSV = "t,in,out\n0,10,1\n500,20,2\n1500,30,3\n2000,40,4\n"


@pytest.fixture
def csv(tmp_path: Path) -> str:
    path = tmp_path / "mine.csv"
    path.write_text(CSV)
    return str(path)


def test_list_names_every_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traces", "list", "--json", str(tmp_path / "list.json")]) == 0
    names = [entry["name"] for entry in json.loads((tmp_path / "list.json").read_text())["traces"]]
    printed = capsys.readouterr().out
    assert "azure-conv-2023-like" in names and "mooncake-conversation" in names
    assert all(name in printed for name in names)


def test_describe_prints_and_writes_the_figures(csv: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    columns = ["--columns", "arrival=t:ms,prompt=in,output=out"]
    assert main(["traces", "describe", csv, *columns, "--rate-scale", "2", "--json", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert (figures["requests"], figures["span_s"], figures["rate_per_s"]) == (4, 1.0, 3.0)
    assert "3 requests/s" in capsys.readouterr().out


def test_describe_compares_the_embedded_trace_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traces", "describe"]) == 0
    printed = capsys.readouterr().out
    assert "Kolmogorov-Smirnov" in printed and "Azure LLM inference trace 2023" in printed


def test_describe_against_another_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    arguments = ["--trace", "poisson:n=500", "--against", "poisson:n=500,rate=2", "--json", str(output)]
    assert main(["traces", "describe", *arguments]) == 0
    distances = json.loads(output.read_text())["comparison"]["ks"]
    assert distances["prompt"] == 0 and distances["gaps"] > 0.1
    assert "poisson:n=500,rate=2" in capsys.readouterr().out


def test_convert_applies_the_transforms_and_reads_back(csv: str, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    flags = ["--columns", "arrival=t:ms,prompt=in,output=out", "--window", "0.4:1.8", "--max-prompt", "25"]
    assert main(["traces", "convert", "--trace", csv, *flags, "--repeat", "3", "--output", str(output)]) == 0
    trace = open_trace(str(output))
    assert trace.prompt_tokens.tolist() == [20, 25, 20]
    assert trace.arrival_ps.tolist()[:2] == [10**11, 11 * 10**11]


def test_generate_writes_what_the_workload_says(tmp_path: Path) -> None:
    output = tmp_path / "closed.csv"
    assert main(["traces", "generate", "closed:n=3,prompt=5,output=6", "--output", str(output)]) == 0
    assert output.read_text() == "arrival_ps,prompt_tokens,output_tokens\n0,5,6\n0,5,6\n0,5,6\n"


def test_measure_writes_a_table_that_generates(tmp_path: Path) -> None:
    table = tmp_path / "mine.json"
    arguments = ["--trace", "poisson:n=300", "--like", "mine-like", "--licence", "mine", "--output", str(table)]
    assert main(["traces", "measure", *arguments]) == 0
    trace = open_trace(str(table))
    assert (trace.name, len(trace), trace.provenance["licence"]) == ("mine-like", 300, "mine")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["describe", "nowhere.csv"], "no trace 'nowhere.csv'"),
        (["describe", "poisson:n=5", "--trace", "poisson:n=6"], "two traces named"),
        (["describe", "poisson:n=5", "--limit", "0"], "limit 0 keeps no request"),
        (["describe", "poisson:n=5", "--window", "x"], "--window x cannot be read"),
        (["generate", "poisson:n=5", "--output", "trace.doc"], "end the name in .parquet"),
        (["download", "azure-conv"], "unknown public trace"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traces", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_nothing_heavy_is_imported_before_a_file_is_read() -> None:
    code = (
        "import sys; import leankv.traces.open, leankv.app.commands.traces; "
        "print([name for name in ('pyarrow', 'duckdb', 'pandas', 'scipy', 'torch', 'plotly') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
