"""Encoding on a device: the host's message bit for bit, noise that serves once, no races.

The class runs on CPU tensors here. CUDA itself is untested; its lane runs on simulated streams.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.release.conftest import RUN, bounded
from tests.release.streams import Streams
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dither.errors import ConfigError, NoiseError, ReleaseError
from dither.noise.codec import Encoded, Grid, decode, encode
from dither.noise.core import Buffer
from dither.noise.key import Key
from dither.noise.pool import FreshNoise, NoisePool
from dither.noise.reference import encode_reference
from dither.privacy.account import Account
from dither.privacy.lattice import Lattice
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.release import device as device_module
from dither.release.chunk import SHORT, ChunkEncoder, pieces
from dither.release.device import DeviceEncoder, Draws, encode_tensor
from dither.release.lanes import CudaLane, HostLane, Slot
from dither.release.release import release_sum

CPU = torch.device("cpu")
SLICE = 256
NARROW = Lattice(-14, 2.0**20, 2**23, 13, 16, 1)
WIDE = Lattice(-20, 3e5, 2**31, 3, 32, 4)
UNSHIFTED = Lattice(-3, 5.5, 1000, 0, 16, 2)
HUGE_SIGMA = Lattice(-30, 2.0**30, 2**36, 20, 32, 1)
GRIDS = [NARROW, WIDE, UNSHIFTED, HUGE_SIGMA]
SIZES = [0, 1, 127, 128, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, 5 * SLICE + 77]


def agreed(byte: int = 7) -> Key:
    return Key.agreed(bytes([byte]) * 32, secret=False)


def values_for(grid: Lattice, size: int, seed: int = 0) -> Tensor:
    """Values over the whole range, some beyond the clamp, some half-way between lattice points."""
    generator = np.random.default_rng(seed)
    values = generator.uniform(-1.2, 1.2, size) * grid.clamp * grid.step
    halves = (generator.integers(-grid.clamp, grid.clamp, size) + 0.5) * grid.step
    return torch.from_numpy(np.where(generator.random(size) < 0.3, halves, values))


def encoder(grid: Lattice, noise: Draws | None = None) -> DeviceEncoder:
    return DeviceEncoder(grid, noise or FreshNoise(agreed()), CPU, slice_size=SLICE)


def same(one: Encoded, two: Encoded) -> bool:
    return (
        one.message.dtype == two.message.dtype
        and np.array_equal(one.message, two.message)
        and one.saturated == two.saturated
    )


@final
@dataclass
class Watched:
    """Draws of a source, with the buffers that they went to, as views."""

    source: Draws
    fail_at: int = 0
    seen: list[np.ndarray] = field(default_factory=list)
    drawn: list[np.ndarray] = field(default_factory=list)

    def draw(self, out: Buffer, grid: Grid) -> None:
        assert isinstance(out, np.ndarray)
        if len(self.seen) + 1 == self.fail_at:
            raise NoiseError(expected="noise", got="none", fix="none")
        self.source.draw(out, grid)
        self.seen.append(out)
        self.drawn.append(out.copy())


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> list[Slot]:
    """The slots that encoders make from now on."""
    made: list[Slot] = []
    make = HostLane.slot

    def slot(lane: HostLane, size: int, dtype: torch.dtype) -> Slot:
        made.append(make(lane, size, dtype))
        return made[-1]

    monkeypatch.setattr(HostLane, "slot", slot)
    return made


# ---- the same message ---------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[Lattice, list[float], list[int]]:
    exponent = draw(st.integers(-60, 20))
    clamp = draw(st.integers(0, 2**50))
    bits = draw(st.sampled_from([16, 32]))
    grid = Lattice(exponent, 1.0, clamp, draw(st.integers(0, 48)), bits, draw(st.integers(1, 5)))
    halves = st.integers(-(2**52), 2**52).map(lambda n: math.ldexp(n, exponent - 1))
    near = st.integers(-3, 3).map(lambda n: math.ldexp(clamp + n / 2, exponent))
    anything = st.floats(allow_nan=False, allow_infinity=False)
    values = draw(st.lists(st.one_of(halves, near, anything), min_size=1, max_size=20))
    draws = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=len(values), max_size=len(values))
    return grid, values, draw(draws)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_arithmetic_is_the_oracles(problem: tuple[Lattice, list[float], list[int]]) -> None:
    grid, values, draws = problem
    with np.errstate(over="ignore"):
        expected = encode_reference(np.array(values), np.array(draws, np.int64), grid)
    counts = torch.zeros(2, dtype=torch.int64)
    noise = torch.tensor(draws, dtype=torch.int32)
    wire = encode_tensor(torch.tensor(values, dtype=torch.float64), noise, grid, counts)
    assert wire.tolist() == expected.message.tolist()
    assert counts.tolist() == [expected.saturated, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grid", GRIDS, ids=["narrow", "wide", "unshifted", "huge"])
def test_fresh_noise_of_one_key_makes_one_message(grid: Lattice, size: int) -> None:
    values = values_for(grid, size)
    expected = encode(values.numpy(), grid, agreed())
    before = values.clone()
    assert same(encoder(grid).encode([values]), expected)
    assert torch.equal(values, before)
    assert size < 128 or expected.saturated > 0
    other = encoder(grid, FreshNoise(agreed(8))).encode([values])
    assert size < 128 or not same(other, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_float_type_is_read_exactly(dtype: torch.dtype) -> None:
    values = values_for(NARROW, 3 * SLICE).to(dtype)
    expected = encode(values.double().numpy(), NARROW, agreed())
    assert same(encoder(NARROW).encode([values]), expected)


def test_a_pool_makes_the_message_that_its_own_encode_makes() -> None:
    """On ready noise alone: what is made in place comes at another position of the stream."""
    values = values_for(NARROW, 70_000)
    encoded = []
    for on_device in (False, True):
        with NoisePool(NARROW.sigma, agreed(), capacity=1 << 17) as pool:
            deadline = time.monotonic() + 20
            while pool.stats().ready < pool.stats().capacity and time.monotonic() < deadline:
                time.sleep(0.002)
            encoded.append(
                DeviceEncoder(NARROW, pool, CPU, slice_size=1 << 14).encode([values])
                if on_device
                else pool.encode(values.numpy(), NARROW)
            )
            assert pool.stats().dry == 0
            assert pool.stats().used == 70_000
    assert same(*encoded)


def test_cuts_between_tensors_are_those_of_the_host() -> None:
    """A chunk of long and short tensors: one message, on the host and on a device."""
    shapes = [(3,), (2, 2), (SHORT,), (5,), (SHORT // 128, 129), (1,), (0,), ()]
    chunk = {
        str(n): values_for(NARROW, math.prod(shape), n).reshape(shape)
        for n, shape in enumerate(shapes)
    }
    host = ChunkEncoder(NARROW, FreshNoise(agreed())).encode(chunk)
    there = DeviceEncoder(NARROW, FreshNoise(agreed()), CPU).encode(pieces(list(chunk.values())))
    assert same(there, host)
    assert host.message.size == sum(tensor.numel() for tensor in chunk.values())


def test_decoding_is_the_hosts(plan: Plan) -> None:
    for grid in GRIDS:
        message = encode(values_for(grid, 1000).numpy(), grid, agreed()).message
        message.flags.writeable = False  # a transport may return such
        there = encoder(grid).decode(message)
        assert there.dtype == torch.float64
        assert np.array_equal(there.numpy(), decode(message, grid))


def test_release_sum_through_the_device(
    ledger: Ledger, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The door with its chunks sent the device's way gives the tensors of the host's way."""
    parts = (
        {"a": torch.ones(3, 5).double()},
        {"b": torch.zeros(700).double(), "c": -torch.ones(1)},
    )
    account = Account(ledger, RUN, plan, insecure="a fixed key")

    def released() -> dict[str, Tensor]:
        once = bounded(plan, *parts)
        noise = FreshNoise(agreed())
        return release_sum(once, account, noise=noise, scale=0.3, dtype=torch.float32).tensors

    host = released()
    made: list[DeviceEncoder] = []

    def device(self: ChunkEncoder, chunk: object) -> DeviceEncoder:
        made.append(DeviceEncoder(self._lattice, FreshNoise(key), CPU, slice_size=SLICE))
        return made[-1]

    key = agreed()
    monkeypatch.setattr(ChunkEncoder, "_device", device)
    there = released()
    assert len(made) == 6  # asked for, encoding and decoding, for each of two chunks
    assert host.keys() == there.keys() == {"a", "b", "c"}
    for name, tensor in host.items():
        assert torch.equal(tensor, there[name])
        assert tensor.dtype == there[name].dtype == torch.float32
        assert tensor.shape == there[name].shape


