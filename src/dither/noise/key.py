"""Keys of the stream cipher."""

from __future__ import annotations

from typing import Any, NoReturn, final

from dither import _native
from dither.errors import ConfigError, NoiseError
from dither.noise.core import core_errors
from dither.noise.simd import kernels

KEY_BYTES = 32
_NAMES = {12: "chacha12", 20: "chacha20", 256: "aes256"}


@final
class Key:
    """A stream cipher's key with the position of its next unused number.

    Each number serves once: positions are handed out atomically, so a key may serve several
    threads. The bytes lie on a page of their own, locked in memory where the system allows it,
    left out of core dumps, and wiped when the key is dropped. They cannot be read, printed, copied
    or pickled. In a forked child a key from the operating system becomes a fresh one on first use;
    an agreed key is refused there, for parent and child would use the same numbers.

    Args:
        cipher: ``chacha20`` (RFC 8439), ``aes256`` (FIPS 197 in counter mode), or ``chacha12``:
            faster than ChaCha20, unbroken, with less margin. By default the faster of the first two
            here: AES where the processor has instructions for it.

    Attributes:
        cipher: Name of the cipher.

    Raises:
        ConfigError: Another cipher.
        NoiseError: The operating system gives no entropy or no memory.
    """

    __slots__ = ("_origin", "cipher", "native")

    def __init__(self, cipher: str | None = None) -> None:
        code = kernels().preferred_cipher if cipher is None else _code(cipher)
        self.cipher = _NAMES[code]
        self._origin = "os"
        with core_errors("a cipher"):
            self.native: Any = _native.Key(code)

    @classmethod
    def agreed(cls, material: bytes, *, cipher: str = "chacha20", secret: bool = True) -> Key:
        """Return the key that both ends of a channel derived, or that a seed fixes.

        Its stream always starts at position 0. Use the bytes for one key, one direction and one
        run: derive new ones (HKDF over the peers, the direction and the run) for each direction and
        after every restart, or pads repeat and their difference tells the messages.

        Args:
            material: 32 bytes, used for nothing else. Wiping the caller's copy is the caller's.
            cipher: The same at both ends, so it does not follow the processor.
            secret: False where the bytes can be known or repeated.

        Raises:
            ConfigError: Not 32 bytes, or another cipher.
        """
        if not isinstance(material, bytes | bytearray) or len(material) != KEY_BYTES:
            size = len(material) if isinstance(material, bytes | bytearray) else "none"
            raise ConfigError(
                expected=f"{KEY_BYTES} bytes of key material",
                got=f"{size}, in a {type(material).__name__}",
                fix="derive the key with a key derivation function (HKDF)",
            )
        code = _code(cipher)
        key = cls.__new__(cls)
        key.cipher = cipher
        key._origin = "agreed" if secret else "known"  # noqa: SLF001 - this class
        with core_errors("32 bytes of key material"):
            key.native = _native.Key(bytes(material), code)
        return key

    @property
    def secret(self) -> bool:
        """Whether nobody outside of those who agreed on it can know the key."""
        return self._origin != "known"

    @property
    def own(self) -> bool:
        """Whether the operating system made it for this process alone.

        Only such a key may make a release's noise: whoever shares a key can take its noise away,
        and a key made twice of the same bytes repeats it.
        """
        return self._origin == "os"

    @property
    def position(self) -> int:
        """Superblocks of 1024 bytes used so far in this process."""
        return int(self.native.position)

    def __repr__(self) -> str:
        return f"<Key, {self.cipher}, {'secret' if self.secret else 'NOT SECRET'}>"

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to be copied or pickled: two holders would use the same numbers."""
        raise NoiseError(
            expected="a key that stays in its process",
            got="an attempt to copy or pickle it",
            fix="make a new Key where it is needed",
        )


def native_key(key: object) -> Any:
    """Return a key as the C core takes it.

    Raises:
        ConfigError: Something else.
    """
    if not isinstance(key, Key):
        raise ConfigError(
            expected="a Key", got=type(key).__name__, fix="pass dither.Key(), or Key.agreed(bytes)"
        )
    return key.native


def _code(cipher: object) -> int:
    codes = {name: code for code, name in _NAMES.items()}
    if not isinstance(cipher, str):  # bytes may be a key: they are not shown
        raise ConfigError(
            expected=f"the name of a cipher: {', '.join(codes)}",
            got=type(cipher).__name__,
            fix="leave cipher out; for given bytes use Key.agreed(bytes)",
        )
    if cipher not in codes:
        raise ConfigError(
            expected=f"a cipher of {', '.join(codes)}", got=repr(cipher), fix="leave cipher out"
        )
    return codes[cipher]
