"""Masks cancel in the sum and hide everything before it; no pad serves twice."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.noise.processes import in_child

from dither.errors import ConfigError, MismatchError, NoiseError
from dither.noise.stream import fresh_words
from dither.reduce.agreement import Agreement, Terms, seal_size
from dither.reduce.algorithms.registry import sum_over
from dither.reduce.endpoint import Buffer, Endpoint
from dither.reduce.protections import masked
from dither.reduce.protections.keys import ClusterSecret
from dither.reduce.protections.masked import Masks
from dither.reduce.transports.threads import run_ranks

CASES = [(size, t) for size in range(1, 10) for t in range(max(size - 1, 1))]
ALARM = 1e-9
TYPES = ["int16", "int32"]
LENGTHS = [1000, 0, 1, 7, 512, 3]
Message = np.ndarray[tuple[int], np.dtype[Any]]


def messages(rank: int, dtype: str) -> list[Message]:
    """What a rank sends in each call: over the whole range, so sums wrap."""
    random = np.random.default_rng(1000 + rank)
    limits = np.iinfo(dtype)
    return [random.integers(limits.min, limits.max, n, dtype, endpoint=True) for n in LENGTHS]


def wrapped_sum(parts: list[Message]) -> Message:
    total = np.zeros_like(parts[0])
    for part in parts:
        total += part
    return total


def masks_of(world_size: int, colluders: int, **options: Any) -> list[Masks]:
    """Masks of every rank of a group."""
    return run_ranks(world_size, lambda end: Masks.agree(end, colluders=colluders, **options))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("size", "colluders"), CASES)
def test_masks_cancel_in_every_call(size: int, colluders: int, dtype: str) -> None:
    ranks = masks_of(size, colluders)
    clear = [messages(rank, dtype) for rank in range(size)]
    for call in range(len(LENGTHS)):
        sent = [clear[rank][call].copy() for rank in range(size)]
        for masks, message in zip(ranks, sent, strict=True):
            masks.apply(message)
        assert np.array_equal(
            wrapped_sum(sent), wrapped_sum([clear[rank][call] for rank in range(size)])
        )
        if size > 1 and LENGTHS[call] >= 512:
            assert all((sent[rank] == clear[rank][call]).mean() < 0.02 for rank in range(size))
    assert {masks.calls for masks in ranks} == {len(LENGTHS)}
    assert {masks.degree >= min(colluders + 1, size - 1) for masks in ranks} == {True}


def test_more_neighbours_than_needed_and_authentication() -> None:
    def function(endpoint: Endpoint) -> Message:
        secret = ClusterSecret(bytes(range(16)))
        masks = Masks.agree(endpoint, colluders=1, degree=4, authentication=secret)
        assert (masks.degree, masks.colluders, len(masks.keys)) == (4, 1, 4)
        assert masks.authentication == "cluster secret"
        message = np.full(100, endpoint.rank, np.int32)
        masks.apply(message)
        return message

    assert (wrapped_sum(run_ranks(7, function)) == 21).all()


# ---- what the wire shows -------------------------------------------------------------------------


def bytes_look_uniform(messages: list[Message]) -> bool:
    """χ² of each byte of the numbers, message by message: they may depend on each other.

    Wrong about uniform ones at a rate of 1e-9 a byte and message: below 1e-6 in all this file.
    """
    columns = [part.view(np.uint8).reshape(-1, part.itemsize).T for part in messages]
    counts = [np.bincount(column, minlength=256) for part in columns for column in part]
    return all(stats.chisquare(one).pvalue > ALARM for one in counts)


def _on_the_wire(
    size: int, dtype: str, algorithm: str, *, mask: bool, calls: int = 1
) -> dict[int, list[Message]]:
    """What each rank sends of a message of small numbers, as rounded gradients are."""
    seen: dict[int, list[Message]] = {rank: [] for rank in range(size)}

    def observe(sender: int, receiver: int, message: Buffer) -> None:
        if message.dtype == np.dtype(dtype):
            seen[sender].append(message)

    def function(endpoint: Endpoint) -> None:
        masks = Masks.agree(endpoint, colluders=0)
        for _ in range(calls):
            message = np.full(20_000, endpoint.rank + 1, dtype)
            if mask:
                masks.apply(message)
            sum_over(endpoint, message, algorithm)
            assert (message == size * (size + 1) // 2).all()

    run_ranks(size, function, observe=observe)
    return seen


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_what_a_rank_sends_is_uniform(size: int, dtype: str) -> None:
    seen = _on_the_wire(size, dtype, "naive", mask=True)
    for rank in range(size):
        assert bytes_look_uniform(seen[rank][:1])
        assert (seen[rank][0] == rank + 1).mean() < 0.01


@pytest.mark.parametrize("dtype", TYPES)
def test_without_masks_the_test_sees_it(dtype: str) -> None:
    seen = _on_the_wire(3, dtype, "naive", mask=False)
    assert not any(bytes_look_uniform(seen[rank][:1]) for rank in range(3))


@pytest.mark.parametrize("algorithm", ["round_robin", "binomial", "recursive_doubling", "ring"])
def test_no_algorithm_sends_a_contribution_in_clear(algorithm: str) -> None:
    """Partial sums of fewer than all ranks are uniform too; only the whole sum is not."""
    seen = _on_the_wire(4, "int32", algorithm, mask=True)
    parts = [part for rank in seen for part in seen[rank]]
    hidden = [part for part in parts if not (part == 10).all()]
    assert hidden
    assert bytes_look_uniform(hidden)


@pytest.mark.parametrize("dtype", TYPES)
def test_pads_do_not_repeat_within_or_between_messages(dtype: str) -> None:
    """HEAR's code used the pads of its first block in every block."""
    seen = _on_the_wire(2, dtype, "naive", mask=True, calls=4)
    sent = np.concatenate(seen[0])
    assert sent.size == 80_000
    for shift in (256, 512, 1024, 16_384, 20_000, 40_000, 65_536):
        assert bytes_look_uniform([np.ascontiguousarray(sent[shift:] - sent[:-shift])])


