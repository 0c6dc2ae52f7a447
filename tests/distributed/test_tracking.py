"""Trackers: real TensorBoard files and MLflow runs; released values only, unless named private."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.train.options import options

from dither.data.build import build_store
from dither.data.store import RecordStore
from dither.data.synth import write_synthetic
from dither.errors import ConfigError, DitherWarning, StoppedError
from dither.train import targets, tracking
from dither.train.loop import run_training
from dither.train.run import Run, open_run
from dither.train.tracking import Tracker, absolute, check_targets, open_trackers
from dither.train.watching import Watchers

pytest.importorskip("tensorboard", reason="the [track] extra is not installed")
pytest.importorskip("mlflow", reason="the [track] extra is not installed")

LINE = {"step": 5, "epsilon": 0.5, "auroc": 0.75, "loss": 0.25, "loss_of_constant_guess": 0.5,
        "seconds": 1.5}  # fmt: skip
EXACT = {"step": 4, "loss": 0.625, "batch_size": 63, "saturated": 0, "non_finite": 0,
         "clipped_fraction": 0.5, "norm_histogram": [1, 2, 3]}  # fmt: skip
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    folder = tmp_path_factory.mktemp("tracking")
    return build_store(
        write_synthetic(folder / "persons.parquet", 4000, seed=1), "employment", folder / "store"
    )


@pytest.fixture(scope="module")
def run(store: RecordStore, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, to tell trackers about."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    ledger = folder.parent / "ledger.sqlite"
    return open_run(run_training(options(store, folder, steps=4, ledger=ledger)))


@pytest.fixture
def mlruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's store of files: real, and without a server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file:{tmp_path / 'mlruns'}"


def board(place: Path) -> tuple[Points, dict[str, str]]:
    """Scalars and texts of the one run below a TensorBoard folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = place.iterdir()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[-1].tensor_proto.string_val[0]
        for tag in events.Tags()["tensors"]
    }
    return scalars, {tag: text.decode() for tag, text in texts.items()}


def mlflow_runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("dither")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def mlflow_points(uri: str) -> Points:
    from mlflow import MlflowClient

    client, (found,) = MlflowClient(tracking_uri=uri), mlflow_runs(uri)
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }


def tell(tracked: Watchers, run: Run) -> None:
    """All that a loop tells."""
    tracked.started(run, 0, 5)
    tracked.stepped(1)
    tracked.trained([EXACT])
    tracked.evaluated(dict(LINE))
    tracked.measured(5, {"seconds/clip": 0.125, "bytes_per_step": 1024.0, "pool/ready": 7.0})


RELEASED = {
    "held_out/auroc": [(5, 0.75)],
    "held_out/loss": [(5, 0.25)],
    "held_out/loss_of_constant_guess": [(5, 0.5)],
    "privacy/epsilon": [(5, 0.5)],
    "seconds/total": [(5, 1.5)],
    "seconds/clip": [(5, 0.125)],
    "bytes_per_step": [(5, 1024.0)],
    "pool/ready": [(5, 7.0)],
}
PRIVATE = {
    "private/loss": [(4, 0.625)],
    "private/batch_size": [(4, 63.0)],
    "private/saturated": [(4, 0.0)],
    "private/non_finite": [(4, 0.0)],
    "private/clipped_fraction": [(4, 0.5)],
}


def test_released_figures_go_everywhere_and_exact_ones_only_where_named(
    run: Run, tmp_path: Path, mlruns: str
) -> None:
    public, private = tmp_path / "public", tmp_path / "private"
    named = [f"tensorboard:{public}", f"mlflow:{mlruns}"]
    with open_trackers(run, named, [f"tensorboard:{private}"], 0) as tracked:
        tell(tracked, run)
    assert board(public)[0] == RELEASED
    assert mlflow_points(mlruns) == RELEASED
    assert board(private)[0] == RELEASED | PRIVATE


