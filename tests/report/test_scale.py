"""The figures of scale: written whole, in the format asked for, with what was measured in them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D

from dither.errors import ConfigError, OutputError
from dither.reduce.networks import NETWORKS
from dither.reduce.simulate import Simulation, simulate
from dither.report import scale
from dither.report.scale import check_format, write_error_figure, write_scale_figure


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(16, networks=NETWORKS, coordinates=256, message=1 << 16)


@pytest.mark.parametrize("write", [write_scale_figure, write_error_figure])
@pytest.mark.parametrize(
    ("ending", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]
)
def test_each_format(
    write: object, ending: str, start: bytes, simulation: Simulation, tmp_path: Path
) -> None:
    path = tmp_path / f"figure.{ending}"
    write(simulation, path)  # type: ignore[operator]
    assert path.read_bytes().startswith(start)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_every_point_is_drawn(
    simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(scale, "write_figure", lambda paint, path, size: drawn.append(paint))
    write_scale_figure(simulation, tmp_path / "figure.svg")
    from matplotlib.figure import Figure

    figure = Figure()
    drawn[0](figure)
    errors, *times = figure.axes
    assert [axes.get_title(loc="left") for axes in times] == [f"Time, {n.name}" for n in NETWORKS]
    markers = [line for line in errors.lines if line.get_marker() == "o"]
    assert _heights(markers) == pytest.approx(sorted(point.rms for point in simulation.errors))
    seconds = _heights([line for axes in times for line in axes.lines])
    assert seconds == pytest.approx(sorted(point.seconds for point in simulation.times))


def _heights(lines: list[Line2D]) -> list[float]:
    return sorted(np.concatenate([np.asarray(line.get_ydata(), float) for line in lines]).tolist())


def test_a_figure_is_the_same_bytes_again(simulation: Simulation, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        write_scale_figure(simulation, tmp_path / name)
    texts = [(tmp_path / name).read_text() for name in ("a.svg", "b.svg")]
    assert texts[0] == texts[1]
    assert not re.search(r"<dc:date>", texts[0])


@pytest.mark.parametrize("name", ["figure", "figure.jpg2", "figure.json"])
def test_other_endings_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="svg"):
        check_format(Path(name))


def test_a_folder_that_is_not_there_is_said(simulation: Simulation, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_scale_figure(simulation, tmp_path / "no" / "figure.svg")
