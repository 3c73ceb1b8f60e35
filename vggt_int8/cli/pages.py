"""Shared by the commands that serve a page: listening address, URL, and shutdown."""

from typing import Annotated, Any, Protocol

import typer

from vggt_int8.cli import console, options

Host = Annotated[
    str, typer.Option(help="Address to listen on: by default only this machine, with 0.0.0.0 the whole network.")
]
Port = Annotated[int, typer.Option(help="Port; 0 selects any free port.", **options.between(0, 65535))]
OpenBrowser = Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")]


class Page(Protocol):
    """Something that is served at `url` until `wait` returns."""

    @property
    def url(self) -> str: ...

    def wait(self) -> None: ...


def serve(page: Page, command: str, content: dict[str, Any], *, end: str, open_browser: bool, as_json: bool) -> None:
    """Print the address (with --json: a document with `content`) and how to stop, and wait."""
    if as_json:
        console.document(command, {"url": page.url, **content})
    else:
        console.say(page.url)
    console.note(end)
    if open_browser:
        import webbrowser

        webbrowser.open(page.url)
    page.wait()
