"""`dither bench allreduce` on the command line: its options, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dither.cli.main import main


@pytest.fixture
def no_mpiexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("noise --tune", "the bench allreduce only"),
        ("train --simulate 8", "the bench allreduce only"),
        ("clip --hosts 4", "the bench allreduce only"),
        ("noise --figure a.svg", "the bench allreduce or scaling or data or quant only"),
        ("allreduce --tune --simulate 8", "--tune and --simulate"),
        ("allreduce --tune --cases masked", "--tune and --cases"),
        ("allreduce --figure a.svg", "--figure together with --simulate"),
        ("allreduce --simulate 1", "from 2 to 8192"),
        ("allreduce --simulate 0", "from 2 to 8192"),
        ("allreduce --simulate 9000", "from 2 to 8192"),
        ("allreduce --simulate 4 --figure a.jpeg", "ends in .svg"),
        ("allreduce --hosts 1", "2 to 16 --hosts"),
        ("allreduce --hosts 4 --mbit -5", "1 to 100000 --mbit"),
        ("allreduce --hosts 4 --mbit nan", "1 to 100000 --mbit"),
        ("allreduce --cases private/shm", "cases of private-local/shm/4KiB"),
    ],
)
def test_options_that_make_no_sense_exit_with_2(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in " ".join(err.split())


@pytest.mark.usefixtures("no_mpiexec")
def test_a_simulation_is_printed_drawn_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, figure = tmp_path / "scale.json", tmp_path / "scale.svg"
    words = ["bench", "allreduce", "--simulate", "4"]
    assert main([*words, "--json", str(target), "--figure", str(figure)]) == 0
    said = capsys.readouterr().out
    for title in ("Error of the sum", "Reckoned time, laptop", "Frontier-like", "assumed"):
        assert title in said
    assert figure.read_text().startswith("<?xml")
    assert (tmp_path / "scale-error.svg").read_text().startswith("<?xml")
    value = json.loads(target.read_text())
    assert set(value) == {"bench", "date", "host", "rows", "simulation"}
    assert {row["metric"] for row in value["rows"]} == {"rms_error", "time"}
    points = value["simulation"]["errors"]
    assert [point["theory"] for point in points if point["trust"] == "local"] == [
        pytest.approx(2**0.5),
        2.0,
    ]


@pytest.mark.usefixtures("no_mpiexec")
def test_without_mpi_the_bench_says_what_was_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "allreduce", "--cases", "masked", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)["rows"]
    assert {row["case"].split("/")[0] for row in rows} == {"masked"}
    assert all(row["ratio"] is None for row in rows)
    assert "mpiexec" in err


@pytest.mark.usefixtures("no_mpiexec")
def test_tuning_without_mpi_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "allreduce", "--tune"]) == 2
    assert "dither[mpi]" in " ".join(capsys.readouterr().err.split())


def test_a_figure_that_cannot_be_written_is_said(
    tmp_path: Path, no_mpiexec: None, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "no" / "where.svg"
    assert main(["bench", "allreduce", "--simulate", "2", "--figure", str(figure)]) == 2
    assert "a place to write" in " ".join(capsys.readouterr().err.split())


def test_json_without_a_file_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--simulate", "2", "--json"], ["--json", "--simulate", "2"]):
        assert main(["bench", "allreduce", *words]) == 0
        assert json.loads(capsys.readouterr().out)["bench"] == "allreduce"
