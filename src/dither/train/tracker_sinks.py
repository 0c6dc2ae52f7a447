"""The trackers themselves: TensorBoard's event files and MLflow's runs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias, final
from urllib.parse import urlsplit

from dither.errors import ConfigError

Facts: TypeAlias = Mapping[str, str]
Outcome: TypeAlias = Literal["finished", "stopped", "failed"]

_EXPERIMENT = "dither"
_CONNECT = 5.0  # seconds
_FILES = "MLFLOW_ALLOW_FILE_STORE"
_DATA_BASES = frozenset({"sqlite", "postgresql", "mysql", "mssql"})
_SHOWN = 160  # characters of somebody else's error
_LONGEST = 500  # characters of a parameter: the least that MLflow's servers take


class Sink(Protocol):
    """What takes figures. Made, then used, by one thread at a time.

    Args:
        place: Where it is.
        run: Identity of the run: what was told of it earlier is gone on with.
        name: For people.
        first_step: What was told of later steps is void.
    """

    def __init__(self, place: str, run: str, name: str, first_step: int) -> None: ...

    @classmethod
    def check(cls, place: str) -> None:
        """Refuse what cannot work, with nothing made.

        Raises:
            ConfigError: The package is not installed, or nobody answers there.
        """

    def facts(self, facts: Facts) -> None:
        """Take options and promise."""

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Take figures of one step."""

    def close(self, outcome: Outcome) -> None:
        """Take how it ended; nothing comes after it."""


@final
class TensorBoard:
    """Event files in a folder, one below it for each run. See `Sink`."""

    def __init__(self, place: str, run: str, name: str, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra, and slow

        folder = Path(place) / f"{name}-{run[:8]}"
        try:
            # Steps after a checkpoint that a crash lost are taken back on resume.
            purge = first_step + 1 if folder.is_dir() else None
            self._writer: Any = SummaryWriter(str(folder), purge_step=purge)
        except OSError as error:
            raise _unreachable(f"tensorboard:{place}", error) from error

    @classmethod
    def check(cls, place: str) -> None:
        """Refuse a missing package or a place that is a file."""
        _require_package("tensorboard")
        if Path(place).exists() and not Path(place).is_dir():
            raise _unreachable(f"tensorboard:{place}", NotADirectoryError("it is a file"))

    def facts(self, facts: Facts) -> None:
        """Show them as a table, on the tab of texts."""
        rows = "".join(f"| {name} | {_cell(value)} |\n" for name, value in facts.items())
        self._writer.add_text("run", f"| option | value |\n|---|---|\n{rows}", 0)
        self._writer.flush()

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Write and flush them."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, outcome: Outcome) -> None:
        """Write how it ended."""
        self._writer.add_text("outcome", outcome, 0)
        self._writer.close()


@final
class MLflow:
    """A run of the experiment ``dither`` on a tracking server or in a data base. See `Sink`."""

    def __init__(self, place: str, run: str, name: str, first_step: int) -> None:  # noqa: ARG002
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra, and slow
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            self._client = MlflowClient(tracking_uri=place)
            self._id = self._find(run) or self._create(run, name)
        except (MlflowException, OSError, ImportError) as error:
            raise _unreachable(f"mlflow:{place}", error) from error

    @classmethod
    def check(cls, place: str) -> None:
        """Refuse a missing package, an address of no kind, or a server that does not answer."""
        _require_package("mlflow")
        scheme = place.partition(":")[0].partition("+")[0] if ":" in place else place
        if scheme in {"http", "https"}:
            _require_server(place)
        elif scheme in _DATA_BASES and find_spec("sqlalchemy") is None:
            raise _no_address(
                place,
                "a data base, which the package mlflow-skinny cannot reach",
                "pip install mlflow, or start mlflow server on it and name its http address",
            )
        elif scheme == "file" and os.environ.get(_FILES, "").lower() not in {"true", "1"}:
            raise _no_address(
                place,
                "a folder, which MLflow has given up",
                f"start mlflow server and name its http address, or set {_FILES}=true",
            )
        elif scheme not in {*_DATA_BASES, "file", "databricks"}:
            raise _no_address(
                place, "an address of another kind", "start mlflow server and name it"
            )

    def _find(self, run: str) -> str | None:
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        if experiment is None:
            self._experiment = self._client.create_experiment(_EXPERIMENT)
            return None
        self._experiment = experiment.experiment_id
        found = self._client.search_runs([self._experiment], f"tags.`dither.run` = '{run}'")
        if not found:
            return None
        earlier = str(found[0].info.run_id)
        self._client.update_run(earlier, status="RUNNING")
        return earlier

    def _create(self, run: str, name: str) -> str:
        made = self._client.create_run(self._experiment, tags={"dither.run": run}, run_name=name)
        return str(made.info.run_id)

    def facts(self, facts: Facts) -> None:
        """Log them as parameters; a resumed run has the same."""
        from mlflow.entities import Param  # noqa: PLC0415

        params = [Param(name, value[:_LONGEST]) for name, value in facts.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[start : start + 100])

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Log them as metrics."""
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, outcome: Outcome) -> None:
        """Set the run's status."""
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
        self._client.set_terminated(self._id, status)


SINKS: Mapping[str, type[TensorBoard] | type[MLflow]] = MappingProxyType(
    {"tensorboard": TensorBoard, "mlflow": MLflow}
)


def _require_package(name: str) -> None:
    if find_spec(name) is None:
        raise ConfigError(
            expected=f"the package of --track {name}:...",
            got=f"no {name} in this environment",
            fix="pip install 'dither[track]' adds TensorBoard and MLflow",
        )


def _require_server(place: str) -> None:
    try:
        parts = urlsplit(place)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except ValueError as error:
        raise _unreachable(f"mlflow:{place}", error) from error
    if not parts.hostname:
        raise _no_address(place, "no host in it", "write for instance mlflow:http://localhost:5000")
    try:
        socket.create_connection((parts.hostname, port), _CONNECT).close()
    except OSError as error:
        raise _unreachable(f"mlflow:{place}", error) from error


def _no_address(place: str, got: str, fix: str) -> ConfigError:
    return ConfigError(
        expected=f"the address of an MLflow server, data base or folder in mlflow:{place}",
        got=got,
        fix=fix,
    )


def _unreachable(target: str, error: Exception) -> ConfigError:
    lines = (str(error).strip() or "no more").splitlines()
    text = lines[0] if len(lines[0]) <= _SHOWN else f"{lines[0][:_SHOWN]}..."
    return ConfigError(
        expected=f"a tracker at {target}",
        got=f"{type(error).__name__}: {text}",
        fix="check the place, start its server, or leave it out",
    )


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
