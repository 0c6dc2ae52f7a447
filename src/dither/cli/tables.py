"""`dither data describe|statistics|report`."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from dither.cli.progress import building
from dither.config import DataDescribeConfig, DataReportConfig, DataStatisticsConfig
from dither.data.build_record import read_build_record
from dither.data.quality import read_quality, release_quality
from dither.data.statistics import release_statistics, released_path
from dither.data.store import RecordStore
from dither.data.words import describe, draft
from dither.errors import ConfigError, DataError
from dither.privacy.events import Relation, Unit
from dither.privacy.ledger import Ledger


def run(config: DataDescribeConfig | DataStatisticsConfig | DataReportConfig) -> None:
    """Do what the options say and print what was found or released."""
    if isinstance(config, DataDescribeConfig):
        _describe(config)
    elif isinstance(config, DataStatisticsConfig):
        _statistics(config)
    else:
        _report(config)


def _describe(config: DataDescribeConfig) -> None:
    if (config.task is None) == (config.data is None):
        raise ConfigError(
            expected="either --task with a task or a description, or --data with a table",
            got="neither" if config.task is None else "both",
            fix="give one of them",
        )
    if config.data is not None:
        print(draft(config.data), end="")
        return
    found = describe(str(config.task))
    if config.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['name']}: one {found['unit']} is protected, {found['rows_per_unit']} rows each")
    for name, column in found["columns"].items():
        print(f"  {name}: {column['kind']}, {column['use']}")
    for name, value in found["public"].items():
        print(f"public: {name}: {value}")
    for name, value in found["released"].items():
        print(f"released: {name}: {value['value']} (epsilon {value['epsilon']:.3g}, charged)")
    for name, cost in found["open"].items():
        print(f"open: {name}: `dither data statistics` releases it, epsilon {cost['epsilon']:g}")


def _statistics(config: DataStatisticsConfig) -> None:
    with building(Console(stderr=True, highlight=False)) as told:
        statement = release_statistics(
            config.task,
            config.data,
            ledger=config.ledger,
            relation=config.relation,
            sensitive=config.sensitive,
            told=lambda stage: told(stage, 0, None),
        )
    facts: dict[str, Any] = {
        "released": str(released_path(config.task)),
        "ledger": statement.ledger,
        "unit": statement.unit,
        "constants": [vars(constant) for constant in statement.constants],
    }
    if config.json:
        print(json.dumps(facts, indent=1))
        return
    for constant in statement.constants:
        cost = f"epsilon {constant.epsilon:.3g}" + (
            f", delta {constant.delta:.3g}" if constant.delta else ""
        )
        print(f"{constant.name}: {constant.value} ({cost})")
    print(f"written to {facts['released']}, charged to {statement.ledger} per {statement.unit}")


def _report(config: DataReportConfig) -> None:
    store = RecordStore.open(config.store, verify=False)
    if config.epsilon is not None:
        release_quality(store, _ledger(config, store), epsilon=config.epsilon)
    released = read_quality(store.path)
    if config.epsilon is not None and released is not None:
        facts = {**vars(released), "positive_share": released.positive_share}
        print(json.dumps({"released": facts}, indent=1))
        return
    record = read_build_record(store.path)
    if record is None:
        raise DataError(
            expected=f"the record of a build in {store.path}",
            got="none",
            fix="build the store again, or release counts with --epsilon",
        )
    if config.json:
        print(json.dumps({"operator": record.to_json()}, indent=1))
        return
    print("for your eyes only: exact counts")
    rows, seconds = record.to_json()["rows"], record.seconds
    for name, value in rows.items():
        print(f"  {name}: {value}")
    share = rows["positives"] / max(1, rows["kept"])
    print(f"  share of positives: {share:.4f}")
    print(f"  seconds ({record.engine}): {seconds}")


def _ledger(config: DataReportConfig, store: RecordStore) -> Ledger:
    if config.ledger is not None:
        return Ledger.open(config.ledger)
    if store.task.released:
        raise ConfigError(
            expected="the --ledger that the store's constants were charged to",
            got="none",
            fix="give the file that `dither data statistics` has charged",
        )
    return Ledger.create(
        store.ledger_path,
        store=store.id,
        unit=Unit(store.manifest.unit),
        relation=Relation(config.relation),
        sensitive=store.manifest.sensitive,
    )
