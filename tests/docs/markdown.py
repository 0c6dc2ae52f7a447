"""What the documentation's pages hold: code blocks, commands and options."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in NAMED), *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Command:
    """A shell line of a page."""

    page: Path
    words: tuple[str, ...]


def name(path: Path) -> str:
    """The page as its reader knows it."""
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return [text for kind, text in _BLOCK.findall(page.read_text("utf-8")) if kind == language]


def inline(page: Path) -> list[str]:
    """The pieces of code inside sentences and tables."""
    return _INLINE.findall(_BLOCK.sub("", page.read_text("utf-8")))


def commands(page: Path, program: str) -> list[Command]:
    """The lines of console blocks that call a program."""
    lines = [
        line
        for block in blocks(page, "console")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    found = [shlex.split(line, comments=True) for line in lines if line.strip()]
    return [Command(page, tuple(words[1:])) for words in found if words and words[0] == program]
