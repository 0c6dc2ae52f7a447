"""The C core's own tests find defects: copies of the core, each with one, must fail them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.native.building import NATIVE, RUN_SECONDS, THREAD, build, require_flags


@dataclass(frozen=True)
class Defect:
    """A change of one file, and the part of the program that must notice."""

    part: str
    path: str
    right: str
    wrong: str
    flags: tuple[str, ...] = ()


LOCK = "pthread_mutex_lock(&pool->lock);"
LEFT = "size_t left = pool->head == pool->tail ? 0 : BLOCK - pool->offset;"

DEFECTS = {
    "a margin of a sixteenth": Defect(
        "lattice", "kernels/gauss64.h", "#define MARGIN 0x1p-44", "#define MARGIN 0x1p-48"
    ),
    "small radius words are answered": Defect(
        "lattice", "kernels/gauss64.h", "#define MOST 0x1.bb9d1p+4", "#define MOST 0x1p+6"
    ),
    "large radius words are answered": Defect(
        "lattice", "kernels/gauss64.h", "#define LEAST 0x1.00001p-33", "#define LEAST 0"
    ),
    "a coefficient off by 2^-43": Defect(
        "lattice", "kernels/gauss64.h", "0x1.466bc677587f8p-9", "0x1.466bc679587f8p-9"
    ),
    "no care near u = 1": Defect(
        "lattice", "kernels/gauss64.h", "below * 0x1p-64,", "f - 1.0 + 0.0 * below,"
    ),
    "signs exchanged": Defect(
        "lattice",
        "kernels/gauss64.h",
        "swap = w << 2, sign = w << 1",
        "swap = w << 1, sign = w << 2",
    ),
    "pairs share their further words": Defect(
        "lattice", "lattice.c", "first / 16 * 8 + first % 8", "first % 8"
    ),
    "further words are those of the stream": Defect(
        "lattice", "lattice.c", "span.use = USE_REFINE;", "span.use = USE_STREAM;"
    ),
    "int32 overflows": Defect(
        "paths", "kernels/codec.h", "widest = v_set(2147483647.0)", "widest = v_set(2147483648.0)"
    ),
    "a message's end is written in whole vectors": Defect(
        "codec",
        "kernels/codec.h",
        "out, (count - i) * sizeof(out_type));",
        "out, LANES64 * sizeof(out_type));",
    ),
    "ties go down": Defect(
        "codec", "kernels/codec.h", "grid->wire_scale + 0.5", "grid->wire_scale + 0.4999"
    ),
    "a message with a hole stays": Defect(
        "codec", "codec.c", "dither_wipe(message, count", "if (0) dither_wipe(message, count"
    ),
    "any shift is taken": Defect("codec", "codec.c", "grid->wire_shift > 48", "0"),
    "a factor is left out": Defect("codec", "codec.c", "ldexp(factor,", "ldexp(1.0 + 0 * factor,"),
    "any factor is taken": Defect("codec", "codec.c", "isnormal(factor) && isnormal(*step)", "1"),
    "the end of a float message is scaled in float": Defect(
        "codec",
        "kernels/codec.h",
        "out_type out = (out_type)(in * step[0]);",
        "out_type out = (out_type)((out_type)in * (out_type)step[0]);",
    ),
    "a mask is subtracted twice as far": Defect(
        "paths", "kernels/mask.h", "subtract ? (type)-1 : 1", "subtract ? (type)-2 : 1"
    ),
    "a key stays on its page": Defect(
        "key", "key.c", "dither_wipe(key->page,", "if (0) dither_wipe(key->page,"
    ),
    "a child uses its parent's key": Defect(
        "key", "key.c", "if (dither_owned(owner)) return", "if (1) return"
    ),
    "positions overlap": Defect(
        "key",
        "key.c",
        "atomic_fetch_add(&key->next, superblocks)",
        "atomic_fetch_add(&key->next, (superblocks + 1) / 2)",
    ),
    "a draw is served twice": Defect(
        "pool", "pool.c", "pool->offset += count;", "pool->offset += count - (count > 1);"
    ),
    "the ring is given back as it is": Defect(
        "pool", "pool.c", "dither_wipe(pool->ring, bytes);", "(void)0;"
    ),
    "a size that overflows is taken": Defect(
        "pool", "pool.c", "if (blocks > SIZE_MAX", "if (0 && blocks > SIZE_MAX"
    ),
    "the ring's state is read without the lock": Defect(
        "pool",
        "pool.c",
        f"{LOCK}\n    {LEFT}",
        f"{LEFT}\n    {LOCK}",
        THREAD,
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found(name: str, tmp_path: Path) -> None:
    defect = DEFECTS[name]
    if defect.flags:
        require_flags(tmp_path, defect.flags)
    native = tmp_path / "native"
    shutil.copytree(NATIVE, native)
    source = native / "src" / defect.path
    text = source.read_text()
    assert defect.right in text, "the defect's place has changed"
    source.write_text(text.replace(defect.right, defect.wrong))
    program = build(tmp_path / "build", native=native, flags=defect.flags)
    done = subprocess.run(
        [str(program), defect.part],
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS,
    )
    assert done.returncode not in {0, 2}, done.stdout  # 2: no such part
