"""Who may import whom, held against every source file."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MAY_IMPORT = {
    "serving": {"serving"},
    "traces": {"traces", "serving"},
    "simulator": {"simulator", "traces", "serving"},
    "kernels": {"kernels", "serving"},
    "backend": {"backend", "kernels", "traces", "serving"},
    "bench": {"bench", "simulator", "backend", "kernels", "traces", "serving"},
    "app": {"app", "bench", "simulator", "backend", "kernels", "traces", "serving"},
}
DEVICE_LIBRARIES = {"torch", "triton", "transformers"}
MAY_USE_THE_DEVICE = {"kernels", "backend", "bench"}
REPOSITORY = Path(__file__).resolve().parents[1]


def imports_of(source: str) -> Iterator[str]:
    """Every absolute dotted name that the source imports, at any depth; `from x import y` gives `x.y`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (f"{start}.{alias.name}" for alias in node.names)


def violations(folder: str, source: str) -> list[str]:
    """What a source file in this top-level folder imports against the rules."""
    found = []
    for name in imports_of(source):
        root, _, rest = name.partition(".")
        inner = rest.partition(".")[0]
        if name.startswith("."):
            found.append(f"{name}: a relative import")
        elif root in MAY_IMPORT:
            found.append(f"{name}: not through leankv")
        elif root == "leankv" and inner in MAY_IMPORT and inner not in MAY_IMPORT[folder]:
            found.append(f"{name}: {folder} may not import {inner}")
        elif root in DEVICE_LIBRARIES and folder not in MAY_USE_THE_DEVICE:
            found.append(f"{name}: {folder} runs without it")
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_lies_below_it(folder: str) -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}: {violation}"
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for violation in violations(folder, path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("simulator", "def f():\n    import torch.nn"),
        ("simulator", "from leankv.backend import engine"),
        ("backend", "from leankv import simulator"),
        ("serving", "import leankv.traces.trace as t"),
        ("kernels", "from kernels import get_kernel"),
        ("traces", "from . import readers"),
        ("app", "from transformers import AutoConfig"),
    ],
)
def test_the_rules_catch(folder: str, source: str) -> None:
    assert len(violations(folder, source)) == 1


def test_tests_import_through_the_root_too() -> None:
    bare = [
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in sorted((REPOSITORY / "tests").rglob("*.py"))
        for name in imports_of(path.read_text(encoding="utf-8"))
        if name.partition(".")[0] in MAY_IMPORT
    ]
    assert bare == []


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_the_import_root_is_one_relative_link_per_folder(folder: str) -> None:
    link = REPOSITORY / "src" / "leankv" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / folder
    # Without an __init__.py the folder can never win over an installed package of the same name.
    assert not (REPOSITORY / folder / "__init__.py").exists()


def test_top_level_folders_shadow_nothing_in_a_child_process() -> None:
    look = (
        "import json, sys, runpy\n"
        "from importlib.util import find_spec\n"
        "sys.argv = ['leankv', '--version']\n"
        "try:\n    runpy.run_module('leankv.app.cli', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "specs = {name: find_spec(name) for name in json.loads(sys.stdin.read())}\n"
        "where = {n: list(s.submodule_search_locations or []) + [s.origin or ''] for n, s in specs.items() if s}\n"
        "print(json.dumps(where))\n"
    )
    child = subprocess.run(
        [sys.executable, "-P", "-c", look],
        input=json.dumps(list(MAY_IMPORT)),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    version, found = child.stdout.splitlines()
    assert version.startswith("leankv ")
    ours = [str(REPOSITORY / folder) for folder in MAY_IMPORT]
    assert [(name, place) for name, places in json.loads(found).items() for place in places if place in ours] == []


def test_child_processes_are_started_with_the_folder_off_their_path() -> None:
    unsafe = [
        f"{path.relative_to(REPOSITORY)}: {line}"
        for folder in MAY_IMPORT
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for line in re.findall(r"sys\.executable\s*,(?!\s*\"-P\").*", path.read_text(encoding="utf-8"))
    ]
    assert unsafe == []
