"""One process of `dither train`: all of it, or one rank among others."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

from dither.cli.progress import TrainingBar, building
from dither.config import TrainConfig
from dither.errors import DitherError, DitherWarning, MismatchError, ReduceError, StoppedError
from dither.report import write_report
from dither.train.distributed.launch import LOST, REFUSED, STOPPED, tell_launcher
from dither.train.distributed.member import require_started
from dither.train.distributed.place import Place
from dither.train.distributed.world import World, join
from dither.train.loop import share_cores, train_in

_UNNAMED = 1


def train(config: TrainConfig, place: Place) -> int:
    """Train; on rank 0 show progress, write the report, and print what was reached and spent.

    A rank that fails among others ends its process here and at once: the others notice by its
    connections, and its launcher by the status.

    Raises:
        DitherError: Of a process that trains alone.
    """
    if place.world_size == 1:
        try:
            _train(config, place)
        except StoppedError as error:
            fix = _how_to_go_on(config, place)
            raise StoppedError(expected=error.expected, got=error.got, fix=fix) from error
        return 0
    try:
        _train(config, place)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the others must not wait
        status = _told(error, config, place)
        if place.launcher == "mpi":  # which ends all ranks by itself, with a word of its own
            return status
        _end(status)
    return 0


def _train(config: TrainConfig, place: Place) -> None:
    console = Console(stderr=True, highlight=False)
    with ExitStack() as held:
        world = held.enter_context(_met(config, place))
        stop = held.enter_context(stop_on_request())
        if place.rank > 0:
            warnings.simplefilter("ignore", DitherWarning)  # rank 0 says the same
            train_in(world, config, stop=stop)
            return
        told = held.enter_context(building(console))
        bar = held.enter_context(TrainingBar(console))
        folder = train_in(world, config, bar, told, stop)
    finished(folder)


def finished(folder: Path) -> None:
    """Write a finished run's report, and print what was reached and spent."""
    page = write_report(folder)
    summary = json.loads((folder / "summary.json").read_bytes())
    _print(Console(highlight=False), summary, page)


def _met(config: TrainConfig, place: Place) -> World:
    """Meet the other ranks. A request to stop ends this process at once: nothing was begun."""
    require_started(config, place)
    numbers = (signal.SIGINT, signal.SIGTERM) if place.world_size > 1 else ()
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # Python's own wait for the meeting's end
    try:
        world = join(place, transport=config.transport, timeout=config.timeout)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    share_cores(config, world)
    return world


@contextmanager
def stop_on_request() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM end the run after a step, and a second one at once."""
    asked: list[int] = []

    def handle(number: int, _: object) -> None:
        asked.append(number)
        for each in before:
            signal.signal(each, signal.default_int_handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _told(error: BaseException, config: TrainConfig, place: Place) -> int:
    """Say what ended this rank, or let its launcher say it; return the exit status."""
    console = Console(stderr=True, highlight=False)
    if isinstance(error, StoppedError | KeyboardInterrupt):
        if place.rank == 0 and isinstance(error, StoppedError):
            fix = _how_to_go_on(config, place)
            console.print(f"stopped: {escape(error.got)}. To go on: {escape(fix)}", soft_wrap=True)
        return STOPPED
    named = isinstance(error, DitherError)
    text = str(error) if named else "".join(traceback.format_exception(error))
    if not tell_launcher(place.rank, text):
        console.print(f"[bold red]error:[/] rank {place.rank}: {escape(text)}", soft_wrap=True)
    lost = isinstance(error, ReduceError) and not isinstance(error, MismatchError)
    return _UNNAMED if not named else LOST if lost else REFUSED


def _how_to_go_on(config: TrainConfig, place: Place) -> str:
    """Return the command that goes on with this run."""
    words = f"dither train --resume {shlex.quote(str(config.resume or config.out))}"
    if place.launcher == "dither":
        return f"{words} --nproc {place.world_size}"
    return words if place.launcher == "none" else f"the same launcher with {words}"


def _end(status: int) -> NoReturn:
    """End this process now: threads and groups that wait for others would hold it up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _print(console: Console, summary: dict[str, Any], page: Path) -> None:
    privacy, steps = summary["privacy"], summary["steps"]
    ranks = f" on {summary['ranks']} processes" if summary["ranks"] > 1 else ""
    if summary["private"]:
        console.print(
            f"({privacy['epsilon']:.4f}, {privacy['delta']:g})-differentially private for one "
            f"{privacy['unit']} ({privacy['relation']}), trust {privacy['trust']}"
        )
    else:
        console.print(f"NOT PRIVATE: {privacy['guarantee'].removeprefix('none: ')}")
    console.print(
        f"held-out AUROC {summary['metrics']['auroc']:.4f} after {steps['taken']} of "
        f"{steps['planned']} steps, {summary['seconds']:.1f} s{ranks}, "
        f"peak memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB"
    )
    loss, guess = (summary["metrics"][name] for name in ("loss", "loss_of_constant_guess"))
    if loss > guess:
        console.print(
            f"held-out loss {loss:.3f} is above that of a constant guess ({guess:.3f}): the "
            "ranking may be good, the probabilities are not. Clipping can do that: a larger "
            "--l2-clip with a smaller --learning-rate may help",
            soft_wrap=True,
        )
    if steps["lost"]:
        console.print(f"{steps['lost']} steps were charged and lost in an earlier stop")
    console.print(f"report: {page}", soft_wrap=True)
