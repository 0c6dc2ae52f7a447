"""MapReduce through pipes: the mapper and reducer of Hadoop streaming, with POSIX ``sort`` between.

One mapper and one reducer, as processes of their own: what fastDP compares Spark with, and one more
oracle. It has nothing of a cluster's fault tolerance.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, final

from dither.data.engines import mapreduce
from dither.data.engines.base import Engine, Staged
from dither.data.engines.mapreduce import Job
from dither.data.engines.recode import Record
from dither.data.engines.rows import StagedRecords
from dither.data.pipeline import code_type
from dither.data.reader import TextTable
from dither.data.schema import Task
from dither.errors import ConfigError, DataError, DitherError, OutputError
from dither.files import output_errors

_SORT_MEMORY = "256M"
_ROOM = 1 << 14


@final
class Streaming(Engine):
    """Pipes rows through ``map | sort | reduce``; memory is bounded by the sort's."""

    name = "streaming"

    @contextmanager
    def stage(self, tables: Sequence[TextTable], task: Task, work: Path) -> Iterator[Staged]:
        """See :meth:`Engine.stage`."""
        if shutil.which("sort") is None:
            raise ConfigError(
                expected="the program sort on the path",
                got="none",
                fix="install a POSIX userland, or take another engine",
            )
        folder = work / "streaming"
        jobs = [
            Job(task, t.columns, t.origin, header="first" if t.format == "csv" else "none")
            for t in tables
        ]
        with output_errors(folder):
            folder.mkdir()
            paths = [job.write(folder / f"job-{i}.json") for i, job in enumerate(jobs)]
            _run(tables, paths, folder)
            with (folder / "counters").open(encoding="utf-8", errors="replace") as told:
                counts, texts = mapreduce.counts_of(told, task)
        reduced, wide = folder / "reduced", code_type(task.schema) != "uint8"

        def ordered() -> Iterator[Record]:
            with reduced.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    yield mapreduce.decode(line, jobs[0], wide=wide)

        def unknown(column: str) -> list[tuple[str, int]]:
            return sorted(texts[column].items(), key=lambda item: (-item[1], item[0]))

        yield StagedRecords(counts, unknown, ordered, task.schema)


def _run(tables: Sequence[TextTable], jobs: Sequence[Path], folder: Path) -> None:
    """Run the mappers one after another into one sort and one reducer."""
    environment = {**os.environ, "LC_ALL": "C"}
    sort = ["sort", "-S", _SORT_MEMORY, "-T", str(folder)]
    with ExitStack() as stack:
        told = stack.enter_context((folder / "counters").open("wb"))
        reduced = stack.enter_context((folder / "reduced").open("wb"))
        sorting = stack.enter_context(
            _process(sort, stdin=subprocess.PIPE, out=subprocess.PIPE, err=told, env=environment)
        )
        reduce = _verb("reduce", jobs[0])
        reducing = stack.enter_context(
            _process(reduce, stdin=sorting.stdout, out=reduced, err=told, env=environment)
        )
        _close(sorting.stdout)
        ended = []
        for table, job in zip(tables, jobs, strict=True):
            ended += _map(table, job, sorting.stdin, told, environment)
            if any(ended):
                break
        _close(sorting.stdin)
        ended += [sorting.wait(), reducing.wait()]
    if any(ended):
        origins = ", ".join(table.origin for table in tables)
        raise _explained(folder / "counters", origins, full=mapreduce.FULL in ended)


def _map(
    table: TextTable, job: Path, out: IO[bytes] | None, told: IO[bytes], env: dict[str, str]
) -> list[int]:
    """Run one mapper to its end; return its exit status, and that of what feeds it."""
    if table.format == "csv":
        with (
            table.path.open("rb") as rows,
            _process(_verb("map", job), stdin=rows, out=out, err=told, env=env) as mapping,
        ):
            return [mapping.wait()]
    text = _verb("text", job, str(table.path))
    with (
        _process(text, stdin=subprocess.DEVNULL, out=subprocess.PIPE, err=told, env=env) as writing,
        _process(_verb("map", job), stdin=writing.stdout, out=out, err=told, env=env) as mapping,
    ):
        _close(writing.stdout)
        return [mapping.wait(), writing.wait()]


def _verb(verb: str, job: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", mapreduce.__name__, verb, str(job), *more]


@contextmanager
def _process(
    command: Sequence[str],
    *,
    stdin: IO[bytes] | int | None,
    out: IO[bytes] | int | None,
    err: IO[bytes],
    env: dict[str, str],
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the block."""
    process = subprocess.Popen(  # noqa: S603 - our own programs
        command, stdin=stdin, stdout=out, stderr=err, env=env
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        _close(process.stdin)
        _close(process.stdout)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        stream.close()


def _explained(told: Path, origins: str, *, full: bool) -> DitherError:
    text = told.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        if line.startswith(mapreduce.ERROR):
            expected, got, fix = json.loads(line.removeprefix(mapreduce.ERROR))
            return DataError(expected=expected, got=got, fix=fix)
    # On a full disk not even the complaint about it finds room.
    full = full or "No space left" in text or shutil.disk_usage(told.parent).free < _ROOM
    if full:
        return OutputError(
            expected="room on the disk for sorted rows",
            got="a full disk",
            fix="free space or choose an output folder on a larger disk",
        )
    return DataError(
        expected=f"rows of {origins} that mapper, sort and reducer pass on",
        got="a process that ended before its input did",
        fix="run it again; with little memory, build with the engine duckdb",
    )
