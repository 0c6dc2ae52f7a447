"""What a step frees stays with the process: no page is cleared anew at the next one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys, torch
from dither.clipping.pages import keep_freed_pages
if sys.argv[1] == "kept":
    keep_freed_pages()
def step():
    [torch.ones(1 << 19) for _ in range(3)]
    tensors = [torch.ones(1 << 19) for _ in range(5)]  # 2 MiB each
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    if mode == "fixed":  # nothing adapts then; some processes free a large block by themselves
        environment["GLIBC_TUNABLES"] = "glibc.malloc.mmap_threshold=131072"
    words = [sys.executable, "-c", _PROGRAM, mode]
    return int(subprocess.check_output(words, text=True, env=environment, timeout=120))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators adapt otherwise")
def test_freed_activations_are_not_given_back() -> None:
    pages = 20 * 5 * 512
    assert faults("kept") < pages / 20
    assert faults("fixed") > pages / 2
