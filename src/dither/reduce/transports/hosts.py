"""Which ranks share a host."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Hashable, Sequence
from pathlib import Path


def host_identity() -> bytes:
    """Return 32 bytes that processes have in common exactly where they share a host.

    A host is one network namespace of one booted machine under one name: containers with networks
    of their own count as hosts, for between them messages take the network.
    """
    parts = [platform.node(), _boot(), _network()]
    return hashlib.sha256("\0".join(parts).encode()).digest()


def number_hosts(identities: Sequence[Hashable]) -> tuple[int, ...]:
    """Return the host of each rank as a number, from 0 up, in order of first appearance.

    Args:
        identities: What identifies the host of rank 0, 1, ...
    """
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(identity, len(numbers)) for identity in identities)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux: the name must do
        return ""


def _network() -> str:
    try:
        return str(Path("/proc/self/ns/net").stat().st_ino)
    except OSError:
        return ""