# ---- the life of a draw -------------------------------------------------------------------------


def test_no_noise_is_left_and_every_draw_is_new(slots: list[Slot]) -> None:
    watched = Watched(FreshNoise(agreed()))
    encoder(NARROW, watched).encode([values_for(NARROW, 5 * SLICE + 77)])
    assert [draws.size for draws in watched.drawn] == [SLICE] * 5 + [77]
    assert all(draws.any() for draws in watched.drawn)
    assert len(slots) == 2
    assert len({array.ctypes.data for array in watched.seen}) == 2
    assert not any(array.any() for array in watched.seen)
    assert not any(slot.staging.any() or slot.noise.any() for slot in slots)
    # The key went on by exactly what was used: no slice repeats another's numbers.
    assert len({draws[:77].tobytes() for draws in watched.drawn}) == 6


@pytest.mark.parametrize("fail_at", [1, 2, 3, 5])
def test_no_noise_is_left_when_its_source_fails(slots: list[Slot], fail_at: int) -> None:
    watched = Watched(FreshNoise(agreed()), fail_at)
    with pytest.raises(NoiseError, match="expected noise"):
        encoder(NARROW, watched).encode([values_for(NARROW, 6 * SLICE)])
    assert len(watched.seen) == fail_at - 1
    assert not any(slot.staging.any() for slot in slots)
    assert fail_at == 1 or not any(slot.noise[:SLICE].any() for slot in slots[: fail_at - 1])


