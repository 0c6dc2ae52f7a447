"""Freed memory that stays with the process from step to step."""

from __future__ import annotations

from functools import cache

import torch

# At most twice this stays with an idle process.
_LARGEST = 16 << 20


@cache
def keep_freed_pages() -> None:
    """Let the allocator keep what a step frees, for the next one, as it keeps smaller blocks.

    glibc gives freed blocks above a threshold, and the free end of its heap beyond twice that, back
    to the system, which clears each page anew when it is asked for again: a quarter of a step's
    time in a model with activations of two MiB. The threshold adapts to the largest block of up to
    32 MiB that was ever freed (mallopt(3), M_MMAP_THRESHOLD): freeing one that was never touched is
    enough. Done once a process; where a user set the threshold, and with other allocators, it has
    no effect.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
