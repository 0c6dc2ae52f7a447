"""Pairs of ranks agree on keys that nobody else knows.

Every rank sends a fresh X25519 public key (RFC 7748) and a fresh random number to all; their hash
names the session. A pair's key is HKDF-SHA256 (RFC 5869) of its shared secret, salted with the
session, over purpose, both ranks and both public keys, so each pair, purpose and session has a key
of its own, and no message of an earlier session says anything about it.

Who is who is a matter of authentication, of which there are three kinds:

==================  ====================================================================
`Identity`          Each rank signs the session with its own Ed25519 key (RFC 8032) and
                    knows the public keys of the others. Safe against an active network
                    and against active ranks: nobody can stand between two honest ranks.
`ClusterSecret`     Each rank proves to know one secret. Safe against an active network,
                    *not* against ranks: whoever knows the secret can stand between two
                    honest ranks and read what passes (PRIVACY-REVIEW A3). Ranks must be
                    honest, if curious.
None                Safe against a network and ranks that only listen.
==================  ====================================================================

Every guarantee here is computational. Private keys and shared secrets live in Python's memory for
the length of the agreement; they are dropped, not wiped. The agreed keys lie in locked memory
(`Key`), cannot be read, copied or pickled, and are refused in a forked child.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import struct
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dither import __version__
from dither.errors import ConfigError, MismatchError, NoiseError
from dither.noise.key import KEY_BYTES, Key
from dither.reduce.agreement import require_same
from dither.reduce.endpoint import Endpoint
from dither.reduce.small import broadcast, consent, gather

_LABEL = b"dither key agreement 1"
_FEWEST_SECRET_BYTES = 16
_PUBLIC_BYTES = 32
_WRAPPED_BYTES = KEY_BYTES + 16


class Authentication(ABC):
    """How a rank shows who it is."""

    name: str

    @abstractmethod
    def prove(self, claim: bytes) -> bytes:
        """Return this rank's proof of a claim."""

    @abstractmethod
    def check(self, rank: int, claim: bytes, proof: bytes) -> str | None:
        """Return what is wrong with a rank's proof, None if nothing."""

    def material(self) -> bytes:
        """Return what goes into every key beside the shared secret."""
        return b""

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to be copied or pickled: secrets stay where they were given."""
        raise NoiseError(
            expected="a secret that stays in its process",
            got="an attempt to copy or pickle it",
            fix="load it in the process that uses it",
        )


@final
class Identity(Authentication):
    """This rank's own identity key, and the public ones of all ranks.

    Args:
        private_key: This rank's Ed25519 key, given to no other rank.
        directory: Public key of each rank, from a source that all trust.
    """

    name = "identity keys"

    def __init__(
        self, private_key: Ed25519PrivateKey, directory: Mapping[int, Ed25519PublicKey]
    ) -> None:
        self._private = private_key
        self._directory = dict(directory)
        self._names = (
            private_key.public_key().public_bytes_raw(),
            frozenset((rank, key.public_bytes_raw()) for rank, key in self._directory.items()),
        )

    def prove(self, claim: bytes) -> bytes:
        """Sign it."""
        return self._private.sign(claim)

    def check(self, rank: int, claim: bytes, proof: bytes) -> str | None:
        """Verify the signature by the directory."""
        if rank not in self._directory:
            return f"the directory has no identity key of rank {rank}"
        try:
            self._directory[rank].verify(proof, claim)
        except InvalidSignature:
            return f"rank {rank}'s signature is not by its identity key, or somebody stands between"
        return None

    def __eq__(self, other: object) -> bool:
        """Compare keys: a call that makes one anew means the same group."""
        return isinstance(other, Identity) and self._names == other._names

    def __hash__(self) -> int:
        return hash(self._names)

    def __repr__(self) -> str:
        return f"<Identity, directory of {len(self._directory)} ranks>"


@final
class ClusterSecret(Authentication):
    """One secret that all ranks know and nobody else.

    Args:
        secret: At least 16 random bytes.

    Raises:
        ConfigError: Fewer bytes.
    """

    name = "cluster secret"

    def __init__(self, secret: bytes) -> None:
        if not isinstance(secret, bytes) or len(secret) < _FEWEST_SECRET_BYTES:
            raise ConfigError(
                expected=f"a secret of at least {_FEWEST_SECRET_BYTES} random bytes",
                got=f"{len(secret)} of them, in a {type(secret).__name__}",
                fix="make one with secrets.token_bytes(32)",
            )
        self._key = _derive(secret, b"", b"cluster secret")

    def prove(self, claim: bytes) -> bytes:
        """Return HMAC-SHA256 of it."""
        return hmac.digest(self._key, claim, "sha256")

    def check(self, rank: int, claim: bytes, proof: bytes) -> str | None:
        """Compare, in constant time."""
        if hmac.compare_digest(self.prove(claim), proof):
            return None
        return f"rank {rank} has another cluster secret, or somebody stands between"

    def material(self) -> bytes:
        """The secret: without it a broken shared secret does not tell the key."""
        return _derive(self._key, b"", b"material")

    def __eq__(self, other: object) -> bool:
        """Compare secrets, in constant time: a call that makes one anew means the same group."""
        return isinstance(other, ClusterSecret) and hmac.compare_digest(self._key, other._key)

    def __hash__(self) -> int:
        return hash(_derive(self._key, b"", b"hash"))

    def __repr__(self) -> str:
        return "<ClusterSecret>"


@final
class _Nobody(Authentication):
    """No authentication: a proof only shows that both saw the same session."""

    name = "none"

    def prove(self, claim: bytes) -> bytes:
        return hashlib.sha256(claim).digest()

    def check(self, rank: int, claim: bytes, proof: bytes) -> str | None:
        same = hmac.compare_digest(self.prove(claim), proof)
        return None if same else f"rank {rank} saw other public keys than this rank did"


@dataclass(frozen=True)
class AgreedKeys:
    """What came of an agreement.

    Attributes:
        pairs: Key with each peer.
        group: Key of all ranks, if one was asked for.
        session: Public name of the session, 32 bytes.
        authentication: ``identity keys``, ``cluster secret`` or ``none``.
    """

    pairs: Mapping[int, Key]
    group: Key | None
    session: bytes
    authentication: str


def agree_keys(
    endpoint: Endpoint,
    peers: Collection[int],
    *,
    purpose: str,
    settings: Mapping[str, object],
    authentication: Authentication | None = None,
    group: bool = False,
) -> AgreedKeys:
    """Agree on a key with each peer. Collective: all ranks call it.

    Args:
        endpoint: This rank's end.
        peers: The other ranks to share keys with; i is a peer of j exactly if j is one of i.
        purpose: What the keys are for; another purpose, another key.
        settings: Public, as JSON has them; the same on all ranks.
        authentication: How ranks show who they are; the same kind on all ranks.
        group: Also agree on a key of all ranks: rank 0 makes it and sends it to each, encrypted
            and authenticated under a key of theirs.

    Raises:
        ConfigError: Something else as authentication.
        MismatchError: On all ranks: settings or kinds of authentication differ.
        ReduceError: On all ranks: a proof or a public key is wrong; names the rank.
        PeerError: A rank is dead, or does not come in time.
    """
    if not isinstance(authentication, Authentication | None):
        raise ConfigError(
            expected="an Identity, a ClusterSecret or no authentication",
            got=type(authentication).__name__,
            fix="for a secret of bytes, pass ClusterSecret(secret)",
        )
    shown = authentication or _Nobody()
    session = _Session(endpoint, {"purpose": purpose, **settings}, shown)
    proofs = gather(endpoint, shown.prove(session.claim(endpoint.rank)))
    others = set(range(endpoint.world_size)) if endpoint.rank == 0 else {0}
    wardens = sorted(others - {endpoint.rank}) if group else []
    problem, pairs, wraps = None, {}, {}
    try:
        for peer in sorted({*peers, *wardens}):
            session.require(shown.check(peer, session.claim(peer), proofs[peer]))
        pairs = {peer: session.key(peer, purpose) for peer in sorted(peers)}
        wraps = {peer: session.material(peer, "group") for peer in wardens}
    except (_ProblemError, NoiseError) as found:  # or no memory for so many keys
        problem = str(found)
    consent(endpoint, problem)
    shared = _share_group_key(endpoint, session, wraps) if group else None
    return AgreedKeys(pairs, shared, session.digest, shown.name)


class _ProblemError(Exception):
    """Something to tell all ranks before they stop together."""


class _Session:
    """What all ranks sent each other, and this rank's private key for it."""

    def __init__(
        self, endpoint: Endpoint, settings: Mapping[str, object], authentication: Authentication
    ) -> None:
        self._rank = endpoint.rank
        self._private = X25519PrivateKey.generate()
        self._extra = authentication.material()
        record = {
            **settings,
            "version": __version__,
            "authentication": authentication.name,
            "cipher": Key().cipher,
        }
        public = self._private.public_key().public_bytes_raw()
        text = json.dumps(record, sort_keys=True).encode()
        hellos = gather(endpoint, public + secrets.token_bytes(_PUBLIC_BYTES) + text)
        records = _settings(hellos)
        ciphers = {str(record.pop("cipher", None)) for record in records}
        require_same(records)
        # The same on all: AES only where all processors have instructions for it.
        self.cipher = ciphers.pop() if len(ciphers) == 1 else "chacha20"
        self.publics = [hello[:_PUBLIC_BYTES] for hello in hellos]
        if len(set(self.publics)) < len(hellos):
            raise MismatchError(
                expected="another public key from every rank",
                got="one key from two ranks: a broken source of randomness, or a replay",
                fix="start the ranks anew",
            )
        parts = [_LABEL, *hellos]
        packed = b"".join(struct.pack(">Q", len(part)) + part for part in parts)
        self.digest = hashlib.sha256(packed).digest()

    def claim(self, rank: int) -> bytes:
        """What a rank must prove: that it is this rank in this session."""
        return _LABEL + struct.pack(">Q", rank) + self.digest

    @staticmethod
    def require(problem: str | None) -> None:
        if problem is not None:
            raise _ProblemError(problem)

    def material(self, peer: int, purpose: str) -> bytes:
        """32 bytes that only this rank and the peer can know."""
        low, high = sorted((self._rank, peer))
        try:
            # OpenSSL refuses an all-zero secret (RFC 7748 §6.1): a point of low order.
            public = X25519PublicKey.from_public_bytes(self.publics[peer])
            shared = self._private.exchange(public)
        except ValueError:
            raise _ProblemError(f"rank {peer}'s public key is a point of low order") from None
        ends = struct.pack(">QQ", low, high) + self.publics[low] + self.publics[high]
        return _derive(shared + self._extra, self.digest, purpose.encode() + b"\0" + ends)

    def key(self, peer: int, purpose: str) -> Key:
        return Key.agreed(self.material(peer, purpose), cipher=self.cipher)


