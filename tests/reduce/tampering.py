"""An endpoint whose outgoing messages somebody changes on their way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from dither.reduce.endpoint import Buffer, Endpoint

# Takes receiver and content; returns what arrives.
Edit: TypeAlias = Callable[[int, bytes], bytes]


class Tampered(Endpoint):
    """One rank's end behind a network that edits what the rank sends."""

    def __init__(self, endpoint: Endpoint, edit: Edit) -> None:
        self._endpoint = endpoint
        self._edit = edit

    @property
    def rank(self) -> int:
        return self._endpoint.rank

    @property
    def world_size(self) -> int:
        return self._endpoint.world_size

    @property
    def hosts(self) -> tuple[int, ...]:
        return self._endpoint.hosts

    @property
    def timeout(self) -> float:
        return self._endpoint.timeout

    def send(self, to: int, message: Buffer) -> None:
        self._endpoint.send(to, self._edited(to, message))

    def receive(self, source: int, out: Buffer) -> None:
        self._endpoint.receive(source, out)

    def exchange(self, to: int, message: Buffer, source: int, out: Buffer) -> None:
        self._endpoint.exchange(to, self._edited(to, message), source, out)

    def close(self) -> None:
        self._endpoint.close()

    def _edited(self, to: int, message: Buffer) -> Buffer:
        arrives = self._edit(to, message.tobytes())
        assert len(arrives) == message.nbytes
        return np.frombuffer(arrives, message.dtype)
