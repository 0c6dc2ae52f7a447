"""C source of the wrappers that count, made from the ``mpi.h`` that the library is built with.

Which forms of a function exist (plain, large-count ``_c``) differs by MPI and version, so the list
comes from the header itself, after the preprocessor: no form can be forgotten. What the wrappers
use is in ``native/mpi/counted.h``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dither.errors import ReduceError
from dither.mpirun.calls import ALLOWABLE, BY_HAND, REASONS, Kind, base_name, kind_of

_ATTRIBUTE = re.compile(r"\b__(?:attribute|declspec|asm)(?:__)?\s*(?=\()")
_FUNCTION = re.compile(r"\b(int|double|void\s*\*|MPI_\w+)\s*\b(MPIX?_\w+)\s*(?=\()")
_NAME = re.compile(r"(\w+)\s*(?:\[[^\]]*\]\s*)*$")
# What Fortran compilers make of a name, and the module mpi_f08's external procedures.
_MANGLINGS = ("{lower}_", "{lower}__", "{lower}", "{upper}", "{lower}_f08_")


@dataclass(frozen=True)
class Prototype:
    """One function of the header.

    Attributes:
        name: In C.
        returns: Type that it returns.
        parameters: Each with its type, as declared.
    """

    name: str
    returns: str
    parameters: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The parameters' names."""
        found = (_NAME.search(parameter) for parameter in self.parameters)
        return tuple(match[1] for match in found if match)

    @property
    def fortran(self) -> bool:
        """Whether Fortran passes the same arguments and an error code: no text, no function."""
        return not any("char" in each or "(" in each for each in self.parameters)


def prototypes(preprocessed: str) -> list[Prototype]:
    """Return all functions ``MPI_*`` and ``MPIX_*`` that a preprocessed header declares, once each.

    Raises:
        ReduceError: There is none, or one cannot be read: a form left out would not be counted.
    """
    text = _without_attributes(re.sub(r"^#.*$", "", preprocessed, flags=re.MULTILINE))
    found: dict[str, Prototype] = {}
    for match in _FUNCTION.finditer(text):
        end = _closing(text, match.end())
        if text[end + 1 : end + 200].lstrip()[:1] != ";":
            continue  # the type of a pointer, or a body
        inside = " ".join(text[match.end() + 1 : end].split())
        parts = () if inside in {"", "void"} else tuple(_split(inside))
        prototype = Prototype(match[2], match[1], parts)
        if len(prototype.arguments) != len(parts) and kind_of(match[2]) is not Kind.LOCAL:
            raise _unreadable(f"{match[2]}({inside})")
        found[match[2]] = prototype
    if "MPI_Allreduce" not in found:
        raise _unreadable("no MPI_Allreduce")
    return list(found.values())


def counted(functions: Iterable[Prototype]) -> list[Prototype]:
    """Return the functions that get a wrapper; those that nobody has judged count too."""
    kinds = {Kind.COUNTED, Kind.REFUSED, None}
    return [
        each
        for each in functions
        if each.returns == "int"
        and base_name(each.name) not in BY_HAND
        and kind_of(each.name) in kinds
    ]


def source(functions: Iterable[Prototype]) -> str:
    """Return the C file: a table of names, counters, and a wrapper for every form of each."""
    chosen = counted(functions)
    names = list(dict.fromkeys(base_name(each.name) for each in chosen))
    number = {name: index for index, name in enumerate(names)}
    parts = [
        "/* Made by dither from this MPI's mpi.h: wrappers that count and pass on. */",
        '#include <mpi.h>\n#include <stdio.h>\n#include <stdlib.h>\n\n#include "counted.h"\n',
        f"const unsigned dither_counted_total = {len(names)};",
        f"dither_counter dither_counted[{max(len(names), 1)}];",
        f"dither_counter dither_refused[{max(len(names), 1)}];",
        "const char *const dither_counted_names[] = {",
        *(f'    "{name}",' for name in names or [""]),
        "};\n",
        *(_wrapper(each, number[base_name(each.name)]) for each in chosen),
        "#ifdef OPEN_MPI /* whose Fortran names do not come by C's */",
        _MISSING,
        *(_fortran(each, number[base_name(each.name)]) for each in chosen if _has_fortran(each)),
        "#endif",
    ]
    return "\n".join(parts) + "\n"


