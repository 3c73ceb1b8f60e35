"""The `vggt-int8` command: one file per subcommand, combined in `app.py`.

Models and backends are imported when a command runs, so `--help` and option errors only need the import of the package
itself. Results go to stdout; progress, warnings and errors go to stderr. Exit codes: 0 done, 1 failed, 2 bad input;
130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
"""

from vggt_int8.interrupts import heeded

with heeded():
    from vggt_int8.cli.app import app
    from vggt_int8.cli.guard import unread_output_ends
    from vggt_int8.encoding import accept_any_character


def main() -> None:
    """Entry point of the `vggt-int8` command."""
    with heeded(), unread_output_ends():
        accept_any_character()
        app()


__all__ = ["app", "main"]
