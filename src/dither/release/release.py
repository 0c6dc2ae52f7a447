"""Charge, add noise, send: the only function whose result may leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor

from dither.errors import ConfigError, ReleaseError
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, Noise, is_private
from dither.privacy.account import Account
from dither.privacy.plan import Plan
from dither.release.ahead import Line, Sender, Spans
from dither.release.bounded_sum import BoundedSum
from dither.release.chunk import ChunkEncoder
from dither.release.transport import FusedTransport, Solo, Transport


@dataclass(frozen=True)
class Released:
    """A noisy sum, safe to publish.

    Attributes:
        tensors: Name → dense tensor, shapes as in the bounded sum: the noisy sum times the scale.
            Those of a chunk may share one memory.
        saturated: Coordinates clamped before noise. NOT released: for the operator only.
    """

    tensors: dict[str, Tensor]
    saturated: int = field(repr=False)


@final
class Opened:
    """A release that is paid for: what it sends is protected. `open_release` makes it.

    Args:
        bounded: The sum whose chunks will be sent.
        carrier: Carries messages.
        encoder: With the plan's lattice.
    """

    def __init__(self, bounded: BoundedSum, carrier: Transport, encoder: ChunkEncoder) -> None:
        self._bounded = bounded
        self._carrier = carrier
        self._encoder = encoder
        self._names: set[str] = set()
        self._found = 0
        self.saturated = 0

    def admit(self, chunk: Mapping[str, Tensor]) -> None:
        """Let a chunk pass, before it is sent.

        More coordinates than declared would mean too little noise for the lattice's γ√d, and a
        name twice would be lost.

        Raises:
            ReleaseError: The sum is broken.
        """
        self._found += sum(tensor.numel() for tensor in chunk.values())
        fits = self._found <= self._bounded.dimension
        self._require(fits and self._names.isdisjoint(chunk))
        self._names.update(chunk)

    def send(self, chunk: Mapping[str, Tensor], out: Tensor | None = None) -> dict[str, Tensor]:
        """Encode a chunk, sum it over ranks and decode it. One thread at a time, in one order.

        Args:
            chunk: Admitted.
            out: Memory for it alone, in place of the release's own.

        Raises:
            ReleaseError: A value is not finite; nothing left.
            ReduceError: There is no sum.
        """
        noisy, clamped = _release_chunk(chunk, self._encoder.into(out), self._carrier)
        self.saturated += clamped
        return noisy

    def finish(self) -> None:
        """Make sure that all of the sum was sent.

        Raises:
            ReleaseError: Some of it was not.
        """
        self._require(self._found == self._bounded.dimension)

    def abandon(self, error: BaseException) -> None:
        """Let the other ranks know, where the transport can, that no more comes from here."""
        self._carrier.abandon(type(error).__name__)

    def _require(self, whole: bool) -> None:
        if not whole:
            raise ReleaseError(
                expected=f"a sum of {self._bounded.dimension} coordinates, as declared, each one "
                "once",
                got=f"{self._found}, or a name twice",
                fix="report this as a bug: a clipping engine lost or repeated a parameter",
            )


def open_release(
    bounded: BoundedSum,
    account: Account,
    transport: Transport | None = None,
    noise: Noise | None = None,
    *,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
    out: Tensor | None = None,
) -> Opened:
    """Check and pay for a release; its chunks may be sent afterwards. See `release_sum`.

    When this returns, the charge is durable and the sample spent.
    """
    carrier = transport or Solo()
    source = noise or FreshNoise(Key())
    _require_protection(bounded, account, source)
    require_masks(account.plan, carrier)
    _require_slack(bounded, account)
    lattice = account.plan.bind(bounded.l2_clip, bounded.dimension, carrier.world_size)
    encoder = ChunkEncoder(lattice, source, scale=scale, dtype=dtype, out=out)
    bounded.ticket.spend(account.plan)
    account.charge(account.plan.event, bounded.ticket.population)
    return Opened(bounded, carrier, encoder)


def release_sum(
    bounded: BoundedSum,
    account: Account,
    transport: Transport | None = None,
    noise: Noise | None = None,
    *,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
    out: Tensor | None = None,
    sender: Sender | None = None,
    spans: Spans | None = None,
) -> Released:
    """Release a sum with the noise its plan promises.

    Guarantee: the result is one event ``account.plan.event`` under the plan's relation, unit and
    trust. The neighbouring sums lie within the charged sensitivity (`Plan.bind`), the noise is an
    exact rounded Gaussian on the same lattice, and everything after it is post-processing. The
    charge is durable before the first chunk is encoded, and chunks are asked for only then: they
    may be computed one by one, each while the one before it travels (``sender``). Neither the cuts
    nor the order depend on records, so when chunks leave tells of records what durations tell,
    which no guarantee covers. The sample is spent even when something fails afterwards, so a retry
    must draw and pay anew; other ranks learn of the failure (`Transport.abandon`).

    Args:
        bounded: The clipped sum with its sample's ticket.
        account: The run that pays.
        transport: Carries messages between ranks; one rank by default.
        noise: Fresh or from a pool; by default fresh, from a new key.
        scale: Public factor of the released tensors, such as 1 / expected batch size. Not the
            actual batch size, which is secret.
        dtype: Of the released tensors, float32 or float64.
        out: Flat memory on the CPU for all of them, used again from release to release: their
            views live until the next one. Fresh memory by default, and on other devices.
        sender: Thread that encodes, sends and decodes each chunk, in the chunks' order, while the
            next is computed. The same bits as without.
        spans: Where to note when each message was sent.

    Raises:
        SamplingError: The sample was used before or is not the plan's, or the ranks' samples come
            from more records together than the plan has.
        ConfigError: The sum was clipped to another bound than the plan's, or the scale or dtype
            is none that can be had.
        BudgetExhaustedError: No step is left.
        ReleaseError: Noise or sample would not be secret while the account promises it, the trust
            needs masks, or the sum is broken.
        NoiseError: The noise cannot serve the plan's lattice; found before anything is spent.
    """
    opened = open_release(bounded, account, transport, noise, scale=scale, dtype=dtype, out=out)
    tensors: dict[str, Tensor] = {}
    try:
        with Line[dict[str, Tensor]](sender, spans) as line:
            for chunk in bounded.chunks:
                opened.admit(chunk)
                line.send(partial(opened.send, chunk))
            opened.finish()
            for noisy in line.results():
                tensors.update(noisy)
    except BaseException as error:
        opened.abandon(error)
        raise
    return Released(tensors, opened.saturated)


def _require_protection(bounded: BoundedSum, account: Account, source: Noise) -> None:
    if account.insecure is None and not (is_private(source) and bounded.ticket.secret):
        noise = "noise that repeats, is shared, or is not dither's"
        raise ReleaseError(
            expected="dither's own noise and sample, from the operating system's entropy",
            got="a sample that repeats" if is_private(source) else noise,
            fix="pass FreshNoise or NoisePool with a new Key(); to debug, open the account with "
            "insecure=..., which marks the run as not private",
        )


def require_masks(plan: Plan, carrier: Transport) -> None:
    """Refuse shares of noise that protect only behind masks, where there are none or too few.

    Raises:
        ReleaseError: Trust is distributed(t), and the transport's masks do not withstand t ranks.
    """
    masked = -1 if carrier.colluders is None else carrier.colluders
    if plan.trust.name == "distributed" and masked < plan.trust.colluders:
        raise ReleaseError(
            expected=f"masks that withstand {plan.trust.colluders} colluding ranks",
            got="none" if masked < 0 else f"masks against {masked}",
            fix="agree on masks with dither.reduce's Masks.agree(endpoint, colluders="
            f"{plan.trust.colluders}), or plan with trust local",
        )


def _require_slack(bounded: BoundedSum, account: Account) -> None:
    plan = account.plan
    needed = bounded.slack.get(plan.relation, 0.0)
    if needed > plan.numeric_slack:
        raise ConfigError(
            expected=f"a sum whose rounding stays within {plan.numeric_slack:g} of its bound, as "
            f"the plan charges under {plan.relation}",
            got=f"one that may need {needed:.2g}",
            fix="clip with the plan's relation, Clipping(relation=...), or plan with more "
            "numeric_slack",
        )


def _release_chunk(
    chunk: Mapping[str, Tensor], encoder: ChunkEncoder, carrier: Transport
) -> tuple[dict[str, Tensor], int]:
    if type(carrier) is Solo:
        return encoder.alone(chunk)
    if isinstance(carrier, FusedTransport):
        return encoder.together(chunk, carrier)
    encoded = encoder.encode(chunk)
    return encoder.decode(carrier.all_reduce(encoded.message), chunk), encoded.saturated
