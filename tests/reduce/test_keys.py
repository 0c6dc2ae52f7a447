"""Pairs agree on keys that nobody else has, or all ranks learn who spoilt it."""

from __future__ import annotations

import copy
import pickle
import secrets
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.reduce.tampering import Tampered

from dither.errors import ConfigError, DitherError, MismatchError, NoiseError, ReduceError
from dither.noise.key import Key
from dither.noise.simd import available, using
from dither.noise.stream import fresh_words
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.protections import keys as protections
from dither.reduce.protections.keys import (
    AgreedKeys,
    Authentication,
    ClusterSecret,
    Identity,
    agree_keys,
)
from dither.reduce.small import gather
from dither.reduce.transports.threads import run_ranks

TIMEOUT = 20.0
# RFC 7748 §6.1 and the curve's other points of small order (u = 0, 1 and two of order 8).
LOW_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def identities(world_size: int) -> list[Identity]:
    private = [Ed25519PrivateKey.generate() for _ in range(world_size)]
    directory = {rank: key.public_key() for rank, key in enumerate(private)}
    return [Identity(key, directory) for key in private]


def kinds(world_size: int) -> dict[str, list[Authentication | None]]:
    secret = secrets.token_bytes(32)
    return {
        "none": [None] * world_size,
        "cluster secret": [ClusterSecret(secret) for _ in range(world_size)],
        "identity keys": [*identities(world_size)],
    }


def agree(
    endpoint: Endpoint,
    authentication: Authentication | None = None,
    *,
    group: bool = False,
    settings: dict[str, object] | None = None,
    purpose: str = "test",
) -> AgreedKeys:
    peers = [rank for rank in range(endpoint.world_size) if rank != endpoint.rank]
    return agree_keys(
        endpoint,
        peers,
        purpose=purpose,
        settings=settings or {},
        authentication=authentication,
        group=group,
    )


def words(key: Key | None) -> bytes:
    assert key is not None
    return fresh_words(key, 64).tobytes()


def errors_of(world_size: int, function: Callable[[Endpoint], object]) -> list[DitherError]:
    """What each rank raises; all must."""

    def caught(endpoint: Endpoint) -> DitherError:
        with pytest.raises(DitherError) as error:
            function(endpoint)
        return error.value

    return run_ranks(world_size, caught, timeout=TIMEOUT)


def one_text(errors: list[DitherError], kind: type[DitherError]) -> str:
    assert {type(error) for error in errors} == {kind}
    texts = {str(error) for error in errors}
    assert len(texts) == 1, texts
    return texts.pop()


