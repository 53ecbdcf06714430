"""One module a command: `main(argv: list[str]) -> int`; its docstring's first line is what `leankv --help` prints."""
