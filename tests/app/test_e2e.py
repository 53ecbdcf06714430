"""The app in a real browser: a server on a free port, headless Chromium, and what a visitor does."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE_MS = 60_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path, made: Any) -> Iterator[str]:
    """The app's address; its state lies in a folder of its own, with what earlier jobs have left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    state = tmp_path_factory.mktemp("state")
    results = state / "jobs" / "abcdef123456" / "results"
    made.validation_folder(results / "validated", ("fp16", "leankv"))
    made.quality_folder(results / "quality")
    made.profile_folder(results / "profile")
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.headless=true"]
    log = open(state / "server.log", "wb")  # noqa: SIM115 (the server writes it for as long as it lives)
    process = subprocess.Popen(
        [*command, f"--server.port={port}", "--server.address=127.0.0.1"],
        cwd=repository,
        env={**os.environ, "LEANKV_HOME": str(state)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(address, process)
        yield address
        assert process.poll() is None, f"the server died: {(state / 'server.log').read_text()[-2000:]}"
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def _wait_until_up(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server did not come up")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.BrowserContext]:
    """One profile for all tests, so that the app's scripts are loaded once."""
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = found.new_context(viewport={"width": 1400, "height": 1000}, color_scheme="dark")
        context.set_default_timeout(PATIENCE_MS)
        playwright.expect.set_options(timeout=PATIENCE_MS)
        yield context
        found.close()


@pytest.fixture
def page(browser: playwright.BrowserContext) -> Iterator[playwright.Page]:
    opened = browser.new_page()
    yield opened
    opened.close()


def settled(page: playwright.Page) -> None:
    """Wait until the page has its cards and no script runs."""
    page.wait_for_selector('[data-testid="stMetric"]')
    page.wait_for_function("""() => !document.querySelector('[data-testid="stStatusWidget"]')""")


def commit(page: playwright.Page, label: str, value: str) -> None:
    """Type a value into a number field and leave it."""
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Enter")


def chart(page: playwright.Page, name: str) -> playwright.Locator:
    """The chart whose description begins so."""
    return page.get_by_role("figure", name=re.compile(name))


def test_a_job_is_followed_over_a_reload_and_cancelled(server: str, page: playwright.Page) -> None:
    # the first page of a fresh server: a link to any page must work there, too
    page.goto(f"{server}/jobs?kind=Evaluation")
    playwright.expect(page.get_by_role("heading", name="Measure on this machine")).to_be_visible()
    playwright.expect(page.get_by_text(re.compile("leankv evaluate --model smollm2-135m"))).to_be_visible()
    page.get_by_role("radio", name="Live run").click()
    page.get_by_role("button", name="Start: live run").click()
    verdict = page.locator(".st-key-verdict")
    playwright.expect(verdict).to_contain_text("1 job is running")
    page.reload()
    playwright.expect(verdict).to_contain_text("1 job is running")
    page.get_by_role("button", name="Cancel").click()
    playwright.expect(verdict).to_contain_text("was cancelled")
    playwright.expect(page.get_by_role("button", name="Go on")).to_be_visible()
    assert page.locator('[data-testid="stException"]').count() == 0


def test_a_validation_is_read_and_leads_to_its_runs(server: str, page: playwright.Page) -> None:
    page.goto(f"{server}/validate")
    playwright.expect(page.locator(".st-key-verdict")).to_contain_text("the simulator is off by")
    playwright.expect(chart(page, "Simulated against live")).to_be_visible()
    playwright.expect(chart(page, "Map of relative errors")).to_have_count(2)
    page.get_by_role("radio", name="knee").click()
    page.wait_for_url(re.compile("load=knee"))
    playwright.expect(chart(page, "Map of relative errors")).to_have_count(1)
    page.get_by_role("link", name="Open the live run of leankv").click()
    playwright.expect(page.get_by_role("heading", name="One run in depth")).to_be_visible()
    playwright.expect(page.get_by_text(re.compile("leankv · live"))).to_be_visible()


def test_quality_is_read_and_its_samples_are_shown(server: str, page: playwright.Page) -> None:
    page.goto(f"{server}/quality?set=int4")
    playwright.expect(page.locator(".st-key-verdict")).to_contain_text("leankv compresses most within 1%")
    page.get_by_role("radio", name="Needles found").click()
    playwright.expect(chart(page, "Needles found against physical compression").first).to_be_visible()
    playwright.expect(page.get_by_text(re.compile("samples that fp16 does well on fail under it"))).to_be_visible()
    playwright.expect(page.get_by_text("Right answer")).to_be_visible()
    # of a tuning of this model, which ships; without one, of 512 tokens from the job's profile
    # The last of a long page, whose charts are drawn one after another: on busy cores it comes late.
    playwright.expect(chart(page, "Share of essays kept")).to_be_visible(timeout=4 * PATIENCE_MS)


def test_a_profile_can_be_compared_with(server: str, page: playwright.Page) -> None:
    page.goto(f"{server}/?limit=40&rate=0.02")
    settled(page)
    page.get_by_role("radio", name="profile").click()
    page.wait_for_url(re.compile("steptime=profile"))
    playwright.expect(page.get_by_text(re.compile("on 1 x cpu, 2 threads"))).to_be_visible()
    playwright.expect(page.locator(".st-key-verdict")).to_contain_text("step times: profile")
    playwright.expect(page.locator(".st-key-verdict")).to_contain_text("answers: measured")


def test_a_visitor_gets_an_answer_and_walks_through_the_pages(
    server: str, page: playwright.Page, tmp_path: Path
) -> None:
    page.goto(f"{server}/?limit=300")
    settled(page)
    assert re.search(r"wins|ahead|tie|No policy", page.locator(".st-key-verdict").inner_text())
    # the sweep starts by itself, and its verdict joins the first
    playwright.expect(page.locator(".st-key-verdict")).to_contain_text("Highest rate")
    playwright.expect(page.locator('[data-testid="stPlotlyChart"]')).to_have_count(8)
    playwright.expect(page.get_by_role("figure", name=re.compile("Goodput against offered rate"))).to_have_count(1)
    page.screenshot(path=tmp_path / "compare.png", full_page=True)
    assert (tmp_path / "compare.png").stat().st_size > 50_000

    page.get_by_role("link", name="Run").click()
    playwright.expect(page.get_by_role("heading", name="One run in depth")).to_be_visible()
    settled(page)
    page.get_by_role("tab", name="Requests").click()
    playwright.expect(page.get_by_role("figure", name=re.compile("Gantt chart"))).to_be_visible()

    page.get_by_role("link", name="Traces").click()
    playwright.expect(page.get_by_role("heading", name="What the traffic looks like")).to_be_visible()
    playwright.expect(page.get_by_text("19,366").first).to_be_visible()

    page.get_by_role("link", name="Compare").click()
    playwright.expect(page.get_by_role("heading", name="Which KV-cache policy?")).to_be_visible()
    settled(page)
    assert "limit=300" in page.url
    assert page.get_by_label("Requests", exact=True).input_value() == "300"


def test_choices_go_to_the_address_and_the_address_restores_them(server: str, page: playwright.Page) -> None:
    page.goto(f"{server}/?limit=200&policy=fp16&policy=int4&gpu=h100")
    settled(page)
    playwright.expect(page.get_by_text(re.compile("on 1 x h100"))).to_be_visible()
    commit(page, "TPOT (ms)", "33")
    page.wait_for_url(re.compile("tpot=33"))
    chosen = page.locator(".st-key-policy input")
    chosen.fill("quest")
    chosen.press("Enter")
    page.wait_for_url(re.compile("policy=quest"))
    chosen.press("Escape")  # while its list is open, the rest of the page is hidden from assistive technology
    playwright.expect(page.get_by_role("figure", name=re.compile("KV memory of quest"))).to_be_visible()
    address = page.url
    for part in ("limit=200", "policy=fp16", "policy=int4", "gpu=h100"):
        assert part in address
    page.goto("about:blank")
    page.goto(address)
    settled(page)
    playwright.expect(page.get_by_text(re.compile("TPOT ≤ 33 ms"))).to_be_visible()
    playwright.expect(page.get_by_role("figure", name=re.compile("KV memory of quest"))).to_be_visible()
    assert page.get_by_label("TPOT (ms)", exact=True).input_value() == "33"


def test_an_uploaded_trace_is_simulated(server: str, page: playwright.Page, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("arrival,prompt,output\n" + "".join(f"{n / 4},200,40\n" for n in range(80)))
    page.goto(f"{server}/?policy=fp16")
    settled(page)
    page.get_by_role("button", name="Upload a trace").click()
    page.locator('input[type="file"]').set_input_files(path)
    page.wait_for_url(re.compile("trace=.*mine.csv"))
    playwright.expect(page.get_by_text(re.compile("80 requests of .*mine"))).to_be_visible()


def test_a_sweep_survives_a_reload_and_can_be_cancelled(server: str, page: playwright.Page) -> None:
    page.goto(f"{server}/?limit=0&policy=fp16&policy=kivi&policy=leankv")
    settled(page)
    page.get_by_role("button", name="Sweep the rate").click()
    playwright.expect(page.get_by_text(re.compile("Sweeping rates"))).to_be_visible()
    page.reload()
    settled(page)
    playwright.expect(page.get_by_text(re.compile("Sweeping rates"))).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    playwright.expect(page.get_by_text("The sweep was cancelled.")).to_be_visible()
    playwright.expect(page.get_by_role("button", name="Sweep again")).to_be_visible()


def test_bad_input_is_one_line_and_the_page_lives(server: str, page: playwright.Page) -> None:
    page.goto(f"{server}/?limit=200&trace=nowhere.csv")
    alert = page.locator('[data-testid="stAlert"]')
    playwright.expect(alert).to_contain_text("nowhere.csv")
    assert alert.count() == 1
    assert page.locator('[data-testid="stException"]').count() == 0
