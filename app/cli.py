"""The `leankv` command: finds the module of the command that was asked for, imports only that one, and runs it."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from leankv import __version__
from leankv.serving.errors import InputError, unknown_name

COMMANDS = Path(__file__).with_name("commands")
BENCH = "bench_"
BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141

ABOUT = """\
leankv: which KV-cache policy to serve a model with, on this GPU, for this traffic

usage: leankv COMMAND [OPTIONS]"""

TEACHING = """\
A first answer, with no data of your own (a trace is built in):
  leankv simulate --trace azure-conv-2023-like --model llama-3.1-8b --device a100-80gb --policy fp16 --policy leankv

`leankv COMMAND --help` explains a command and its options; `--version` prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit status.

    0 success; 2 bad input, told in one line on standard error; 130 stopped by Ctrl-C; 141 the reader of a pipe left.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = dispatch(arguments)
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"leankv: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("leankv: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes standard output once more at exit; let that go nowhere instead of failing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def commands() -> dict[str, str]:
    """Each command's name and one-line description, from the modules present, without importing any."""
    found = {_spoken(path.stem): _first_line(path) for path in _modules() if not path.stem.startswith(BENCH)}
    if benchmarks():
        found["bench"] = f"Benchmarks that print ratios measured in the same run: {', '.join(benchmarks())}."
    return dict(sorted(found.items()))


def benchmarks() -> dict[str, str]:
    """Each benchmark's name (`sim` for bench_sim.py) and one-line description."""
    return {_spoken(path.stem[len(BENCH) :]): _first_line(path) for path in _modules() if path.stem.startswith(BENCH)}


def dispatch(arguments: list[str]) -> int:
    """Run one command line and return its status; raises what the command raises (InputError, KeyboardInterrupt)."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{ABOUT}\n\n{_listed('commands', commands())}\n\n{TEACHING}")
        return 0 if arguments else BAD_INPUT
    if arguments[0] == "--version":
        print(f"leankv {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in commands():
        raise unknown_name("command", name, commands())
    return _bench(rest) if name == "bench" else _run(name, rest)


def _bench(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: leankv bench WHAT [OPTIONS]\n\n{_listed('benchmarks', benchmarks())}")
        return 0 if arguments else BAD_INPUT
    if arguments[0] not in benchmarks():
        raise unknown_name("benchmark", arguments[0], benchmarks())
    return _run(BENCH + arguments[0], arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    module = import_module(f"leankv.app.commands.{name.replace('-', '_')}")
    status: int = module.main(arguments)
    return status


def _modules() -> list[Path]:
    return sorted(path for path in COMMANDS.glob("*.py") if not path.stem.startswith("_"))


def _spoken(module: str) -> str:
    return module.replace("_", "-")


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _listed(title: str, described: dict[str, str]) -> str:
    width = max(map(len, described), default=0)
    return "\n".join([f"{title}:", *(f"  {name:<{width}}  {line}" for name, line in described.items())])


if __name__ == "__main__":
    sys.exit(main())
