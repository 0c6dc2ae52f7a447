"""Commands and options that are shown exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from tests.docs.markdown import PAGES, ROOT, Command, commands, inline, name

from dither import config
from dither.cli import main
from dither.mpirun.options import MpirunConfig

SHOWN = [command for page in PAGES for command in commands(page, "dither")]
CONFIGS = [
    kind
    for kind in [*vars(config).values(), MpirunConfig]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
]
OPTIONS = {f"--{f.name.replace('_', '-')}" for kind in CONFIGS for f in dataclasses.fields(kind)}
OPTIONS |= {"--no-private", "--no-json", "--help", "--version", "-n"}


def parse(words: tuple[str, ...]) -> object:
    return main.parse(words)


@pytest.mark.parametrize(
    "command", SHOWN, ids=lambda command: f"{name(command.page)}: {' '.join(command.words)[:60]}"
)
def test_shown_command_parses(command: Command) -> None:
    if command.words == ("--version",):
        return
    options = parse(command.words)
    if isinstance(options, config.TrainConfig | MpirunConfig):
        options.check()


def test_enough_is_shown() -> None:
    verbs = {command.words[0] for command in SHOWN if command.words}
    assert verbs >= {"data", "train", "plan", "ledger", "report", "bench"}


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        parse(("train", "--epsilom", "1"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_in_sentences_exist(page: Path) -> None:
    named = {
        code for text in inline(page) for code in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", text)
    }
    others = {"--strict", "--nnodes", "--requeue", "--signal"}  # mypy's, torchrun's, sbatch's
    assert named - OPTIONS - others == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_verbs_and_make_targets_in_sentences_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for code in inline(page):
        words = code.split()
        if words[0] == "dither" and len(words) > 1 and words[1] not in {"--help", "--version"}:
            with pytest.raises(SystemExit) as stop:
                parse((*[w for w in words[1:] if not w.startswith("-")][:1], "--help"))
            assert stop.value.code == 0, code
        if words[0] == "make" and len(words) == 2:
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), code
