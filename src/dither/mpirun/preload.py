"""Whether the dynamic linker will put a library before a program's MPI.

It ignores, with a mere warning or without, what it cannot load: the program would run unprotected.
So what can be known is checked before the start.
"""

from __future__ import annotations

import shutil
import stat
import struct
import subprocess
from pathlib import Path

from dither.errors import ConfigError, ReduceError

_INTERPRETER = 3  # PT_INTERP


def require_preloadable(program: Path) -> None:
    """Refuse a program that no library can be loaded before.

    Scripts pass: what counts is the programs that they start.

    Raises:
        ConfigError: It is linked statically, for another kind of processor, or runs as another
            user than who starts it.
    """
    path = program.resolve()
    if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise ConfigError(
            expected="a program that runs as the user who starts it",
            got=f"{program}, with a set-user-ID or set-group-ID bit: no library is loaded for it",
            fix="remove the bit by chmod ug-s",
        )
    facts = _elf(path)
    own = _elf(Path("/proc/self/exe"))
    if facts is None or own is None:
        return
    if facts[0] != own[0]:
        raise ConfigError(
            expected="a program for this kind of processor",
            got=f"{program}, for another one",
            fix="build it for this machine, with 64-bit addresses",
        )
    if not facts[1]:
        raise ConfigError(
            expected="a program that loads MPI as a shared library",
            got=f"{program}, which is linked statically, so that dither could not see its calls",
            fix="link it without -static",
        )


def require_loads(library: Path) -> None:
    """Refuse to go on if the dynamic linker does not load the library.

    Raises:
        ReduceError: It does not, for instance because MPI's own library is not found.
    """
    env, cat = shutil.which("env") or "env", shutil.which("cat") or "cat"
    try:
        done = subprocess.run(  # noqa: S603
            [env, f"LD_PRELOAD={library}", cat, "/proc/self/maps"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=60,
        )
        out, err = done.stdout, done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        out, err = "", str(error)
    if str(library) not in out:
        said = err.strip().splitlines()
        raise ReduceError(
            expected=f"the dynamic linker to load {library} before a program",
            got=said[0] if said else "a program without it",
            fix="set DITHER_HOME to a folder without spaces or colons in its path, that programs "
            "may be loaded from, and see that MPI's own libraries are found",
        )


def _elf(path: Path) -> tuple[tuple[int, int, int], bool] | None:
    """Return class, order and machine, and whether it names a dynamic linker; None if no ELF."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if head[:4] != b"\x7fELF" or len(head) < 64:
                return None
            wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
            machine = struct.unpack_from(f"{order}H", head, 18)[0]
            offset = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)
            size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
            file.seek(offset[0])
            table = file.read(size * count)
        kinds = [struct.unpack_from(f"{order}I", table, size * i)[0] for i in range(count)]
    except (OSError, struct.error):
        return None
    return (head[4], head[5], machine), _INTERPRETER in kinds