def test_a_new_agreement_has_new_pads() -> None:
    def pads(masks: Masks) -> Message:
        message = np.zeros(20_000, np.int32)
        masks.apply(message)
        return message

    first, again = (pads(masks_of(2, 0)[0]) for _ in range(2))
    assert bytes_look_uniform([first - again])


# ---- used wrongly --------------------------------------------------------------------------------


def test_spent_masks_are_refused() -> None:
    masks, other = masks_of(2, 0)
    masks.spoil("a dead peer")
    masks.spoil("something later")
    assert masks.spent
    for attempt in (lambda: masks.apply(np.zeros(3, np.int16)), lambda: masks.keys):
        with pytest.raises(NoiseError, match="masks that are spent after a dead peer"):
            attempt()
    assert "spent" in repr(masks)
    assert not other.spent


def test_an_error_within_a_call_spends_the_masks_and_wipes_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = masks_of(4, 1)[1]
    assert masks.signs == (-1, 1)
    monkeypatch.setattr(masked, "add_mask", _interrupted)
    message = np.full(10, 77, np.int32)
    with pytest.raises(KeyboardInterrupt):
        masks.apply(message)
    assert (message == 0).all()
    assert masks.calls == 0
    with pytest.raises(NoiseError, match="spent after an earlier KeyboardInterrupt"):
        masks.apply(message)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_forked_child_may_not_use_them() -> None:
    masks, other = masks_of(2, 0)
    text = in_child(lambda: _refusal(lambda: masks.apply(np.zeros(5, np.int32))).encode())
    assert b"a key of this process" in text
    messages = [np.full(5, 4, np.int32) for _ in range(2)]
    for one, message in zip((masks, other), messages, strict=True):
        one.apply(message)
    assert (wrapped_sum([*messages]) == 8).all()


def _refusal(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except NoiseError as error:
        return str(error)
    return "nothing was refused"


@pytest.mark.parametrize(
    "message",
    [
        np.zeros(4, np.float32),
        np.zeros(4, np.int64),
        np.zeros((2, 2), np.int32),
        np.zeros(8, np.int32)[::2],
        np.frombuffer(bytes(16), np.int32),
    ],
    ids=["float32", "int64", "matrix", "strided", "read-only"],
)
def test_other_messages_are_refused_and_the_masks_stay_good(message: Message) -> None:
    ranks = masks_of(2, 0)
    with pytest.raises(ConfigError, match="a contiguous one-dimensional int16 or int32 array"):
        ranks[0].apply(message)
    sent = [np.ones(5, np.int16) for _ in range(2)]
    for masks, part in zip(ranks, sent, strict=True):
        masks.apply(part)
    assert (wrapped_sum([*sent]) == 2).all()


def test_ranks_with_other_thresholds_are_refused() -> None:
    def function(endpoint: Endpoint) -> str:
        with pytest.raises(MismatchError) as error:
            Masks.agree(endpoint, colluders=2 if endpoint.rank == 3 else 1)
        return str(error.value)

    texts = set(run_ranks(6, function))
    assert len(texts) == 1
    assert "colluders 1 on ranks 0-2 and 4-5, 2 on rank 3" in texts.pop()


@pytest.mark.parametrize(("colluders", "degree"), [(2, 2), (2, 1), (8, None), (-1, None)])
def test_what_cannot_protect_is_refused_before_any_message(
    colluders: int, degree: int | None
) -> None:
    sent: list[Buffer] = []

    def function(endpoint: Endpoint) -> None:
        with pytest.raises(ConfigError):
            Masks.agree(endpoint, colluders=colluders, degree=degree)

    run_ranks(8, function, observe=lambda *message: sent.append(message[2]))
    assert sent == []


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_seal_finds_a_rank_whose_masks_left_out_a_message(size: int, dtype: str) -> None:
    def function(endpoint: Endpoint) -> None:
        masks, agreement = Masks.agree(endpoint, colluders=0), Agreement(endpoint)
        if endpoint.rank == 1:
            masks.apply(np.zeros(1, dtype))
        call = agreement.agree(Terms(length=50, dtype=dtype))
        message = np.zeros(50 + seal_size(np.dtype(dtype)), dtype)
        call.seal(message[50:])
        masks.apply(message)
        sum_over(endpoint, message, "ring")
        with pytest.raises(MismatchError, match="one plan and set of masks"):
            call.check(message[50:])

    run_ranks(size, function)


def test_masks_are_not_printed_copied_or_pickled() -> None:
    masks = masks_of(2, 0)[0]
    assert repr(masks) == "<Masks, t = 0, 1 neighbours, 0 messages>"
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(NoiseError, match="masks that stay in their process"):
            attempt(masks)


def test_keys_and_signs_are_what_apply_uses() -> None:
    """For code that masks while it encodes: one such rank beside ranks that `apply`."""
    ranks = masks_of(5, 2)
    sent = [np.full(300, 7, np.int32) for _ in ranks]
    for masks, message in zip(ranks[:-1], sent[:-1], strict=True):
        masks.apply(message)
    for key, sign in zip(ranks[-1].keys, ranks[-1].signs, strict=True):
        sent[-1] += sign * fresh_words(key, 300).view(np.int32)
    assert (wrapped_sum([*sent]) == 35).all()
