"""Ranks find out whether they hold the same secret value, and the network learns nothing of it."""

from __future__ import annotations

import hmac

from dither.noise.stream import fresh_words
from dither.reduce.endpoint import Endpoint
from dither.reduce.protections.keys import Authentication, agree_keys

_TAG_BYTES = 16


def secret_tag(
    endpoint: Endpoint, value: bytes, *, authentication: Authentication | None = None
) -> str:
    """Return a tag that is the same on all ranks exactly where the value is. Collective.

    A digest of records is a function of the records: who knows all of them but one could try
    guesses for that one against it (PRIVACY-REVIEW A8). The tag is HMAC-SHA256 (RFC 2104) under a
    fresh key that only these ranks have (`agree_keys`), so to anybody else, and in any later call,
    it says nothing. A rank could try guesses for what another holds: ranks that compare records
    mean to hold the same ones. Without authentication that is safe against a network that listens,
    not against one that stands in between.

    Args:
        endpoint: This rank's end.
        value: What no other shall learn.
        authentication: How ranks show who they are.

    Raises:
        MismatchError: On all ranks: their kinds of authentication differ.
        ReduceError: On all ranks: a proof or a public key is wrong; names the rank.
        PeerError: A rank is dead, or does not come in time.
    """
    agreed = agree_keys(
        endpoint, (), purpose="compare", settings={}, authentication=authentication, group=True
    )
    assert agreed.group is not None  # noqa: S101 - asked for
    key = fresh_words(agreed.group, 8).tobytes()
    return hmac.digest(key, value, "sha256")[:_TAG_BYTES].hex()
