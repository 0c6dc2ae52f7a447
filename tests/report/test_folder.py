"""Reading run folders, good and broken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dither.errors import ConfigError, DataError
from dither.report.folder import read_operator_part, read_run
from dither.report.svg import thinned

MakeRun = Callable[..., Path]


def test_reads_a_finished_run(make_run: MakeRun) -> None:
    run = read_run(make_run())
    assert run.finished
    assert len(run.checkpoints) == 20
    assert run.spent == pytest.approx(0.9821)
    assert run.roc is not None
    assert run.roc.x[-1] == 1.0


def test_missing_folder_file_and_other_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing there"):
        read_run(tmp_path / "no")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="a file"):
        read_run(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"run\.json"):
        read_run(tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("run.json", "{", "JSON in run.json"),
        ("run.json", "[]", "a JSON object"),
        ("run.json", '{"format": 2}', "format 2"),
        ("run.json", '{"format": 1, "seeded": false, "forced": false}', "private"),
        ("run.json", '{"format": 1, "private": 1, "seeded": false}', "private"),
        ("summary.json", '{"format": 1, "finished": true, "seconds": NaN}', "NaN"),
        ("summary.json", '{"finished": true}', "format None"),
        ("metrics.jsonl", '{"step": 1}\n{"step": \n{"step": 3}\n', "line 2"),
        ("metrics.jsonl", '{"step": 1}\n7\n', "line 2"),
        ("metrics.jsonl", '{"auroc": 1}\n', "step"),
        ("metrics.jsonl", '{"step": 1, "auroc": true}\n', "auroc"),
        ("curves.json", '{"roc": {"fpr": [0, 1], "tpr": [0]}}', "2 and 1"),
        ("curves.json", '{"roc": {"fpr": [0, "1"], "tpr": [0, 1]}}', r"roc\.fpr"),
        ("curves.json", '{"roc": 3}', "roc"),
    ],
)
def test_broken_files_are_named(make_run: MakeRun, file: str, text: str, words: str) -> None:
    run = make_run()
    (run / file).write_text(text)
    with pytest.raises(DataError, match=words):
        read_run(run)


def test_bytes_that_are_no_text(make_run: MakeRun) -> None:
    run = make_run()
    (run / "metrics.jsonl").write_bytes(b'{"step": \xff}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_run(run)


def test_line_still_being_written_is_left_out(make_run: MakeRun) -> None:
    run = make_run(finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 500, "auroc": 0.')
    assert read_run(run).checkpoints[-1].step == 400
    with (run / "metrics.jsonl").open("a") as file:
        file.write("7}")
    assert read_run(run).checkpoints[-1].step == 500


def test_step_written_again_after_a_resume_counts_once(make_run: MakeRun) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 40, "auroc": 0.25}) + "\n")
    checkpoints = read_run(run).checkpoints
    assert len(checkpoints) == 20
    assert checkpoints[1].auroc == 0.25
    assert [point.step for point in checkpoints] == sorted(point.step for point in checkpoints)


def test_operator_part_and_its_edges(make_run: MakeRun) -> None:
    part = read_operator_part(make_run(operator=True))
    assert part is not None
    assert part.norm_edges[-1] == math.inf
    assert len(part.norm_edges) == len(part.steps[0].norm_histogram) + 1
    assert read_operator_part(make_run("bare")) is None


@pytest.mark.parametrize("text", ["{}", '["a"]', "[1"])
def test_broken_edges(make_run: MakeRun, text: str) -> None:
    run = make_run(operator=True)
    (run / "private" / "norm_edges.json").write_text(text)
    with pytest.raises(DataError, match="norm_edges"):
        read_operator_part(run)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 20))
def test_thinned_series_are_means_of_neighbours(values: list[float], most: int) -> None:
    thin = thinned(tuple(values), most)
    assert len(thin) == min(len(values), most)
    assert min(values) - 1e-9 <= min(thin) <= max(thin) <= max(values) + 1e-9
    if len(values) % most == 0:
        assert sum(thin) / len(thin) == pytest.approx(sum(values) / len(values), abs=1e-6)
