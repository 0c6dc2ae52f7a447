"""`dither bench allreduce --simulate`: error measured, time reckoned, up to 8192 ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dither.bench.allreduce_tune import measured_fit
from dither.bench.harness import Row, not_measured
from dither.errors import DitherError
from dither.reduce.cost import Network
from dither.reduce.networks import NETWORKS, measured_networks
from dither.reduce.simulate import Simulation, simulate
from dither.train.run import environment

MESSAGE = 1 << 22  # coordinates: 16 MiB of float32


def networks() -> tuple[tuple[Network, ...], str]:
    """Return the networks, this machine's own shared memory measured, or the reason why not."""
    try:
        found = measured_fit()
    except DitherError as error:
        return NETWORKS, error.got
    cores = len(os.sched_getaffinity(0))
    machine = str(environment().get("cpu", "this machine"))
    return measured_networks(found, cores=cores, machine=machine), ""


def scale(world_size: int, *, message: int = MESSAGE) -> tuple[Simulation, list[Row]]:
    """Return the simulation and its rows: errors against theory, and what could not be measured.

    Args:
        world_size: Largest number of ranks.
        message: Coordinates of a message, for the times.

    Raises:
        ConfigError: A number out of range.
    """
    found, reason = networks()
    simulation = simulate(world_size, networks=found, message=message)
    rows = list(_rows(simulation))
    if reason:
        rows.append(not_measured("network/laptop", "shared memory", f"{reason}; assumed instead"))
    return simulation, rows


def _rows(simulation: Simulation) -> Iterator[Row]:
    for point in simulation.errors:
        yield Row(
            case=f"error/{point.trust}/{point.world_size}",
            metric="rms_error",
            unit="zC",
            ours=point.rms,
            baseline=point.theory,
            baseline_name="theory",
            ratio=point.rms / point.theory,
            ratio_low=point.low / point.theory,
            ratio_high=point.high / point.theory,
            pairs=point.coordinates,
            detail=f"{point.coordinates} coordinates of each rank's own noise, "
            f"{point.wire_bits} bits; 99.9 % interval",
        )
