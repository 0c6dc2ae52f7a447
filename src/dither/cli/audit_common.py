"""What the attacks of `dither audit` share: records, progress, where results go."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dither.audit.trainings import Tell, charge_unprotected
from dither.config import AuditInversionConfig, AuditMembershipConfig
from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, DitherWarning
from dither.files import output_errors, write_json

GENERATED = "generated census records"
_ROWS = 30_000


@contextmanager
def records(store: Path | None) -> Iterator[tuple[RecordStore, str]]:
    """Open the records of an attack, and say what they are. Charges nothing: see `charge`.

    Args:
        store: A record store; None for generated records, which vanish afterwards.

    Raises:
        DataError: No such store.
    """
    if store is not None:
        opened = RecordStore.open(store)
        yield opened, f"{opened.task.name}, {len(opened)} records"
        return
    with tempfile.TemporaryDirectory(prefix="dither-audit-") as folder:
        source = write_synthetic(Path(folder) / "persons.parquet", _ROWS)
        yield build_store(source, "employment", Path(folder) / "store", sensitive=False), GENERATED


def charge(config: AuditMembershipConfig | AuditInversionConfig, store: RecordStore) -> None:
    """Charge plain trainings to the user's store; generated records have nobody to pay for.

    The last thing before they start: what is refused later would leave ε = ∞ for nothing.

    Raises:
        ConfigError: The store is sensitive, and nobody forced it.
        OutputError: Results cannot be written.
    """
    check_outputs(config.json, config.out)
    if config.store is not None:
        verb = "membership" if isinstance(config, AuditMembershipConfig) else "inversion"
        charge_unprotected(store, f"dither audit {verb}", force=config.force)


def use_threads(threads: int | None) -> None:
    """Let PyTorch use so many threads; all where none are named.

    Raises:
        ConfigError: Fewer than 1.
    """
    if threads is None:
        return
    if threads < 1:
        raise ConfigError(
            expected="a whole --threads of at least 1", got=str(threads), fix="leave it out"
        )
    torch.set_num_threads(threads)


@contextmanager
def bar(console: Console, label: str) -> Iterator[Tell]:
    """Show how many trainings are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(label, total=None)
        with warnings.catch_warnings():
            # Each training would say again that δ is not below 1/n, or ε large.
            warnings.simplefilter("ignore", DitherWarning)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def check_outputs(name: str | None, out: Path | None) -> None:
    """Find out now whether results can be written; leave no empty file where there was none.

    Raises:
        OutputError: They cannot.
    """
    if name not in {None, "-"}:
        path = Path(str(name))
        with output_errors(path):
            new = not path.exists()
            path.open("ab").close()
            if new:
                path.unlink()
    if out is not None:
        with output_errors(out):
            out.mkdir(parents=True, exist_ok=True)


def hand_out(
    facts: Mapping[str, Any],
    *,
    name: str | None,
    out: Path | None,
    stem: str,
    figure: Callable[[Path, Mapping[str, Any]], None],
) -> None:
    """Write what was found: JSON to a file or standard output, JSON and a figure to a folder.

    Args:
        facts: The result.
        name: Of the JSON file; - for standard output.
        out: The folder.
        stem: Name of the files in it.
        figure: Draws it.

    Raises:
        OutputError: They cannot be written.
    """
    if name == "-":
        json.dump(facts, sys.stdout, indent=1, allow_nan=False)
        print()
    elif name is not None:
        write_json(Path(name), facts)
    if out is not None:
        write_json(out / f"{stem}.json", facts)
        figure(out / f"{stem}.svg", facts)
