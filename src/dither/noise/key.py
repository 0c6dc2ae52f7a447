"""Keys of the stream cipher."""

from __future__ import annotations

from typing import Any, NoReturn, final

from dither import _native
from dither.errors import ConfigError, NoiseError
from dither.noise.core import core_errors

KEY_BYTES = 32


@final
class Key:
    """A ChaCha key (RFC 8439) with the position of its next unused number.

    Each number serves once: positions are handed out atomically, so a key may serve several
    threads. The bytes lie on a page of their own, locked in memory where the system allows it,
    left out of core dumps, and wiped when the key is dropped. They cannot be read, printed, copied
    or pickled. In a forked child a key from the operating system becomes a fresh one on first use;
    an agreed key is refused there, for parent and child would use the same numbers.

    Args:
        rounds: 20, or 12: about 1.5 times as fast, unbroken, with less margin.

    Attributes:
        rounds: 20 or 12.
        secret: Whether nobody else can know the key. Noise of a key that is not secret protects
            nobody.

    Raises:
        ConfigError: Another number of rounds.
        NoiseError: The operating system gives no entropy or no memory.
    """

    __slots__ = ("native", "rounds", "secret")

    def __init__(self, rounds: int = 20) -> None:
        self.rounds = _check_rounds(rounds)
        self.secret = True
        with core_errors("20 or 12 rounds"):
            self.native: Any = _native.Key(rounds)

    @classmethod
    def agreed(cls, material: bytes, *, rounds: int = 20, secret: bool = True) -> Key:
        """Return the key that both ends of a channel derived, or that a seed fixes.

        Args:
            material: 32 bytes, used for nothing else. Wiping the caller's copy is the caller's.
            rounds: 20 or 12.
            secret: False where the bytes can be known or repeated.

        Raises:
            ConfigError: Not 32 bytes, or another number of rounds.
        """
        if len(material) != KEY_BYTES:
            raise ConfigError(
                expected=f"{KEY_BYTES} bytes of key material",
                got=f"{len(material)}",
                fix="derive the key with a key derivation function (HKDF)",
            )
        key = cls.__new__(cls)
        key.rounds = _check_rounds(rounds)
        key.secret = secret
        with core_errors("32 bytes of key material"):
            key.native = _native.Key(bytes(material), rounds)
        return key

    @property
    def position(self) -> int:
        """Superblocks of 1024 bytes used so far in this process."""
        return int(self.native.position)

    def __repr__(self) -> str:
        return f"<Key, {self.rounds} rounds, {'secret' if self.secret else 'NOT SECRET'}>"

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to be copied or pickled: two holders would use the same numbers."""
        raise NoiseError(
            expected="a key that stays in its process",
            got="an attempt to copy or pickle it",
            fix="make a new Key where it is needed",
        )


def _check_rounds(rounds: int) -> int:
    if rounds not in {12, 20}:
        raise ConfigError(expected="20 or 12 rounds", got=repr(rounds), fix="leave rounds out")
    return rounds
