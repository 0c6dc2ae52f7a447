"""Which trackers a run tells: read and checked before anything is written, without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dither.errors import ConfigError
from dither.train.tracker_sinks import SINKS


@dataclass(frozen=True)
class Target:
    """Where figures go.

    Attributes:
        kind: tensorboard or mlflow.
        place: A folder, or the address of a server or data base.
        private: Whether the user named it as the operator's own.
    """

    kind: str
    place: str
    private: bool = False

    def __str__(self) -> str:
        """Return it as the user wrote it."""
        return f"{self.kind}:{self.place}"


def check_targets(track: Sequence[str], track_private: Sequence[str] = ()) -> tuple[Target, ...]:
    """Return the targets of ``--track`` and ``--track-private``.

    Raises:
        ConfigError: Not of the form kind:place, of no known kind, without its package, or one place
            named as private and as not.
    """
    found = [_target(text, "--track", private=False) for text in track]
    found += [_target(text, "--track-private", private=True) for text in track_private]
    places = absolute([str(target) for target in found])
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(
            expected="each tracker once, private or not",
            got=f"{twice} twice",
            fix="leave one out: what is not released must have a place of its own",
        )
    return tuple(found)


def absolute(texts: Sequence[str]) -> tuple[str, ...]:
    """Return targets with absolute folders, so that they hold wherever a run goes on."""
    folder = "tensorboard:"
    return tuple(
        folder + str(Path(text.removeprefix(folder)).absolute())
        if text.startswith(folder)
        else text
        for text in texts
    )


def _target(text: str, option: str, *, private: bool) -> Target:
    kind, colon, place = text.partition(":")
    if kind not in SINKS or not colon or not place:
        raise ConfigError(
            expected=f"{option} of the form tensorboard:FOLDER or mlflow:ADDRESS",
            got=repr(text),
            fix="write for instance tensorboard:runs/board or mlflow:http://localhost:5000",
        )
    SINKS[kind].check(place)
    return Target(kind, place, private)
