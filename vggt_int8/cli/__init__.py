"""The `vggt-int8` command: one file per subcommand, `app.py` puts them together.

Nothing heavy is imported before a command runs, so `--help` answers at once. Results go to stdout, progress, warnings
and errors to stderr. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

from vggt_int8.cli.app import app, main

__all__ = ["app", "main"]
