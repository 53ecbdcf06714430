"""What is tracked and what is shipped: a wheel with everything in it, no trace of one machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

FOLDERS = ("serving", "traces", "simulator", "kernels", "backend", "app", "bench")


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that leftovers of other builds cannot slip in."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for name in filter(lambda name: (repository / name).is_dir(), (*FOLDERS, "src")):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(repository / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source / name)
    pip = [sys.executable, "-P", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", place, source], check=True)
    return next(place.glob("leankv-*.whl"))


def test_the_wheel_holds_every_module_and_data_file(wheel: Path, repository: Path) -> None:
    ours = {
        f"leankv/{path.relative_to(repository)}"
        for folder in FOLDERS
        for path in (repository / folder).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".md"}
    }
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert "leankv/app/cli.py" in ours
    assert shipped == ours | {"leankv/__init__.py"}


def test_the_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """The environment holds the wheel alone; a path file lends it this environment's libraries, but not our sources."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-P", "-m", "venv", "--without-pip", environment], check=True)
    packages = next(environment.glob("lib/python3*/site-packages"))
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)

    def leankv(*arguments: str) -> str:
        command = [environment / "bin" / "python", "-P", "-m", "leankv.app.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    where = "import leankv.app.cli; print(leankv.app.cli.__file__)"
    imported = subprocess.check_output([environment / "bin" / "python", "-P", "-c", where], text=True)
    assert Path(imported.strip()) == packages / "leankv" / "app" / "cli.py"
    assert "commands:" in leankv("--help")
    setting = ("--trace", "azure-conv-2023-like", "--limit", "50", "--model", "llama-3.1-8b", "--device", "a100-80gb")
    leankv("simulate", *setting, "--policy", "leankv", "--json", "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["runs"][0]["summary"]["completed"] == 50


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[Path]:
    """Every tracked file; skips where the sources came without their history."""
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=repository, text=True)
    return [repository / name for name in listed.split("\0") if name and (repository / name).exists()]


def test_no_tracked_file_knows_one_machine(tracked: list[Path], repository: Path) -> None:
    # Spelt in pieces so that this file passes its own test.
    private = re.compile(r"/roo" r"t/|/hom" r"e/\w|/wor" r"k/|/opt/py" r"pi|pypi\." r"org|pythonho" r"sted")
    texts = {path: path.read_bytes().decode("utf-8", "ignore") for path in tracked if path.is_file()}
    found = [
        f"{path.relative_to(repository)}: {hit[0]}" for path, text in texts.items() for hit in private.finditer(text)
    ]
    assert found == []


def test_links_are_relative_and_no_lock_file_is_tracked(tracked: list[Path]) -> None:
    assert [path for path in tracked if path.is_symlink() and path.readlink().is_absolute()] == []
    assert [path for path in tracked if path.name == "uv.lock"] == []


def test_constraints_pin_what_the_extras_ask_for(repository: Path) -> None:
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []

    pinned = {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["dev"] + extras["live"] + extras["silicon"]
    assert {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted} - pinned == set()
