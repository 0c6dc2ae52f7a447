"""`dither bench data`: census records from CSV to a store, by every engine, against row by row.

All engines build the same store from the same file, in turns; where one differs the bench fails.
The baseline is the engine ``rows``, plain Python; that it is an honest one is measured too, against
a loop written by hand for this very file (`dither.bench.data_bare`). The start of Spark's session
is counted apart. What fastDP published for its own pipeline on its own machine is a row of its own.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dither.bench.data_bare import bare_build
from dither.bench.data_scale import Point, export_csv, measure_scale, scale_rows
from dither.bench.harness import Row, not_measured, summarise
from dither.data.build import build_with_counts
from dither.data.engines import Engine, Spark, find_engine
from dither.data.engines.java import check_spark
from dither.data.reader import source_files
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, DitherError

TASK = "unemployment"
NAMES = ("duckdb", "spark", "rows", "streaming", "scale")
PERSONS = 400_000
"""Generated ones, where no records are given."""

_TARGETS = {"duckdb": 1 / 8, "spark": 1 / 2, "streaming": None}
_HONEST = 1.5
_ROUNDS = (2, 5)  # quick, full
_MASTER = "local[2]"
_PUBLISHED = (3.6, 78.5)
_CITATION = (
    "published, not run here: fastDP (Harvard CS205, 2020), 1.2 million records, Spark on 2 cores "
    "against sequential Python, both on its own machine: 22 x"
)


@dataclass
class DataBench:
    """One measurement: `rows` makes it, the rest tells what came of it.

    Attributes:
        data: Census records; generated ones where there are none.
        full: More rounds, and the scale too.
        persons: How many to generate.
        sizes: Persons of the scale's three files.
        engines: Facts of each engine's builds, when all rows came.
        scale: Time and memory by number of persons, when all rows came.
    """

    data: Path | None = None
    full: bool = False
    persons: int = PERSONS
    sizes: tuple[int, ...] = (5_000_000, 10_000_000, 20_000_000)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    scale: list[Point] = field(default_factory=list)
    _times: dict[str, list[float]] = field(default_factory=dict)

    def rows(self, cases: Collection[str] = ()) -> Iterator[Row]:
        """Yield the rows of these cases; when empty of all, of the scale only with ``full``.

        Raises:
            ConfigError: No such records.
            DataError: They are no census records.
        """
        chosen = [name for name in NAMES if name in cases or (not cases and name != "scale")]
        if self.full and not cases:
            chosen.append("scale")
        with tempfile.TemporaryDirectory(prefix="dither-bench-data-") as name:
            folder = Path(name)
            if set(chosen) - {"scale"}:
                yield from self._engines(folder, chosen)
            if "scale" in chosen:
                self.scale = measure_scale(folder, self.sizes)
                yield from scale_rows(self.scale)

    def to_json(self) -> dict[str, Any]:
        """Return each engine's stages and rates, and the scale, beside the rows."""
        return {"engines": self.engines, "scale": [vars(point) for point in self.scale]}

    def _engines(self, folder: Path, chosen: Collection[str]) -> Iterator[Row]:
        source = self._source(folder)
        missing = _missing(chosen)
        measured = [name for name in _TARGETS if name in chosen and name not in missing]
        contenders: list[str | Engine] = ["rows", *measured]
        if "spark" in measured:
            contenders[contenders.index("spark")] = Spark(master=_MASTER)
        content = set[str]()
        for turn in range(_ROUNDS[self.full]):
            for engine in contenders if turn % 2 == 0 else contenders[::-1]:
                content.add(self._build(source, folder / "store", find_engine(engine)))
            if "rows" in chosen:
                content.add(self._bare(source, folder / "bare"))
        if len(content) != 1:
            raise AssertionError(f"engines wrote {len(content)} different stores")
        yield from (self._row(name) for name in measured)
        for name, reason in missing.items():
            yield not_measured(name, "rows", reason)
        if "rows" in chosen:
            yield self._honest()
        yield _published()

    def _source(self, folder: Path) -> Path:
        """One CSV file in the layout of the Census."""
        path = folder / "persons.csv"
        if self.data is None:
            return write_synthetic(path, self.persons, seed=0)
        files = source_files(self.data)
        if len(files) != 1 or files[0].suffix not in {".csv", ".parquet"}:
            raise ConfigError(
                expected="one CSV or Parquet file of census records",
                got=", ".join(file.name for file in files),
                fix="name one with --data, or leave it out to generate records",
            )
        return files[0] if files[0].suffix == ".csv" else export_csv(files[0], path)

    def _build(self, source: Path, out: Path, engine: Engine) -> str:
        """Build the store once, and keep what it took, the engine's start apart."""
        start = time.perf_counter()
        built = build_with_counts(source, TASK, out, engine=engine)
        seconds = time.perf_counter() - start - built.seconds["session"]
        self._times.setdefault(engine.name, []).append(seconds)
        facts = self.engines.setdefault(engine.name, {"stages": []})
        facts |= {"rows_read": built.counts.read, "records": len(built.store)}
        facts["stages"].append(built.seconds)
        facts["rows_per_second"] = built.counts.read / statistics.median(self._times[engine.name])
        found = built.store.id
        _remove(out)
        return found

    def _bare(self, source: Path, out: Path) -> str:
        out.mkdir()
        start = time.perf_counter()
        found = bare_build(source, out)
        self._times.setdefault("bare", []).append(time.perf_counter() - start)
        _remove(out)
        return found

    def _row(self, name: str) -> Row:
        facts = self.engines[name]
        rate = f"{facts['rows_per_second']:,.0f} rows/s of {facts['rows_read']:,}"
        session = [stages["session"] for stages in facts["stages"]]
        apart = f"; {_MASTER}, session start {session[0]:.1f} s apart" if name == "spark" else ""
        return summarise(
            name,
            "s",
            ours=self._times[name],
            baseline=self._times["rows"],
            baseline_name="rows",
            detail=f"CSV to store, {facts['records']:,} records, {rate}{apart}",
            target=_TARGETS[name],
        )

    def _honest(self) -> Row:
        return summarise(
            "rows",
            "s",
            ours=self._times["rows"],
            baseline=self._times["bare"],
            baseline_name="bare csv.reader",
            detail="the baseline itself, against a loop written by hand for this file",
            target=_HONEST,
        )


def _missing(chosen: Collection[str]) -> dict[str, str]:
    """Engines that cannot run here, and why."""
    if "spark" not in chosen:
        return {}
    try:
        check_spark()
    except DitherError as error:
        return {"spark": str(error)}
    return {}


def _published() -> Row:
    ours, baseline = _PUBLISHED
    ratio = ours / baseline
    return Row(
        case="fastDP spark, published",
        metric="time",
        unit="s",
        ours=ours,
        baseline=baseline,
        baseline_name="its sequential",
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio,
        pairs=0,
        detail=_CITATION,
    )


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