@pytest.mark.parametrize("kind", ["none", "cluster secret", "identity keys"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_pairs_share_a_key_and_no_two_pairs_the_same(world_size: int, kind: str) -> None:
    shown = kinds(world_size)[kind]

    def function(endpoint: Endpoint) -> tuple[dict[int, bytes], bytes, bytes, str]:
        agreed = agree(endpoint, shown[endpoint.rank], group=True)
        pads = {peer: words(key) for peer, key in agreed.pairs.items()}
        return pads, words(agreed.group), agreed.session, agreed.authentication

    found = run_ranks(world_size, function)
    pads = {
        frozenset((i, j)): pad for i, (pairs, *_) in enumerate(found) for j, pad in pairs.items()
    }
    assert len(set(pads.values())) == len(pads) == world_size * (world_size - 1) // 2
    for i, (pairs, *_) in enumerate(found):
        assert all(pads[frozenset((i, j))] == pad for j, pad in pairs.items())
    groups = {group for _, group, _, _ in found}
    assert len(groups) == 1
    assert not groups & set(pads.values())
    assert len({session for _, _, session, _ in found}) == 1
    assert {name for *_, name in found} == {kind}


def test_every_session_and_purpose_has_other_keys() -> None:
    def function(endpoint: Endpoint) -> list[bytes]:
        first, again = agree(endpoint, group=True), agree(endpoint, group=True)
        other = agree(endpoint, purpose="another")
        pairs = [words(one.pairs[1 - endpoint.rank]) for one in (first, again, other)]
        return [*pairs, words(first.group), words(again.group)]

    zero, one = run_ranks(2, function)
    assert zero == one
    assert len(set(zero)) == 5


def test_one_shared_secret_gives_another_key_for_each_purpose_and_pair() -> None:
    """The derivation alone: session and secret held fixed."""

    def function(endpoint: Endpoint) -> list[bytes]:
        session = protections._Session(endpoint, {}, protections._Nobody())
        peers = [peer for peer in range(3) if peer != endpoint.rank]
        return [session.material(peer, name) for peer in peers for name in ("a", "b", "b\0")]

    found = run_ranks(3, function)
    assert len({material for rank in found for material in rank}) == 9  # three pairs, three names
    assert all(len(material) == 32 for rank in found for material in rank)


def test_session_and_cluster_secret_are_part_of_every_key() -> None:
    """Who breaks X25519 later still lacks the secret."""
    private = [X25519PrivateKey.generate() for _ in range(2)]

    def material(authentication: Authentication, digest: bytes = bytes(32)) -> bytes:
        session = object.__new__(protections._Session)
        session._rank, session._private = 0, private[0]
        session._extra = authentication.material()
        session.publics = [key.public_key().public_bytes_raw() for key in private]
        session.digest = digest
        assert len({session.claim(rank) for rank in range(3)}) == 3  # nobody can repeat a proof
        return session.material(1, "test")

    secret = bytes(range(32))
    assert material(ClusterSecret(secret)) == material(ClusterSecret(secret))
    others = [ClusterSecret(bytes(32)), protections._Nobody()]
    found = {material(one) for one in [ClusterSecret(secret), *others]}
    found.add(material(ClusterSecret(secret), digest=b"\1" * 32))
    assert len(found) == 4


# ---- somebody does not follow the rules ----------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_another_secret_is_named_on_all_ranks(world_size: int) -> None:
    secret = secrets.token_bytes(32)

    def function(endpoint: Endpoint) -> None:
        own = secrets.token_bytes(32) if endpoint.rank == 1 else secret
        agree(endpoint, ClusterSecret(own))

    text = one_text(errors_of(world_size, function), ReduceError)
    assert "rank 0: rank 1 has another cluster secret" in text


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_a_signature_by_another_key_is_named_on_all_ranks(world_size: int) -> None:
    right = identities(world_size)

    def function(endpoint: Endpoint) -> None:
        shown = right[endpoint.rank]
        if endpoint.rank == 1:
            shown = Identity(Ed25519PrivateKey.generate(), shown._directory)
        agree(endpoint, shown)

    text = one_text(errors_of(world_size, function), ReduceError)
    assert "rank 0: rank 1's signature is not by its identity key" in text


def test_a_rank_that_the_directory_lacks_is_named_on_all_ranks() -> None:
    right = identities(3)
    del right[0]._directory[2]
    text = one_text(errors_of(3, lambda end: agree(end, right[end.rank])), ReduceError)
    assert "rank 0: the directory has no identity key of rank 2" in text


def test_ranks_may_not_swap_identities() -> None:
    right = identities(3)
    text = one_text(
        errors_of(3, lambda end: agree(end, right[end.rank ^ (end.rank < 2)])), ReduceError
    )
    assert "signature is not by its identity key" in text


def test_different_kinds_of_authentication_are_refused() -> None:
    def function(endpoint: Endpoint) -> None:
        agree(endpoint, ClusterSecret(bytes(32)) if endpoint.rank else None)

    text = one_text(errors_of(3, function), MismatchError)
    assert "authentication none on rank 0, cluster secret on ranks 1-2" in text


def test_different_settings_are_refused() -> None:
    def function(endpoint: Endpoint) -> None:
        agree(endpoint, settings={"degree": 2 + endpoint.rank})

    assert "degree 2 on rank 0, 3 on rank 1" in one_text(errors_of(2, function), MismatchError)


class Between:
    """A network that puts another public key into what a rank says of itself.

    Attributes:
        to: Only towards this rank; None for all.
    """

    def __init__(self, to: int | None) -> None:
        self._to = to
        self._own = X25519PrivateKey.generate().public_key().public_bytes_raw()
        self.forged = 0

    def __call__(self, to: int, content: bytes) -> bytes:
        # A block of `gather`: eight bytes of length, then the public key, random bytes, settings.
        if b'"purpose": "test"' not in content[:300] or self._to not in {None, to}:
            return content
        self.forged += 1
        return content[:8] + self._own + content[40:]


@pytest.mark.parametrize("kind", ["none", "cluster secret", "identity keys"])
@pytest.mark.parametrize(("world_size", "to"), [(2, None), (3, None), (3, 0), (3, 2), (4, 0)])
def test_another_public_key_on_the_way_stops_all(
    world_size: int, to: int | None, kind: str
) -> None:
    shown, between = kinds(world_size)[kind], Between(to)

    def function(endpoint: Endpoint) -> None:
        edited = Tampered(endpoint, between) if endpoint.rank == 1 else endpoint
        agree(edited, shown[endpoint.rank])

    text = one_text(errors_of(world_size, function), ReduceError)
    assert between.forged > 0
    assert "rank 1" in text
    assert {"none": "other public keys", "cluster secret": "stands between"}.get(kind, "") in text


class _LowOrder:
    """A private key whose public key is what the test says."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def public_key(self) -> _LowOrder:
        return self

    def public_bytes_raw(self) -> bytes:
        return self._public

    def exchange(self, _: object) -> bytes:
        return bytes(32)


@pytest.mark.parametrize("point", LOW_ORDER, ids=range(len(LOW_ORDER)))
def test_a_public_key_of_low_order_is_refused_by_all(
    point: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its secret with everybody is zero, so the network would know the pads."""

    class Generator:
        @staticmethod
        def generate() -> Any:
            name = threading.current_thread().name
            return _LowOrder(point) if name == "rank 1" else X25519PrivateKey.generate()

    monkeypatch.setattr(protections, "X25519PrivateKey", Generator)
    text = one_text(errors_of(3, agree), ReduceError)
    assert "rank 0: rank 1's public key is a point of low order; rank 2: rank 1's" in text


def test_two_ranks_with_one_public_key_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a fork of a broken generator, or when somebody sends a rank its own key back."""
    one = X25519PrivateKey.generate()

    class Generator:
        @staticmethod
        def generate() -> X25519PrivateKey:
            return one

    monkeypatch.setattr(protections, "X25519PrivateKey", Generator)
    assert "one key from two ranks" in one_text(errors_of(3, agree), MismatchError)


def test_settings_that_nobody_can_read_are_refused() -> None:
    def function(endpoint: Endpoint) -> None:
        if endpoint.rank == 0:
            gather(endpoint, secrets.token_bytes(100))
        agree(endpoint)

    errors = errors_of(2, function)
    assert any("settings that cannot be read" in str(error) for error in errors)


def test_a_changed_group_key_stops_all() -> None:
    box = []

    def edit(to: int, content: bytes) -> bytes:
        if len(content) == 2 * 48 + 1:  # the boxes of ranks 1 and 2
            box.append(to)
            return content[:60] + bytes([content[60] ^ 1]) + content[61:]
        return content

    def function(endpoint: Endpoint) -> None:
        agree(Tampered(endpoint, edit) if endpoint.rank == 0 else endpoint, group=True)

    text = one_text(errors_of(3, function), ReduceError)
    assert box == [2, 1]
    assert "rank 2: the group key of rank 0 was changed on its way" in text


# ---- secrets stay where they are -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "cluster secret", "identity keys"])
def test_no_key_travels(kind: str) -> None:
    """No 32 bytes of what was sent are the key that made a pad (HEAR's code sends its keys)."""
    sent: list[bytes] = []
    shown = kinds(3)[kind]

    def observe(sender: int, receiver: int, message: Buffer) -> None:
        sent.append(message.tobytes())

    def function(endpoint: Endpoint) -> list[tuple[str, bytes]]:
        agreed = agree(endpoint, shown[endpoint.rank], group=True)
        assert agreed.group is not None
        keys = [agreed.group, *agreed.pairs.values()]
        return [(key.cipher, fresh_words(key, 4).tobytes()) for key in keys]

    pads = {pad for rank in run_ranks(3, function, observe=observe) for pad in rank}
    candidates = {text[i : i + 32] for text in sent for i in range(max(len(text) - 31, 0))}
    assert len(candidates) > 300
    for cipher in {cipher for cipher, _ in pads}:
        made = {fresh_words(Key.agreed(one, cipher=cipher), 4).tobytes() for one in candidates}
        assert not made & {pad for _, pad in pads}


@pytest.mark.parametrize("secret", [ClusterSecret(bytes(range(32))), identities(1)[0]])
def test_secrets_are_not_printed_copied_or_pickled(secret: Authentication) -> None:
    assert repr(secret).startswith(f"<{type(secret).__name__}")
    assert "\\x" not in repr(secret)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(NoiseError, match="a secret that stays in its process"):
            attempt(secret)


@pytest.mark.parametrize("secret", [b"", b"fifteen bytes.."])
def test_a_short_cluster_secret_is_refused_without_showing_it(secret: bytes) -> None:
    with pytest.raises(ConfigError) as error:
        ClusterSecret(secret)
    assert "at least 16 random bytes" in str(error.value)
    assert "fifteen" not in str(error.value)


def test_ranks_with_other_processors_take_the_cipher_that_all_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def function(endpoint: Endpoint) -> str:
        name = "portable" if endpoint.rank == 1 else available()[-1]
        with using(name):
            return agree(endpoint).pairs[(endpoint.rank + 1) % 3].cipher

    with using("portable"):
        narrow = Key().cipher
    found = set(run_ranks(3, function))
    assert found == {narrow if narrow == Key().cipher else "chacha20"}