def test_no_noise_is_left_when_the_device_fails(
    slots: list[Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("no memory on the device")

    monkeypatch.setattr(device_module, "encode_tensor", broken)
    watched = Watched(FreshNoise(agreed()))
    with pytest.raises(torch.OutOfMemoryError):
        encoder(NARROW, watched).encode([values_for(NARROW, SLICE)])
    assert watched.drawn[0].any()
    assert not any(memory.any() for memory in (slots[0].staging, slots[0].noise))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, SLICE, 3 * SLICE])
def test_a_sum_that_is_not_finite_is_refused(
    slots: list[Slot], monkeypatch: pytest.MonkeyPatch, bad: float, place: int
) -> None:
    messages: list[Tensor] = []
    host = HostLane.host

    def keep(lane: HostLane, size: int, dtype: torch.dtype) -> Tensor:
        messages.append(host(lane, size, dtype))
        return messages[-1]

    monkeypatch.setattr(HostLane, "host", keep)
    values = values_for(NARROW, 3 * SLICE + 1)
    values[place] = bad
    with pytest.raises(ReleaseError, match="a finite clipped sum"):
        encoder(NARROW).encode([values])
    assert messages[0].numel() == values.numel()
    assert not messages[0].any()
    assert not any(slot.staging.any() or slot.noise.any() for slot in slots)


def test_which_chunks_go_to_the_device() -> None:
    """Those on one CUDA device (a fake tensor here), if the noise can be had apart."""
    with FakeTensorMode():
        there, here, beyond = (torch.empty(3, device=name) for name in ("cuda", "cpu", "meta"))
    fresh = ChunkEncoder(NARROW, FreshNoise(agreed()))
    assert fresh._device({"a": there, "b": there}) is not None
    assert fresh._device({"a": there, "b": here}) is None
    assert fresh._device({"a": here}) is None
    assert fresh._device({"a": beyond}) is None
    assert ChunkEncoder(NARROW, Reading())._device({"a": there}) is None
    with NoisePool(NARROW.sigma, agreed()) as pool:
        assert ChunkEncoder(NARROW, pool)._device({"a": there}) is not None


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_other_devices_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"got {name}.*encode on the host"):
        DeviceEncoder(NARROW, FreshNoise(agreed()), torch.device(name))


def test_a_lattice_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="a lattice with"):
        encoder(Lattice(-14, 2.0**20, 2**51, 13, 16, 1))


def test_a_pool_of_another_sigma_is_refused() -> None:
    with (
        NoisePool(NARROW.sigma / 2, agreed()) as pool,
        pytest.raises(NoiseError, match="a lattice with a sigma of"),
    ):
        encoder(NARROW, pool).encode([torch.zeros(3)])


def test_a_message_of_another_type_is_refused() -> None:
    for message in (np.zeros(3, np.int64), np.zeros(3, np.int32)):
        with pytest.raises(ConfigError, match="16-bit integers"):
            encoder(NARROW).decode(message)


# ---- no copies on the CPU -----------------------------------------------------------------------


