"""Networks to reckon with: one measured, two assumed."""

from __future__ import annotations

from dataclasses import replace

from dither.reduce.cost import Link, Network
from dither.reduce.fit import Fit

LAPTOP = Network(
    name="laptop",
    inside=Link(latency=1e-6, seconds_per_byte=2.5e-10),
    across=Link(latency=1e-6, seconds_per_byte=2.5e-10),
    seconds_per_reduced_byte=1e-10,
    ranks_per_host=0,
    cores=8,
    source="assumed until measured: `dither bench allreduce --simulate` fits this machine's own "
    "shared memory and takes its own cores",
)

CLUSTER_25G = Network(
    name="25 Gbit cluster",
    inside=LAPTOP.inside,
    across=Link(latency=1e-5, seconds_per_byte=8 / 25e9),
    seconds_per_reduced_byte=LAPTOP.seconds_per_reduced_byte,
    ranks_per_host=32,
    cores=32,
    source="assumed: hosts of 32 cores, one 25GBASE link each at line rate, 10 µs a message as "
    "commonly seen over TCP",
)

FRONTIER_LIKE = Network(
    name="Frontier-like",
    inside=LAPTOP.inside,
    across=Link(latency=2e-6, seconds_per_byte=1 / 100e9),
    seconds_per_reduced_byte=LAPTOP.seconds_per_reduced_byte,
    ranks_per_host=64,
    cores=64,
    source="assumed: hosts of 64 cores with four Slingshot links of 25 GB/s, the bandwidth that "
    "Oak Ridge's user guide publishes for Frontier, and 2 µs a message",
)

NETWORKS = (LAPTOP, CLUSTER_25G, FRONTIER_LIKE)


def measured_networks(found: Fit, *, cores: int, machine: str) -> tuple[Network, ...]:
    """Return the networks with what was measured here in place of what can be.

    The laptop becomes this machine. The other two take its shared memory inside a host, and its
    cores' speed; their links stay assumed.

    Args:
        found: From sums over this machine's shared memory.
        cores: Of this machine.
        machine: What the processor is called.
    """
    gamma = found.seconds_per_reduced_byte
    laptop = replace(
        LAPTOP,
        inside=found.link,
        across=found.link,
        seconds_per_reduced_byte=gamma,
        cores=cores,
        source=f"measured here: {machine}, {cores} cores, shared memory; the model is off by "
        f"{100 * found.error:.0f} % (root mean square) at the points it was fitted to",
    )
    others = (
        replace(
            network,
            inside=found.link,
            seconds_per_reduced_byte=gamma,
            source=f"{network.source}; inside a host as measured here",
        )
        for network in (CLUSTER_25G, FRONTIER_LIKE)
    )
    return (laptop, *others)
