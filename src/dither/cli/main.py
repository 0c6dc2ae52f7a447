"""`dither`: find the verb, run it, say errors in one message."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape

from dither import __version__, config
from dither.errors import DitherError, DitherWarning, StoppedError
from dither.mpirun.options import MpirunConfig, split

_sub = tyro.conf.subcommand

_Data = Annotated[
    Annotated[config.DataBuildConfig, _sub("build")]
    | Annotated[config.DataDescribeConfig, _sub("describe")]
    | Annotated[config.DataStatisticsConfig, _sub("statistics")]
    | Annotated[config.DataReportConfig, _sub("report")]
    | Annotated[config.DataFetchConfig, _sub("fetch")]
    | Annotated[config.DataSynthConfig, _sub("synth")],
    _sub("data", description="Get, generate or build records."),
]
_Audit = Annotated[
    Annotated[config.AuditRunConfig, _sub("run")]
    | Annotated[config.AuditMembershipConfig, _sub("membership")]
    | Annotated[config.AuditInversionConfig, _sub("inversion")]
    | Annotated[config.AuditAllreduceConfig, _sub("allreduce")]
    | Annotated[config.AuditLedgerConfig, _sub("ledger")]
    | Annotated[config.AuditMutantsConfig, _sub("mutants")],
    _sub("audit", description="Attack what dither promises, on your own records and cluster."),
]
_Command = (
    _Data
    | _Audit
    | Annotated[config.TrainConfig, _sub("train")]
    | Annotated[config.PlanConfig, _sub("plan")]
    | Annotated[config.LedgerConfig, _sub("ledger")]
    | Annotated[config.ReportConfig, _sub("report")]
    | Annotated[config.BenchConfig, _sub("bench")]
    | Annotated[MpirunConfig, _sub("mpirun")]
    | Annotated[config.DoctorConfig, _sub("doctor")]
)

# Loaded only when their verb is called, so that --help need not wait for PyTorch.
_MODULES = {
    config.DataBuildConfig: "data",
    config.DataFetchConfig: "data",
    config.DataDescribeConfig: "tables",
    config.DataStatisticsConfig: "tables",
    config.DataReportConfig: "tables",
    config.DataSynthConfig: "data",
    config.TrainConfig: "train",
    config.PlanConfig: "plan",
    config.LedgerConfig: "ledger",
    config.ReportConfig: "report",
    config.BenchConfig: "bench",
    config.AuditRunConfig: "audit_run",
    config.AuditMembershipConfig: "audit_membership",
    config.AuditInversionConfig: "audit_inversion",
    config.AuditAllreduceConfig: "audit_allreduce",
    config.AuditLedgerConfig: "audit_ledger",
    config.AuditMutantsConfig: "audit_mutants",
    MpirunConfig: "mpirun",
    config.DoctorConfig: "doctor",
}

_DESCRIPTION = (
    "Train on sensitive records: private by proof, distributed, and fast. "
    "Begin with `dither train --help`. What touches records is charged in their ledger first. "
    "DITHER_HOME names the folder of record stores and their ledgers (default: the user's data "
    "folder); DITHER_SIMD chooses a narrower instruction set (portable, neon, avx2, avx512). "
    "`dither --version` prints the version."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    That is 0, 2 for a named error, 130 if stopped; of ``mpirun``, what the program returned, or 3
    where not all of its ranks were protected; of ``doctor`` and ``audit ledger``, 1 for what they
    find wrong.
    """
    console = Console(stderr=True, highlight=False)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(__version__)
        return 0
    options = parse(words)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own, of no use to a user
            warnings.simplefilter("always", DitherWarning)
            warnings.showwarning = _show_warning
            if not isinstance(options, config.DoctorConfig):  # which reports a broken core
                _require_kernels()
            module = importlib.import_module(f"dither.cli.{_MODULES[type(options)]}")
            return module.run(options) or 0
    except StoppedError as error:
        text = f"stopped: {escape(error.got)}. To go on: {escape(error.fix)}"
        console.print(text, soft_wrap=True)
        return 130
    except DitherError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; what was charged stays charged")
        return 130


def _require_kernels() -> None:
    """Say that DITHER_SIMD is wrong before anything is written."""
    from dither.noise import simd  # noqa: PLC0415 - loads the core, which may be broken

    simd.kernels()


def parse(words: Sequence[str]) -> Any:
    """Return the options of a command line; the end of the program where they are wrong."""
    own, program = _with_standard_output(list(words)), list[str]()
    if own[:1] == ["mpirun"]:
        own, program = split(own[1:])
        own = ["mpirun", *own]
    options: Any = tyro.cli(_Command, prog="dither", description=_DESCRIPTION, args=own)
    if isinstance(options, config.TrainConfig):
        return replace(options, given=_named(own, options))
    return replace(options, program=tuple(program)) if program else options


def _named(words: Sequence[str], options: config.TrainConfig) -> tuple[str, ...]:
    """Return which options a command line names: also one at its default changes an old run's."""
    known = {field.name for field in fields(options)}
    names = [w[2:].partition("=")[0].replace("-", "_") for w in words if w.startswith("--")]
    return tuple(n if n in known else n.removeprefix("no_") for n in names)


def _with_standard_output(words: list[str]) -> list[str]:
    """Let ``--json`` without a file mean standard output, as ``--json -`` does."""
    if words[:1] not in (["bench"], ["audit"], ["doctor"]) or "--json" not in words:
        return words
    after = words.index("--json") + 1
    bare = after == len(words) or words[after].startswith("--")
    return [*words[:after], "-", *words[after:]] if bare else words


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True)
