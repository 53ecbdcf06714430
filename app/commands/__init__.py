"""One module a command: `main(argv: list[str]) -> int`.

The first line of a module's docstring is what `leankv --help` prints for it; `bench_x.py` is `leankv bench x`; a module
whose name begins with an underscore is no command. Modules import what is heavy inside their functions, so that
`leankv COMMAND --help` answers at once.
"""