@final
class Reading:
    """Noise that keeps the places it read from."""

    secret = True

    def __init__(self) -> None:
        self.places: list[int] = []
        self._noise = FreshNoise(agreed())

    def encode(
        self, values: np.ndarray, grid: Grid, *, out: np.ndarray | None = None, factor: float = 1.0
    ) -> Encoded:
        if values.size:  # an empty message asks whether the noise can serve
            self.places.append(values.ctypes.data)
        return self._noise.encode(values, grid, out=out, factor=factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cpu_tensors_are_read_in_place(dtype: torch.dtype) -> None:
    """A lone tensor, and long ones between short ones; released ones share one memory."""
    lone = {"a": torch.zeros(7, 3, dtype=dtype)}
    chunk = {
        "a": torch.zeros(SHORT, dtype=dtype),
        "b": torch.zeros(5, dtype=dtype),
        "c": torch.zeros(SHORT // 64, 64, dtype=dtype),
    }
    for part in (lone, chunk):
        noise = Reading()
        chunks = ChunkEncoder(NARROW, noise)
        encoded = chunks.encode(part)
        assert noise.places == [tensor.data_ptr() for tensor in part.values()]
        assert not any(tensor.any() for tensor in part.values())
        noisy = chunks.decode(encoded.message, part)
        assert all(noisy[name].shape == tensor.shape for name, tensor in part.items())
        assert len({tensor.untyped_storage().data_ptr() for tensor in noisy.values()}) == 1


def test_short_tensors_are_gathered_and_strided_ones_read_right() -> None:
    strided = torch.arange(2.0 * SHORT).reshape(2, SHORT).T
    short = [torch.arange(n, dtype=torch.float32) for n in (1, 2, 3)]
    half = torch.full((4,), 0.5, dtype=torch.float16)
    found = pieces([*short, strided, half, torch.ones(1, requires_grad=True)])
    assert [piece.numel() for piece in found] == [6, 2 * SHORT, 5]
    assert torch.equal(found[0], torch.cat(short))
    assert torch.equal(found[1], strided.reshape(-1))
    assert found[2].tolist() == [0.5] * 4 + [1.0]
    assert not found[2].requires_grad
    (lone,) = pieces([half])  # the core reads float32 and float64 alone
    assert lone.dtype == torch.float64
    assert pieces([]) == []


# ---- CUDA's lane on simulated streams -----------------------------------------------------------


@dataclass
class Simulated:
    """What one encode on simulated streams did."""

    streams: Streams
    encoded: Encoded
    slots: list[Slot]


def simulate(patch: pytest.MonkeyPatch, forget: str | None) -> Simulated:
    """Encode five slices and a bit through `CudaLane`, under the race detector."""
    streams = Streams(forget)
    streams.install(patch)
    made: list[Slot] = []
    make = CudaLane.slot

    def slot(lane: CudaLane, size: int, dtype: torch.dtype) -> Slot:
        made.append(make(lane, size, dtype))
        return made[-1]

    def array(self: Slot) -> np.ndarray:
        streams.touch("host", self.staging)
        return self.staging.numpy()

    patch.setattr(CudaLane, "slot", slot)
    patch.setattr(Slot, "array", property(array))
    patch.setattr(device_module, "lane_of", CudaLane)
    values = values_for(NARROW, 5 * SLICE + 77)
    work = encoder(NARROW)
    with streams:
        encoded = work.encode([values])
    # Whoever reads the message, or gets the memory next, must find it at rest.
    for tensor in streams.pinned.values():
        streams.touch("host", tensor)
    for tensor in streams.device.values():
        streams.touch("main", tensor)
    return Simulated(streams, encoded, made)


def test_the_cuda_lane_has_no_race(monkeypatch: pytest.MonkeyPatch) -> None:
    done = simulate(monkeypatch, None)
    assert done.streams.races == []
    assert done.streams.blocking == []  # nothing but the last wait stops the host for results
    expected = encode(values_for(NARROW, 5 * SLICE + 77).numpy(), NARROW, agreed())
    assert same(done.encoded, expected)
    pinned = done.streams.pinned
    for slot in done.slots:
        assert slot.staging.untyped_storage().data_ptr() in pinned
        assert slot.noise.untyped_storage().data_ptr() not in pinned
        assert not any(memory.any() for memory in (slot.staging, slot.noise))
    assert len(done.slots) == 2


@pytest.mark.parametrize("forget", ["side waits", "main waits", "event sync", "stream sync"])
def test_each_wait_of_the_cuda_lane_is_needed(monkeypatch: pytest.MonkeyPatch, forget: str) -> None:
    """With any one wait left out, the detector finds a race: so the test above can fail."""
    assert simulate(monkeypatch, forget).streams.races != []
