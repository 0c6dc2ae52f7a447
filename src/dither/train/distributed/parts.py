"""A checkpoint in several files, one a rank: whole or not there, for any number of ranks."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dither.errors import CheckpointError
from dither.files import output_errors, publish, write_atomic
from dither.train.distributed.pieces import (
    Piece,
    empty_like_piece,
    first_holder,
    is_sharded,
    local_of,
    piece_of,
    whole,
)

MANIFEST = "manifest.json"
# Less than this a rank is not worth a file of its own.
PART_BYTES = 1 << 24
_BLOCK = 1 << 20
_DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
)}  # fmt: skip


class State(ABC):
    """Tensors of a checkpoint, to be read in pieces."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of the tensors."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one, as a whole."""

    @abstractmethod
    def read(self, name: str, piece: Piece) -> Tensor:
        """Return a piece of one.

        Raises:
            CheckpointError: It cannot be read.
        """


@final
class Held(State):
    """Whole tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> Sequence[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one."""
        return tuple(self._tensors[name].shape)

    def read(self, name: str, piece: Piece) -> Tensor:
        """Return a copy of a piece."""
        tensor = self._tensors[name]
        return tensor[piece.within(whole(tuple(tensor.shape)))].clone()


@final
class Parts(State):
    """Tensors in the files of a folder, of which only what is asked for is read.

    Args:
        folder: The checkpoint.
        manifest: Its manifest.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._folder = folder
        self._parts: list[dict[str, Any]] = manifest["parts"]
        self._tensors: dict[str, dict[str, Any]] = manifest["tensors"]

    def names(self) -> Sequence[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one, as a whole."""
        return tuple(self._tensors[name]["shape"])

    def read(self, name: str, piece: Piece) -> Tensor:
        """Put a piece together from those that lie in the files."""
        about = self._tensors[name]
        out, found = empty_like_piece(piece, _DTYPES[about["dtype"]]), 0
        for part, start, size in about["pieces"]:
            held = Piece(tuple(start), tuple(size))
            both = piece.overlap(held)
            if both.elements:
                out[both.within(piece)] = self._slice(part, name, both, held)
                found += both.elements
        if found != piece.elements:
            raise damaged(self._folder, f"{found} of {piece.elements} numbers of {name}")
        return out

    def _slice(self, part: int, name: str, piece: Piece, held: Piece) -> Tensor:
        path = self._folder / self._parts[part]["file"]
        try:
            with safe_open(path, framework="pt") as file:
                found: Tensor
                if piece == held:
                    found = file.get_tensor(name)
                else:
                    found = file.get_slice(name)[piece.within(held)]
                return found
        except (SafetensorError, OSError) as error:
            raise damaged(self._folder, f"{type(error).__name__} in {path.name}") from error

    def verify(self, rank: int, world_size: int) -> None:
        """Compare this rank's share of the files with their digests.

        Raises:
            CheckpointError: One is missing or altered.
        """
        for about in self._parts[rank::world_size]:
            path = self._folder / about["file"]
            try:
                with path.open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise damaged(self._folder, f"no {path.name}") from error
            if found != about["sha256"]:
                raise damaged(self._folder, f"other bytes in {path.name} than were written")


@dataclass(frozen=True)
class Written:
    """What a rank wrote of a checkpoint, for its manifest."""

    file: str
    sha256: str
    pieces: Mapping[str, tuple[Piece, tuple[int, ...], str]]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        pieces = {
            name: [list(piece.start), list(piece.size), list(shape), dtype]
            for name, (piece, shape, dtype) in self.pieces.items()
        }
        return {"file": self.file, "sha256": self.sha256, "pieces": pieces}


def share_out(tensors: Mapping[str, Tensor], ranks: int) -> dict[str, int]:
    """Return which rank writes each tensor that all have whole; the same on all ranks.

    The largest first, each to whoever has least; so few ranks that each has `PART_BYTES`.
    """
    sizes = {n: t.numel() * t.element_size() for n, t in tensors.items() if not is_sharded(t)}
    writers = max(1, min(ranks, sum(sizes.values()) // PART_BYTES))
    load, owners = [0] * writers, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner = load.index(min(load))
        load[owner] += sizes[name]
        owners[name] = owner
    return owners


def write_part(
    folder: Path, rank: int, tensors: Mapping[str, Tensor], owners: Mapping[str, int]
) -> Written | None:
    """Write what is this rank's of the tensors; nothing where that is nothing.

    Raises:
        OutputError: The disk is full; the folder is not a checkpoint yet.
        CheckpointError: A tensor is laid out in a way that cannot be stored.
    """
    mine: dict[str, Tensor] = {}
    pieces: dict[str, tuple[Piece, tuple[int, ...], str]] = {}
    for name, tensor in tensors.items():
        if owners[name] == rank if name in owners else first_holder(tensor):
            piece = piece_of(tensor)
            if piece.elements or not is_sharded(tensor):
                mine[name] = local_of(tensor)
                dtype = str(tensor.dtype).removeprefix("torch.")
                pieces[name] = piece, tuple(tensor.shape), dtype
    if not mine:
        return None
    content = save(mine)
    name = f"rank-{rank}.safetensors"
    write_atomic(folder / name, content)
    return Written(name, hashlib.sha256(content).hexdigest(), pieces)


def write_manifest(
    folder: Path, facts: Mapping[str, Any], written: Sequence[Mapping[str, Any]]
) -> None:
    """Write what makes a folder a checkpoint: the facts and what lies where, with a digest.

    Raises:
        OutputError: The disk is full.
    """
    tensors: dict[str, dict[str, Any]] = {}
    for part, about in enumerate(written):
        for name, (start, size, shape, dtype) in about["pieces"].items():
            found = tensors.setdefault(name, {"shape": shape, "dtype": dtype, "pieces": []})
            found["pieces"].append([part, start, size])
    content = {
        **facts,
        "parts": [{"file": about["file"], "sha256": about["sha256"]} for about in written],
        "tensors": tensors,
    }
    whole_content = {**content, "digest": _digest(content)}
    write_atomic(folder / MANIFEST, json.dumps(whole_content, allow_nan=False).encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Raises:
        CheckpointError: It is missing or altered.
    """
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        digest = content.pop("digest")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise damaged(folder, f"{type(error).__name__} in its {MANIFEST}") from error
    if digest != _digest(content):
        raise damaged(folder, f"a {MANIFEST} that does not match its digest")
    return content


def stage(folder: Path, name: str) -> Path:
    """Make a hidden folder for a checkpoint in the making; those of dead processes go.

    Raises:
        OutputError: It cannot be made.
    """
    sweep(folder)
    with output_errors(folder):
        made = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=folder))
        made.chmod(0o755)
    return made


def settle(staged: Path, path: Path) -> None:
    """Move a finished checkpoint to its place, durably.

    Raises:
        OutputError: The disk is full.
    """
    with output_errors(path):
        discard(path)
        publish(staged, path)


def discard(path: Path) -> None:
    """Remove a checkpoint of either form, in such an order that no half of it looks like one."""
    if path.is_dir():
        hidden = path.with_name(f".{path.name}.old.part")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left of checkpoints in the making."""
    for left in folder.glob(".step-*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def damaged(path: Path, reason: str) -> CheckpointError:
    """Return the error of a checkpoint that cannot be trusted."""
    kind = "folder" if path.is_dir() else "file"
    return CheckpointError(
        expected=f"a whole checkpoint in {path}",
        got=reason,
        fix=f"delete this {kind} to resume from the one before; the steps since stay charged",
    )


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
