"""What Spark needs before it can start: pyspark of the right version, and a Java that it knows."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from dither.errors import ConfigError

JAVA = (17, 21)
"""Major versions that Spark 4.0 runs on."""

# A row's expressions become one method too long for Java's compiler unless it is told not to mind,
# and nobody waits for a pause of its collector.
_METHODS = "-XX:-DontCompileHugeMethods"
_COLLECTOR = "-XX:+UseParallelGC"
_CHOSEN = re.compile(r"-XX:\+Use\w*GC\b")
_USERS = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")

_SECONDS = 60
_FIX = (
    "install a Java 17 runtime (Debian and Ubuntu: openjdk-17-jre-headless; conda: openjdk=17) and "
    "let JAVA_HOME name it, or build with --engine duckdb"
)


def check_spark() -> None:
    """Refuse to start what cannot run.

    Raises:
        ConfigError: pyspark or Java is missing, or of a version that do not fit.
    """
    _check_pyspark()
    java = find_java()
    found = java_version(java)
    if found not in JAVA:
        raise ConfigError(
            expected=f"Java {' or '.join(map(str, JAVA))} for Spark 4.0",
            got=f"{'a version it does not tell' if found is None else f'Java {found}'} at {java}",
            fix=_FIX,
        )


def _check_pyspark() -> None:
    if importlib.util.find_spec("pyspark") is None:
        raise ConfigError(
            expected="pyspark 4.0 for the engine spark",
            got="no pyspark",
            fix="pip install 'dither[spark]', or build with --engine duckdb",
        )
    found = version("pyspark")
    if not found.startswith("4.0."):
        raise ConfigError(
            expected="pyspark 4.0 for the engine spark",
            got=f"pyspark {found}",
            fix="pip install 'dither[spark]', or build with --engine duckdb",
        )


def find_java() -> Path:
    """The Java that Spark would start: that of JAVA_HOME, else the first on the path.

    Raises:
        ConfigError: There is none.
    """
    home = os.environ.get("JAVA_HOME")
    if home:
        java = Path(home) / "bin" / "java"
        if not java.is_file():
            raise ConfigError(
                expected="a Java runtime where JAVA_HOME points", got=f"no {java}", fix=_FIX
            )
        return java
    found = shutil.which("java")
    if found is None:
        raise ConfigError(
            expected="Java 17 for Spark: JAVA_HOME, or java on the path", got="neither", fix=_FIX
        )
    return Path(found)


def driver_options() -> str:
    """The options of a driver that does the work itself, as under `local[N]`.

    Java ends at once when it is told of two collectors, so one that the user named stays alone.
    """
    if any(_CHOSEN.search(os.environ.get(name, "")) for name in _USERS):
        return _METHODS
    return f"{_METHODS} {_COLLECTOR}"


def java_version(java: Path) -> int | None:
    """The major version that a Java runtime tells; None where it tells none."""
    try:
        done = subprocess.run(  # noqa: S603 - the user's own Java
            [str(java), "-version"], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(said[1]) if said and done.returncode == 0 else None