def _settings(hellos: Sequence[bytes]) -> list[dict[str, object]]:
    try:
        return [dict(json.loads(hello[2 * _PUBLIC_BYTES :])) for hello in hellos]
    except (ValueError, TypeError):
        raise MismatchError(
            expected="the same key agreement on all ranks",
            got="settings that cannot be read",
            fix="install one version of dither on all ranks, and look for who changes messages",
        ) from None


def _share_group_key(endpoint: Endpoint, session: _Session, wraps: Mapping[int, bytes]) -> Key:
    """Rank 0 makes a secret and sends it to each rank under a key that serves this once."""
    nonce, problem = bytes(12), None
    secret = secrets.token_bytes(KEY_BYTES) if endpoint.rank == 0 else b""
    boxes = b"".join(
        ChaCha20Poly1305(wrap).encrypt(nonce, secret, session.digest)
        for _, wrap in sorted(wraps.items())
        if endpoint.rank == 0
    )
    boxes = broadcast(endpoint, boxes)
    if endpoint.rank != 0:
        box = boxes[(endpoint.rank - 1) * _WRAPPED_BYTES : endpoint.rank * _WRAPPED_BYTES]
        try:
            secret = ChaCha20Poly1305(wraps[0]).decrypt(nonce, box, session.digest)
        except (InvalidTag, ValueError):
            problem = "the group key of rank 0 was changed on its way"
    consent(endpoint, problem)
    return Key.agreed(_derive(secret, session.digest, b"group"), cipher=session.cipher)


def _derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt, _LABEL + b"\0" + info).derive(secret)
