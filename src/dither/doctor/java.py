"""Java, as Spark would start it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dither.data.engines.java import JAVA, check_spark, find_java, java_version
from dither.doctor.check import Check
from dither.errors import ConfigError

_MEANS = "data build --engine spark, train --spark; they need pyspark too"


def checks() -> Iterator[Check]:
    """Look for Java, and let Spark's own check have the last word."""
    named = os.environ.get("JAVA_HOME")
    try:
        java = find_java()
    except ConfigError as error:
        found = f"JAVA_HOME is {named}: {error.got}" if named else "no JAVA_HOME, no java on PATH"
        yield Check("Java", "wrong" if named else "missing", found, _MEANS, error.fix)
        return
    version = java_version(java)
    said = "a version it does not tell" if version is None else f"Java {version}"
    found = f"{said} at {java}; JAVA_HOME {f'is {named}' if named else 'is not set'}"
    try:
        check_spark()
    except ConfigError as error:
        if version in JAVA:
            yield Check("Java", "good", f"{found}, and {error.got}", _MEANS)
        else:
            wanted = f", not {' or '.join(map(str, JAVA))}"
            yield Check("Java", "wrong", found + wanted, _MEANS, error.fix)
        return
    yield Check("Java", "good", f"{found}; Spark can start", _MEANS)
