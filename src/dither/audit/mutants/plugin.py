"""A pytest plugin: one run of tests with a mutant in it, and how it ended.

By hand: ``DITHER_MUTANT=NAME pytest -p dither.audit.mutants.plugin TEST``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, final

import pytest

from dither.audit.mutants.mutant import Mutant
from dither.audit.mutants.patching import apply
from dither.errors import ConfigError

VARIABLE = "DITHER_MUTANT"


@final
@dataclass
class Watch:
    """Applies a mutant once the tests are imported, and notes what fails.

    Attributes:
        root: The checkout.
        mutant: None for a run of the code as it is.
        reached: See `apply`.
        passed: Node ids of tests that passed.
        asserted: What failed by an assertion of a test.
        broken: What failed otherwise: by import, type, attribute, or out of time.
    """

    root: Path
    mutant: Mutant | None
    reached: Path
    passed: list[str] = field(default_factory=list)
    asserted: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def pytest_collection_finish(self) -> None:
        """Change the code, when modules are imported and before tests run."""
        if self.mutant is not None:
            apply(self.mutant, self.reached)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, Any]:
        """Note what a test did."""
        report = yield
        if report.passed and call.when == "call":
            self.passed.append(item.nodeid)
        elif report.failed and call.excinfo is not None:
            said = f"{item.nodeid}: {call.excinfo.typename}: {_short(call.excinfo.value)}"
            by_test = call.when == "call" and self.is_assertion(call.excinfo.value)
            (self.asserted if by_test else self.broken).append(said)
        return report

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say whether the changed line ran."""
        if self.mutant is not None:
            ran = "ran" if self.reached.is_file() else "did not run"
            terminalreporter.write_line(f"mutant {self.mutant.name}: the changed line {ran}")

    def is_assertion(self, error: BaseException) -> bool:
        """Return whether a test found what it got wrong, and did not merely break."""
        if isinstance(error, BaseExceptionGroup):
            return all(map(self.is_assertion, error.exceptions))
        if isinstance(error, pytest.fail.Exception):
            return not str(error).startswith("Timeout")
        return isinstance(error, AssertionError) and self._by_test(error.__traceback__)

    def _by_test(self, traceback: TracebackType | None) -> bool:
        """Return whether the last of our own frames is a test's: not an assert of the library."""
        last = False
        while traceback is not None:
            path = Path(traceback.tb_frame.f_code.co_filename)
            if path.is_relative_to(self.root / "tests"):
                last = True
            elif path.is_relative_to(self.root / "src"):
                last = False
            traceback = traceback.tb_next
        return last


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def pytest_configure(config: pytest.Config) -> None:
    """Take the mutant of the environment, where the plugin is named on the command line."""
    name = os.environ.get(VARIABLE)
    if name:
        from dither.audit.mutants.catalogue import find  # noqa: PLC0415 - not by those who have it

        try:
            mutant = find(name)
        except ConfigError as error:
            raise pytest.UsageError(f"{VARIABLE}: {error}") from error
        if not isinstance(mutant, Mutant):
            raise pytest.UsageError(f"{name} is in the C core: dither audit mutants {name}")
        folder = tempfile.TemporaryDirectory(prefix="dither-mutant-")
        config.add_cleanup(folder.cleanup)
        config.pluginmanager.register(Watch(config.rootpath, mutant, Path(folder.name) / "reached"))
