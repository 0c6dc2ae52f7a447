"""Python and the packages that dither's own metadata ask for, by their versions."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from types import MappingProxyType

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dither.doctor.check import Check

EXTRAS = MappingProxyType(
    {
        "mpi": "mpi4py programs, and an mpiexec and mpicc without the system's",
        "spark": "data build --engine spark, train --spark; they need Java too",
        "opendp": "data statistics",
        "track": "train --track and --track-private: TensorBoard, MLflow",
        "bench": "bench clip against Opacus, bench quant",
    }
)
"""The extras that users install, and what each is for."""


def checks() -> Iterator[Check]:
    """Look at Python, the required packages and the extras."""
    yield _python()
    yield _required()
    for extra, means in EXTRAS.items():
        yield _extra(extra, means)


def requirement(name: str) -> Requirement:
    """Return what dither asks of a package that it requires.

    Raises:
        KeyError: It asks nothing of it.
    """
    return {each.name: each for each in requirements()}[name]


def requirements(extra: str = "") -> list[Requirement]:
    """Return what dither requires here, always or for one extra alone."""
    found = [Requirement(text) for text in requires("dither") or ()]
    always = [each for each in found if _applies(each, "")]
    if not extra:
        return always
    return [each for each in found if _applies(each, extra) and each not in always]


def _applies(each: Requirement, extra: str) -> bool:
    return each.marker is None or each.marker.evaluate({"extra": extra})


def _python() -> Check:
    asked = SpecifierSet(metadata("dither")["Requires-Python"])
    good = asked.contains(platform.python_version(), prereleases=True)
    return Check(
        "Python",
        "good" if good else "wrong",
        f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}",
        f"all of dither ({asked})",
        None if good else f"make an environment of Python {asked}, and install dither there",
        needed=True,
    )


def _required() -> Check:
    asked = requirements()
    absent, unfit = gaps(asked)
    found = f"all {len(asked)} there, dither {version('dither')}"
    return Check(
        "packages",
        "wrong" if absent or unfit else "good",
        _listed(absent, unfit) or found,
        "all of dither",
        _install(asked, absent, unfit),
        needed=True,
    )


def _extra(extra: str, means: str) -> Check:
    asked = requirements(extra)
    absent, unfit = gaps(asked)
    there = ", ".join(f"{each.name} {version(each.name)}" for each in asked if not absent)
    return Check(
        f"extra {extra}",
        "wrong" if unfit else "missing" if absent else "good",
        _listed(absent, unfit) or there,
        means,
        f"pip install 'dither[{extra}]'" if absent or unfit else None,
    )


def gaps(asked: Sequence[Requirement]) -> tuple[list[str], list[str]]:
    """Return which of these packages are not installed, and which in a version that is not asked.

    By their metadata: nothing is imported, which would take a minute for all.
    """
    absent, unfit = [], []
    for each in asked:
        try:
            found = version(each.name)
        except PackageNotFoundError:
            absent.append(each.name)
        else:
            if not each.specifier.contains(found, prereleases=True):
                unfit.append(f"{each.name} {found}, not {each.specifier}")
    return absent, unfit


def _listed(absent: Sequence[str], unfit: Sequence[str]) -> str:
    none = [f"no {', '.join(absent)}"] if absent else []
    return "; ".join([*none, *unfit])


def _install(
    asked: Sequence[Requirement], absent: Sequence[str], unfit: Sequence[str]
) -> str | None:
    names = {*absent, *(text.split(" ")[0] for text in unfit)}
    wanted = [f"'{each.name}{each.specifier}'" for each in asked if each.name in names]
    return f"pip install {' '.join(wanted)}" if wanted else None
