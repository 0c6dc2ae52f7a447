"""Spark's errors as the project's own: which says what to mend, and quotes no record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dither.data.engines.reading import broken_file, broken_row
from dither.errors import ConfigError, DitherError, OutputError

_FULL = re.compile(r"No space left|Disk quota exceeded|ENOSPC")
_BROKEN = re.compile(r"MALFORMED_RECORD|MALFORMED_CSV|TextParsingException|Malformed records")
_ABSENT = re.compile(r"FileNotFoundException|FILE_NOT_EXIST|PATH_NOT_FOUND")
_MEMORY = re.compile(r"OutOfMemoryError|Java heap space|GC overhead")
_MASTER = re.compile(
    r"masters are unresponsive|Could not parse Master|Master URL|Connection refused|"
    r"JAVA_GATEWAY_EXITED|Initial job has not accepted"
)


@contextmanager
def errors_explained(origins: str, *, master: str | None = None) -> Iterator[None]:
    """Turn what pyspark raises into an error of ours.

    Args:
        origins: The sources, as a user knows them.
        master: Where Spark was told to run.
    """
    from py4j.protocol import Py4JError  # noqa: PLC0415 - an extra
    from pyspark.errors import (  # noqa: PLC0415
        AnalysisException,
        ParseException,
        PySparkException,
    )

    try:
        yield
    except (PySparkException, Py4JError) as error:
        text = str(error)
        found = _explained(text, origins, master)
        if found is None and isinstance(error, (AnalysisException, ParseException)):
            raise  # a fault of this code, not of the user's files
        # The cause quotes records: it is not chained.
        raise (found or broken_file(origins, error)) from None


def _explained(text: str, origins: str, master: str | None) -> DitherError | None:
    if _FULL.search(text):
        return OutputError(
            expected="room on the disk for Spark's tables",
            got="a full disk",
            fix="free space or choose an output folder on a larger disk",
        )
    if _BROKEN.search(text):
        return broken_row(origins)
    if _MEMORY.search(text):
        return OutputError(
            expected="memory enough for Spark's tasks",
            got="a Java heap that is full",
            fix="give more: SPARK_DRIVER_MEMORY, or spark-submit --executor-memory",
        )
    if _ABSENT.search(text):
        return OutputError(
            expected="sources and output in folders that driver and workers share",
            got="a worker that does not find a file",
            fix="move both to a shared file system, or run with --master local[N]",
        )
    if _MASTER.search(text):
        return ConfigError(
            expected=f"a Spark that starts at {master or 'its master'}",
            got="none: its Java process ended, or the master refused",
            fix="check the address, and that Java 17 starts (java -version)",
        )
    return None
