"""Several hosts on one machine: network namespaces joined by links of limited bandwidth."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from dither.errors import ConfigError

_numbers = itertools.count()
# As long as a full queue may take to drain, and as much as may leave at once.
_QUEUE = "100ms"
_SMALLEST_BURST = 1 << 17


@dataclass(frozen=True)
class Host:
    """A network namespace with one link to the others.

    Attributes:
        name: Name of the namespace.
        address: Its IPv4 address.
        interface: Name of its link, for GLOO_SOCKET_IFNAME.
    """

    name: str
    address: str
    interface: str = "wire"
    _started: list[subprocess.Popen[Any]] = field(default_factory=list, repr=False, compare=False)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on this host; it and its children are killed when the hosts go.

        Args:
            argv: Program and arguments.
            options: As for `subprocess.Popen`.
        """
        process = subprocess.Popen(  # noqa: S603 - the caller's own program
            [_tool("ip"), "netns", "exec", self.name, *argv], start_new_session=True, **options
        )
        self._started.append(process)
        return process


def why_not() -> str | None:
    """Return why namespaces cannot be made here, None where they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "network namespaces need ip and tc (iproute2)"
    try:
        with hosts(2, 1000.0):
            return None
    except ConfigError as error:
        return error.got


@contextmanager
def hosts(count: int, mbit: float) -> Iterator[list[Host]]:
    """Make hosts joined by a switch, each with a link of limited bandwidth, for a ``with`` block.

    The switch is a namespace too, so the machine's own network stays as it is. In the end their
    processes are killed and the namespaces removed, with all that is in them.

    Args:
        count: Number of hosts, up to 250.
        mbit: Bandwidth of each link, each way, in Mbit/s.

    Raises:
        ConfigError: Not permitted, no ``ip`` or ``tc``, or a number out of range.
    """
    if not 1 <= count <= 250 or not mbit > 0.0:
        raise ConfigError(
            expected="1 to 250 hosts with a positive bandwidth",
            got=f"{count} hosts, {mbit} Mbit/s",
            fix="choose numbers in range",
        )
    prefix = f"dither-{os.getpid()}-{next(_numbers)}"
    switch = f"{prefix}-switch"
    made = [Host(f"{prefix}-{i}", f"10.203.0.{i + 1}") for i in range(count)]
    names: list[str] = []
    try:
        for name in (switch, *(host.name for host in made)):
            _run("ip", "netns", "add", name)
            names.append(name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "switch", "up")
        for number, host in enumerate(made):
            _join(switch, f"port{number}", host, mbit)
        yield made
    finally:
        for host in made:
            _end(host)
        for name in names:
            _run("ip", "netns", "del", name)


def _join(switch: str, port: str, host: Host, mbit: float) -> None:
    """Lay a link from a host to the switch, slow both ways."""
    link = ("link", "add", port, "type", "veth", "peer", "name", host.interface)
    _run("ip", "-n", switch, *link, "netns", host.name)
    _run("ip", "-n", switch, "link", "set", "dev", port, "master", "switch", "up")
    _run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
    _run("ip", "-n", host.name, "link", "set", "dev", host.interface, "up")
    rate = round(mbit * 1e6)
    burst = max(_SMALLEST_BURST, rate // 8 // 100)
    limits = ("tbf", "rate", f"{rate}bit", "burst", str(burst), "latency", _QUEUE)
    for name, device in ((switch, port), (host.name, host.interface)):
        _run("tc", "-n", name, "qdisc", "add", "dev", device, "root", *limits)


def _end(host: Host) -> None:
    for process in host._started:  # noqa: SLF001 - one file
        with suppress(ProcessLookupError):  # all of its session are gone
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _run(*command: str) -> None:
    done = subprocess.run(  # noqa: S603 - fixed programs, no shell
        [_tool(command[0]), *command[1:]], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ConfigError(
            expected=f"permission to run `{' '.join(command)}`",
            got=done.stderr.strip() or f"exit code {done.returncode}",
            fix="run as root on Linux with iproute2 and network namespaces",
        )


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigError(
            expected=f"the program {name}", got="none", fix="install iproute2 (Linux only)"
        )
    return path