def test_an_exact_value_is_nowhere_in_what_a_released_tracker_wrote(
    run: Run, tmp_path: Path, mlruns: str
) -> None:
    """Whatever the names are: batch sizes and losses that stand out do not appear."""
    exact = {**EXACT, "loss": 1234.5, "batch_size": 98765, "clipped_fraction": 4321.25}
    named = [f"tensorboard:{tmp_path / 'public'}", f"mlflow:{mlruns}"]
    private = f"tensorboard:{tmp_path / 'private'}"
    with open_trackers(run, named, [private], 0) as tracked:
        tell(tracked, run)
        tracked.trained([exact])
    seen = [board(tmp_path / "public")[0], mlflow_points(mlruns), board(tmp_path / "private")[0]]
    values = [{value for points in each.values() for _, value in points} for each in seen]
    assert not (values[0] | values[1]) & {1234.5, 98765.0, 4321.25}
    assert values[2] >= {1234.5, 98765.0, 4321.25}  # the search can find them


def test_facts_are_public_ones_without_places(run: Run, tmp_path: Path, mlruns: str) -> None:
    place = tmp_path / "board"
    with open_trackers(run, [f"tensorboard:{place}", f"mlflow:{mlruns}"], [], 0):
        pass
    (found,) = mlflow_runs(mlruns)
    assert found.data.params["batch_size"] == "64"
    assert float(found.data.params["plan/noise_multiplier"]) == 1.0
    assert float(found.data.params["plan/delta"]) == 1e-5
    text = board(place)[1]["run"]
    assert "| batch_size | 64 |" in text
    for words in (text, json.dumps(dict(found.data.params))):
        assert str(run.folder.parent) not in words
        assert str(run.store) not in words


def test_a_run_that_ends_well_badly_or_early_is_marked_so(
    run: Run, tmp_path: Path, mlruns: str
) -> None:
    stopped = StoppedError(expected="a", got="b", fix="c")
    for error, status in ((None, "FINISHED"), (stopped, "KILLED"), (ValueError("x"), "FAILED")):
        with (
            nullcontext() if error is None else pytest.raises(type(error)),
            open_trackers(run, [f"mlflow:{mlruns}"], [], 0),
        ):
            if error is not None:
                raise error
        (found,) = mlflow_runs(mlruns)  # the same run each time: it is gone on with
        assert found.info.status == status


def test_a_resumed_run_goes_on_where_it_was_and_lost_steps_are_taken_back(
    run: Run, tmp_path: Path, mlruns: str
) -> None:
    place = tmp_path / "board"
    named = [f"tensorboard:{place}", f"mlflow:{mlruns}"]
    with open_trackers(run, named, [], 0) as tracked:
        for step in (5, 10, 15):
            tracked.evaluated({**LINE, "step": step})
    time.sleep(1.1)  # TensorBoard tells files of one folder apart by their second
    with open_trackers(run, named, [], 10) as tracked:
        tracked.evaluated({**LINE, "step": 15, "auroc": 0.875})
    assert board(place)[0]["held_out/auroc"] == [(5, 0.75), (10, 0.75), (15, 0.875)]
    assert mlflow_points(mlruns)["held_out/auroc"][-1] == (15, 0.875)


