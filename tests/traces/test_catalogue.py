"""Public traces are fetched whole and true, or not at all."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from leankv.serving.errors import InputError
from leankv.traces import catalogue
from leankv.traces.catalogue import PUBLIC_TRACES, PublicTrace, local_file, public_trace
from leankv.traces.download import download
from leankv.traces.open import open_trace

CONTENT = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing.csv":
            self.send_error(404)
            return
        self.send_response(200)
        announced = len(CONTENT) + (1000 if self.path == "/short.csv" else 0)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def entry(url: str, sha256: str | None = None) -> PublicTrace:
    return PublicTrace("test-trace", "a test", url, "test.csv", "CC0", "nobody", sha256)


def test_a_download_is_checked_kept_and_reports_its_progress(tmp_path: Path, server: str) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    seen: list[tuple[int, int | None]] = []
    path, found = download(entry(f"{server}/good.csv", digest), tmp_path, lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT and found == digest
    assert seen == [(len(CONTENT), len(CONTENT))]


@pytest.mark.parametrize(
    ("page", "sha256", "words"),
    [
        ("good.csv", "0" * 64, "has sha256 .* not 0000.*; the file was not kept"),
        ("missing.csv", None, "answers 404"),
        ("short.csv", None, "cut short after"),
    ],
)
def test_a_bad_download_leaves_nothing(tmp_path: Path, server: str, page: str, sha256: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        download(entry(f"{server}/{page}", sha256), tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"cannot fetch http://127\.0\.0\.1:9/x\.csv .*; check the network, or fetch it by"
    ):
        download(entry("http://127.0.0.1:9/x.csv"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_downloaded_trace_opens_by_its_name(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANKV_TRACES", str(tmp_path))
    with pytest.raises(InputError, match="leankv traces download azure-code-2023"):
        open_trace("azure-code-2023")
    download(replace(public_trace("azure-code-2023"), url=f"{server}/good.csv"))
    assert len(open_trace("azure-code-2023")) == 1
    assert local_file(public_trace("azure-code-2023")).parent == tmp_path


def test_an_unknown_public_trace_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'burstgpt-1'"):
        public_trace("burstgpt-11")


def test_every_entry_is_complete_and_honest_about_its_checksum() -> None:
    assert len({item.name for item in PUBLIC_TRACES}) == len(PUBLIC_TRACES)
    for item in PUBLIC_TRACES:
        assert item.url.startswith("https://") and item.licence and item.cite and item.about
        assert (item.sha256 is None) == (item.checksum_from == "unknown")
        assert item.sha256 is None or len(item.sha256) == 64
    assert catalogue.public_names()[0] == "azure-conv-2023"
