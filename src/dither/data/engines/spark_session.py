"""A Spark session for one run: where it runs, what it may hold, and that it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dither.data.engines.java import check_spark, driver_options
from dither.data.engines.spark_errors import errors_explained
from dither.errors import ConfigError
from dither.files import output_errors

MEMORY = "1g"

_MASTERS = re.compile(r"local(\[[^\]]*\])?|local-cluster\[[^\]]*\]|spark://.+|yarn|k8s://.+")
_SECONDS = 5.0
_GLOB = re.compile(r"([\\{}\[\]*?])")

# How values behave; the rest of a session is its owner's.
_MEANING = {
    "spark.sql.ansi.enabled": "true",
    "spark.sql.caseSensitive": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.csv.parser.columnPruning.enabled": "false",  # it would let short rows pass
    "spark.sql.csv.filterPushdown.enabled": "false",
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # else a column that nobody reads is an error
    "spark.sql.parquet.compression.codec": "snappy",
    "spark.sql.sources.default": "parquet",
}

# Log lines may quote records, which must not leave.
_LOGGING = """rootLogger.level = off
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %p %c: %m%n
"""


@contextmanager
def spark_session(folder: Path, *, master: str | None, memory: str) -> Iterator[Any]:
    """A session of this run's own.

    The program's own Spark, where one runs, lends a session and goes on; else one is started, and
    stopped afterwards. Its Java process stays until Python's ends, as pyspark has it.

    Args:
        folder: For what Spark spills; made here.
        master: See `dither.data.engines.spark.Spark`.
        memory: Of the driver.

    Raises:
        ConfigError: pyspark or Java is missing or of another version, or the master is not one,
            does not answer, or is another than that of the Spark that runs.
        OutputError: The folder cannot be made.
    """
    check_spark()
    from pyspark import SparkContext  # noqa: PLC0415 - an extra
    from pyspark.sql import SparkSession  # noqa: PLC0415

    _check_master(master)
    with output_errors(folder):
        folder.mkdir(parents=True)
        (folder / "log4j2.properties").write_text(_LOGGING, encoding="utf-8")
    running = SparkContext._active_spark_context  # noqa: SLF001 - it has no public name
    if running is not None:
        _check_running(running, master)
        session = SparkSession.builder.getOrCreate().newSession()
        _set_meaning(session)
        yield session
        return
    with _interrupts_kept(), errors_explained("the sources", master=master):
        session = _started(SparkSession.builder, folder, master, memory)
    try:
        yield session
    finally:
        with contextlib.suppress(Exception), _interrupts_kept():
            session.stop()


def _started(builder: Any, folder: Path, master: str | None, memory: str) -> Any:
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # by spark-submit, which knows the master
    where = master or (None if submitted else "local[*]")
    if where is not None:
        builder = builder.master(where)
    if where is not None and where.startswith("local"):
        builder = builder.config("spark.driver.host", "127.0.0.1")
        builder = builder.config("spark.driver.bindAddress", "127.0.0.1")
    logging = f'"-Dlog4j2.configurationFile=file:{folder / "log4j2.properties"}"'
    options = {
        "spark.app.name": "dither data build",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": memory,
        "spark.driver.extraJavaOptions": f"{logging} {driver_options()}",
        "spark.local.dir": str(folder / "spill"),
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        **_MEANING,
    }
    if where is None:  # theirs to decide
        del options["spark.driver.memory"], options["spark.local.dir"]
    for name, value in options.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    _set_meaning(session)
    return session


def _set_meaning(session: Any) -> None:
    for name, value in _MEANING.items():
        session.conf.set(name, value)


def _check_running(running: Any, master: str | None) -> None:
    if master is not None and running.master != master:
        raise ConfigError(
            expected=f"the master {running.master} of the Spark that runs in this process",
            got=master,
            fix="leave --master out, or stop that Spark first",
        )


def _check_master(master: str | None) -> None:
    if master is None:
        return
    if not _MASTERS.fullmatch(master):
        raise ConfigError(
            expected="a Spark master: local[N], local-cluster[N,CORES,MB], spark://HOST:PORT, yarn "
            "or k8s://URL",
            got=repr(master),
            fix="give one of these with --master",
        )
    if master.startswith("spark://"):
        places = master.removeprefix("spark://").split(",")
        if not any(map(_answers, places)):
            raise ConfigError(
                expected=f"a Spark master that answers at {master}",
                got="no answer",
                fix="start it (sbin/start-master.sh and start-worker.sh), or correct the address",
            )


def _answers(place: str) -> bool:
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except OSError:
        return False
    return True


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Give Ctrl-C back to whom it belonged: pyspark takes it when a context starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def written_to(path: Path) -> str:
    """A local path as Spark takes it where it writes."""
    return f"file://{path.absolute()}"


def read_from(path: Path) -> str:
    """A local path as Spark takes it where it reads: what would match many files is escaped."""
    return _GLOB.sub(r"\\\1", written_to(path))