def test_a_whole_run_tells_what_its_folder_says(
    store: RecordStore, tmp_path: Path, mlruns: str
) -> None:
    place, private = tmp_path / "board", tmp_path / "own"
    folder = run_training(
        options(
            store,
            tmp_path / "run",
            ledger=tmp_path / "ledger.sqlite",
            track=(f"tensorboard:{place}", f"mlflow:{mlruns}"),
            track_private=(f"tensorboard:{private}",),
        )
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    exact = [
        json.loads(line) for line in (folder / "private/training.jsonl").read_text().splitlines()
    ]
    released, own = board(place)[0], board(private)[0]
    for tag, name in (("held_out/auroc", "auroc"), ("privacy/epsilon", "epsilon")):
        for points in (released[tag], own[tag], mlflow_points(mlruns)[tag]):
            assert [step for step, _ in points] == [line["step"] for line in lines]
            assert [value for _, value in points] == pytest.approx([li[name] for li in lines])
    assert own["private/batch_size"] == [(line["step"], line["batch_size"]) for line in exact]
    assert not [tag for tag in released if tag.startswith("private/")]
    parts = {tag for tag in released if tag.startswith("seconds/")}
    assert parts >= {"seconds/clip", "seconds/release", "seconds/sample", "seconds/optimizer"}
    assert all(value >= 0.0 for tag in parts for _, value in released[tag])
    assert set(released) == set(mlflow_points(mlruns))
    assert str(tmp_path) not in board(place)[1]["run"]


@pytest.mark.parametrize("track", ["tensorboard", "tensorboard:", "board:runs", "", ":x", "mlflow"])
def test_what_names_no_tracker_is_refused(track: str) -> None:
    with pytest.raises(ConfigError, match="--track of the form"):
        check_targets([track])
    with pytest.raises(ConfigError, match="--track-private of the form"):
        check_targets([], [track])


def test_one_place_cannot_be_both_private_and_not(tmp_path: Path) -> None:
    place = f"tensorboard:{tmp_path / 'board'}"
    assert [target.private for target in check_targets([place], [place + "2"])] == [False, True]
    for other in (place, f"tensorboard:{tmp_path}/./board"):
        with pytest.raises(ConfigError, match="twice"):
            check_targets([place], [other])


def test_a_missing_package_a_file_and_a_dead_server_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="it is a file"):
        check_targets([f"tensorboard:{tmp_path / 'file'}"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"mlflow:http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match="ConnectionRefusedError"):
            check_targets([address])
    monkeypatch.setattr("dither.train.tracker_sinks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"dither\[track\]"):
        check_targets(["mlflow:x"])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("ftp://host", "another kind"),
        ("foo", "another kind"),
        ("http:foo", "no host"),
        ("http://host:x", "ValueError"),
        ("file:/tmp/x", "MLFLOW_ALLOW_FILE_STORE=true"),
    ],
)
def test_an_address_that_mlflow_cannot_have_is_named_shortly(
    place: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(ConfigError, match=words) as raised:
        check_targets([f"mlflow:{place}"])
    assert len(str(raised.value)) < 300


def test_a_data_base_needs_the_whole_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ["mlflow"]
    monkeypatch.setattr(
        "dither.train.tracker_sinks.find_spec", lambda name: known if name in known else None
    )
    with pytest.raises(ConfigError, match="pip install mlflow"):
        check_targets(["mlflow:sqlite:///x.db"])
    known.append("sqlalchemy")
    check_targets(["mlflow:sqlite:///x.db"])


def test_a_folder_stays_the_same_from_wherever_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = absolute(["tensorboard:runs/board", "mlflow:http://host:5000"])
    assert found == (f"tensorboard:{tmp_path}/runs/board", "mlflow:http://host:5000")
    assert absolute(found) == found


def test_a_tracker_that_fails_on_the_way_is_given_up_and_the_run_goes_on(
    run: Run, tmp_path: Path, mlruns: str
) -> None:
    (target,) = check_targets([f"mlflow:{mlruns}"])
    tracker = Tracker(target, run, 0)
    tracker.evaluated(LINE)
    deadline = time.monotonic() + 30
    while not mlflow_runs(mlruns)[0].data.metrics and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.rmtree(tmp_path / "mlruns")
    tracker.evaluated(LINE)  # finds it gone
    with pytest.warns(DitherWarning, match="failed and gets no more figures"):
        tracker.close()
    tracker.close()
    tracker.evaluated(LINE)  # warns once only


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def test_a_server_that_never_answers_does_not_hold_up_the_start(
    run: Run, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "OPENING", 0.5)
    (target,) = check_targets([f"mlflow:{silent_server}"])
    start = time.monotonic()
    with pytest.raises(ConfigError, match="no answer within"):
        Tracker(target, run, 0)
    assert time.monotonic() - start < 10.0


class Sleepy:
    """A sink that waits to be let go."""

    let_go = threading.Event()

    def __init__(self, place: str, run: str, name: str, first_step: int) -> None:
        pass

    @classmethod
    def check(cls, place: str) -> None:
        pass

    def facts(self, facts: Mapping[str, str]) -> None:
        self.let_go.wait(60)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self, outcome: str) -> None:
        pass


def test_a_slow_tracker_stops_no_step_and_says_what_it_lost(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tracking, targets):
        monkeypatch.setattr(module, "SINKS", {"sleepy": Sleepy})
    monkeypatch.setattr(tracking, "WAITING", 3)
    monkeypatch.setattr(Sleepy, "let_go", threading.Event())
    tracker = Tracker(check_targets(["sleepy:x"])[0], run, 0)
    start = time.monotonic()
    for _ in range(10):
        tracker.evaluated(LINE)
    assert time.monotonic() - start < 5.0
    Sleepy.let_go.set()
    with pytest.warns(DitherWarning, match=r"too slow: \d+ figures"):
        tracker.close()