_MISSING = """static void dither_missing(const char *name) {
    fprintf(stderr, "dither: %s is called, but MPI's Fortran library is not loaded so that the "
                    "call could be passed on: link the program with it\\n", name);
    abort();
}
"""


def _has_fortran(function: Prototype) -> bool:
    return not function.name.endswith("_c") and (
        function.fortran or kind_of(function.name) is Kind.REFUSED
    )


def _wrapper(function: Prototype, number: int) -> str:
    head = f"DITHER_EXPORT int {function.name}({', '.join(function.parameters) or 'void'}) {{"
    passed = [
        f"    DITHER_COUNT({number});",
        f"    return P{function.name}({', '.join(function.arguments)});",
    ]
    name = base_name(function.name)
    if kind_of(name) is not Kind.REFUSED:
        return "\n".join([head, *passed, "}\n"])
    index = _communicator(function)
    refusal = _refusal(name, number, function.arguments[index] if index is not None else None)
    if name in ALLOWABLE:
        lines = [f'    if (!dither_allows("{name}"))', f"        return {refusal};", *passed]
    else:
        unused = [each for i, each in enumerate(function.arguments) if i != index]
        lines = [*(f"    (void){each};" for each in unused), f"    return {refusal};"]
    return "\n".join([head, *lines, "}\n"])


def _communicator(function: Prototype) -> int | None:
    """Return which argument is the communicator whose error handler is called."""
    found = (i for i, each in enumerate(function.parameters) if each.startswith("MPI_Comm "))
    return next((i for i in found if "*" not in function.parameters[i]), None)


def _refusal(name: str, number: int, communicator: str | None) -> str:
    text = f"{name} refused: {REASONS[name]}"
    return f'dither_refuse({number}, {communicator or "MPI_COMM_WORLD"}, "{text}")'


def _fortran(function: Prototype, number: int) -> str:
    """Return wrappers of all Fortran names, which take addresses and pass them to ``pmpi_*``."""
    count = len(function.parameters) + 1
    declared = ", ".join(f"void *a{index}" for index in range(count))
    passed = ", ".join(f"a{index}" for index in range(count))
    types = ", ".join(["void *"] * count)
    lines: list[str] = []
    for form in _MANGLINGS:
        name = form.format(lower=function.name.lower(), upper=function.name.upper())
        if kind_of(function.name) is Kind.REFUSED:
            lines += _fortran_refusal(function, name, number, declared)
            continue
        real = ("P" if name.isupper() else "p") + name
        lines += [
            f"extern void {real}({types}) __attribute__((weak));",
            f"DITHER_EXPORT void {name}({declared});",
            f"DITHER_EXPORT void {name}({declared}) {{",
            f"    DITHER_COUNT({number});",
            f'    if (!{real}) dither_missing("{name}");',
            f"    {real}({passed});",
            "}",
        ]
    return "\n".join([*lines, ""])


def _fortran_refusal(function: Prototype, name: str, number: int, declared: str) -> list[str]:
    """Return a wrapper that refuses; lengths of texts come after the error code, and are unused."""
    index, error = _communicator(function), len(function.parameters)
    given = f"PMPI_Comm_f2c(*(const MPI_Fint *)a{index})" if index is not None else None
    return [
        f"DITHER_EXPORT void {name}({declared});",
        f"DITHER_EXPORT void {name}({declared}) {{",
        *(f"    (void)a{other};" for other in range(error) if other != index),
        f"    const int code = {_refusal(function.name, number, given)};",
        f"    if (a{error}) *(MPI_Fint *)a{error} = code;",
        "}",
    ]


def _without_attributes(text: str) -> str:
    parts, start = [], 0
    while match := _ATTRIBUTE.search(text, start):
        parts.append(text[start : match.start()])
        start = _closing(text, match.end()) + 1
    return "".join([*parts, text[start:]])


def _closing(text: str, opening: int) -> int:
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise _unreadable(text[opening : opening + 80])


def _split(parameters: str) -> list[str]:
    parts, depth = [""], 0
    for letter in parameters:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _unreadable(got: str) -> ReduceError:
    return ReduceError(
        expected="an mpi.h whose functions can be listed, so that each is protected or counted",
        got=got,
        fix="use MPICH or Open MPI of another version, and report this",
    )
