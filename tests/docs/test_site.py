"""The site agrees with the code, and needs no network."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from tests.docs.markdown import PAGES, ROOT, name

import dither
from dither import errors

DOCS = ROOT / "docs"


def test_reference_lists_the_public_names_and_no_others() -> None:
    page = (DOCS / "reference" / "api.md").read_text("utf-8")
    shown = {
        path.rsplit(".", 1)[1]: path for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    }
    assert set(shown) == set(dither._PUBLIC)
    for public, path in shown.items():
        module, _, attribute = path.rpartition(".")
        listed = getattr(sys.modules.get(dither._PUBLIC[public]) or _import(public), public)
        assert getattr(_module(module), attribute) is listed


def _import(public: str) -> object:
    return _module(dither._PUBLIC[public])


def _module(path: str) -> object:
    __import__(path)
    return sys.modules[path]


def test_every_error_class_is_explained() -> None:
    page = (DOCS / "reference" / "errors.md").read_text("utf-8")
    kinds = {
        kind for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.DitherError) and kind is not errors.DitherError
    }  # fmt: skip
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    assert set(rows) == {kind.__name__ for kind in kinds} | {"DitherError"}
    for kind in kinds:
        assert rows[kind.__name__] in {base.__name__ for base in kind.__mro__[1:]}


def test_every_error_named_in_the_documentation_exists() -> None:
    for page in PAGES:
        for found in re.findall(r"`(\w+Error)`", page.read_text("utf-8")):
            known = hasattr(errors, found) or found in {"ValueError", "RuntimeError"}
            assert known, f"{found} in {name(page)}"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    named = set(re.findall(r"- (\S+\.md)$", text, re.MULTILINE))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_decisions_are_numbered_without_gaps_and_listed() -> None:
    pages = sorted((DOCS / "decisions").glob("0*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    index = (DOCS / "decisions" / "index.md").read_text("utf-8")
    assert all(f"({page.name})" in index for page in pages)
    for page in pages:
        parts = re.findall(r"^\*\*(\w+)\.\*\*", page.read_text("utf-8"), re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequences"], page.name


@pytest.mark.parametrize("page", [ROOT / n for n in ("README.md", "SECURITY.md")], ids=name)
def test_links_out_of_the_root_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_hooks_are_local_and_from_the_environment() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert {repository["repo"] for repository in hooks["repos"]} == {"local"}
    entries = [hook["entry"] for repository in hooks["repos"] for hook in repository["hooks"]]
    assert all(entry.startswith(".venv/bin/") for entry in entries)


def test_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(site)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # 404 too
    for page in pages:
        html = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?(https?:[^\"' >]*)", html)
        loaded += re.findall(r"<link[^>]*\shref=[\"']?(https?:[^\"' >]*)", html)
        assert loaded == [], page.name
    assert "Make one step." in (site / "reference" / "api.html").read_text("utf-8")
