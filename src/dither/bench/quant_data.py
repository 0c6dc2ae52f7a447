"""The records of `dither bench quant`: MNIST, CIFAR-10 and ACS, prepared once into plain arrays.

The test part is read once, when a training is over; what is tuned is tuned on records held out of
the training part. Scaling uses public constants, never the records' own mean or spread.
"""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from dither.data.build import build_store
from dither.errors import ConfigError, DataError
from dither.files import output_errors

HELD_OUT = 5_000  # of the training part
_ACS_PERSONS = 240_000  # of whom about four fifths are adults
_ACS_RECORDS = 60_000
_ACS_TEST = 20_000

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Parts:
    """Records of one case, as tensors.

    Attributes:
        train: What is trained on.
        held_out: Of the training part, for tuning.
        test: For the figures that are reported.
    """

    train: TensorDataset
    held_out: TensorDataset
    test: TensorDataset


def files_of(source: Path, name: str) -> tuple[Path, ...]:
    """Return the files that records are made of."""
    return tuple(source / part for part in _FILES[name.partition("/")[0]])


def missing(source: Path, name: str) -> str | None:
    """Return what is not there to make these records of; None where all is."""
    absent = [path.name for path in files_of(source, name) if not path.is_file()]
    return f"no {', '.join(absent)} in {source}" if absent else None


def prepare(source: Path, name: str, folder: Path) -> Path:
    """Write the arrays of some records, unless they are there.

    Args:
        source: Folder with ``images/`` and ``acs/``.
        name: ``mnist``, ``cifar10/16``, ``cifar10/32`` or ``acs``.
        folder: Where the arrays go.

    Returns:
        The file.

    Raises:
        ConfigError: Pillow, which reads CIFAR-10's JPEGs, is not installed.
        DataError: A file is not what it should be.
        OutputError: The arrays cannot be written.
    """
    path = folder / f"{name.replace('/', '-')}.npz"
    if path.is_file():
        return path
    kind, _, side = name.partition("/")
    try:
        arrays = _MAKERS[kind](source, int(side or 0))
    except (KeyError, ValueError, OSError, pa.ArrowException) as error:
        raise DataError(
            expected=f"the records of {kind} in {source}",
            got=f"{type(error).__name__}: {error}",
            fix="copy the files again; docs/guides/precision.md says what they are",
        ) from error
    with output_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".npz", delete=False) as file:
            np.savez(file, **arrays)
        Path(file.name).replace(path)
    return path


@functools.lru_cache(maxsize=1)
def load(path: Path, records: int) -> Parts:
    """Read prepared arrays: a fixed, public order of the training part, then its first records.

    Args:
        path: Of `prepare`.
        records: How many to train on.

    Raises:
        ConfigError: There are not that many beside those held out.
    """
    with np.load(path) as arrays:
        x, y, tx, ty = (arrays[key] for key in ("x", "y", "test_x", "test_y"))
    if records + HELD_OUT > len(y):
        raise ConfigError(
            expected=f"{records} records beside {HELD_OUT} held out",
            got=f"{len(y)} in {path.name}",
            fix="train on fewer",
        )
    order = np.random.default_rng(0).permutation(len(y))
    train, held_out = order[:records], order[-HELD_OUT:]
    return Parts(_set(x[train], y[train]), _set(x[held_out], y[held_out]), _set(tx, ty))


def _set(x: np.ndarray, y: np.ndarray) -> TensorDataset:
    features = torch.from_numpy(x)
    if features.dtype == torch.uint8:
        features = (features.float() - 127.5) / 64.0
    return TensorDataset(features, torch.from_numpy(y.astype(np.int64)))


def example_of(parts: Parts) -> tuple[Tensor, Tensor]:
    """Return a batch of one row of zeros: shapes and types only."""
    x, y = parts.train.tensors
    return torch.zeros_like(x[:1]), torch.zeros_like(y[:1])


def _mnist(source: Path, _side: int) -> Arrays:
    found: Arrays = {}
    for part, prefix in (("train", ""), ("test", "test_")):
        with np.load(source / f"images/mnist_{part}.npz") as arrays:
            found[f"{prefix}x"], found[f"{prefix}y"] = arrays["x"][:, None], arrays["y"]
    return found


def _cifar10(source: Path, side: int) -> Arrays:
    found: Arrays = {}
    for part, prefix in (("train", ""), ("test", "test_")):
        table = pq.read_table(source / f"images/cifar10_{part}.parquet")
        images = np.stack([_decoded(jpeg) for jpeg in table.column("jpeg").to_pylist()])
        found[f"{prefix}x"] = pooled(images, side).transpose(0, 3, 1, 2).copy()
        found[f"{prefix}y"] = table.column("label").to_numpy()
    return found


def _decoded(jpeg: bytes) -> np.ndarray:
    try:
        from PIL import Image  # noqa: PLC0415 - of an extra
    except ImportError as error:
        raise ConfigError(
            expected="Pillow, to read CIFAR-10's JPEGs",
            got="none installed",
            fix="pip install 'dither[bench]', or choose other --cases",
        ) from error
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def pooled(images: np.ndarray, side: int) -> np.ndarray:
    """Return images of a smaller side, each pixel the rounded mean of a block.

    Args:
        images: uint8 ``[n, rows, columns, channels]``, square.
        side: New side, which divides the old one.
    """
    block = images.shape[1] // side
    shape = (len(images), side, block, side, block, images.shape[3])
    means: np.ndarray = images.reshape(shape).mean((2, 4), dtype=np.float32)
    return means.round().astype(np.uint8)


def _acs(source: Path, _side: int) -> Arrays:
    """Take persons at random (a fixed draw), through the same pipeline as `dither data build`."""
    file = source / "acs/acs_pums_2024_persons.parquet"
    draw = np.random.default_rng(0)
    rows = pq.ParquetFile(file).metadata.num_rows
    picked = np.sort(draw.choice(rows, min(rows, _ACS_PERSONS), replace=False))
    with tempfile.TemporaryDirectory(prefix="dither-quant-") as name:
        some = Path(name) / "persons.parquet"
        pq.write_table(pq.read_table(file).take(pa.array(picked)), some)
        store = build_store(some, "employment", Path(name) / "store", on_invalid="drop")
        split = store.split()
        wanted = (_ACS_RECORDS + HELD_OUT, split.train), (_ACS_TEST, split.test)
        chosen = [draw.choice(of, min(size, of.size), replace=False) for size, of in wanted]
        (x, y), (tx, ty) = (store.gather(np.sort(rows)) for rows in chosen)
    return {"x": x.numpy(), "y": y.numpy(), "test_x": tx.numpy(), "test_y": ty.numpy()}


_FILES = {
    "mnist": ("images/mnist_train.npz", "images/mnist_test.npz"),
    "cifar10": ("images/cifar10_train.parquet", "images/cifar10_test.parquet"),
    "acs": ("acs/acs_pums_2024_persons.parquet",),
}
_MAKERS: dict[str, Callable[[Path, int], Any]] = {
    "mnist": _mnist,
    "cifar10": _cifar10,
    "acs": _acs,
}
