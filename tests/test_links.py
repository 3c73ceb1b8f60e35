"""Documents lead somewhere: every relative link and picture in a Markdown file is there, headings included."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without blocks and spans of code, in which brackets are code's."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """What `#…` may name: headings in small letters, spaces as dashes, without punctuation."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_and_pictures_exist(page: str) -> None:
    path = ROOT / page
    for link in LINK.findall(prose(path)):
        target, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = path.parent / target if target else path
        assert there.exists(), f"{page} links to {link}, which is not there"
        assert there.resolve().is_relative_to(ROOT.resolve()), f"{page} links to {link}, outside of the repository"
        if anchor:
            assert anchor in anchors(there), f"{page} links to {link}: no such heading"


def test_the_documents_are_found() -> None:
    assert {"README.md", "README.zh-CN.md", "CHANGELOG.md", "benchmarks/README.md", "docs/usage.md"} <= set(PAGES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "![" in readme
    assert len(readme.splitlines()) <= 200, "what is more belongs into docs/ or benchmarks/"
