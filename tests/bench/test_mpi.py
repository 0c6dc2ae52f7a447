"""`dither bench mpi`: the promised cases, run by real ranks where MPI is there."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dither.bench import mpi, mpi_programs
from dither.bench.harness import result
from dither.bench.mpi_cases import CASES, CONTROL, ENCRYPTED, NAMES, READY, SUSTAINED, chosen
from dither.bench.mpi_programs import Programs, Spoken
from dither.errors import ConfigError, ReduceError
from dither.mpirun.build import find_mpi, native

pytestmark = pytest.mark.xdist_group("mpirun")


def why_not() -> str | None:
    try:
        find_mpi()
        native()
    except (ConfigError, ReduceError) as error:
        return error.got
    return None


NO_MPI = why_not()
needs_mpi = pytest.mark.skipif(NO_MPI is not None, reason=f"no MPI: {NO_MPI}")


@pytest.fixture(scope="module")
def built() -> Iterator[Programs]:
    with mpi_programs.programs() as found:
        yield found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Few rounds, small pools, and the library that tests of `dither mpirun` build too."""
    monkeypatch.setattr(mpi, "_ROUNDS", {"workload": (2, 2), "sweep": (2, 2)})
    monkeypatch.setattr(mpi_programs, "_READY_POOL", {"workload": 1 << 20, "sweep": 1 << 20})
    monkeypatch.setattr(mpi_programs, "_SHORT_POOL", 1 << 18)
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if base.name.startswith("popen-") else base) / "mpirun-programs" / "home"
    monkeypatch.setenv("DITHER_HOME", str(shared))


@pytest.fixture
def no_mpiexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))


# ---- cases ---------------------------------------------------------------------------------------


def test_every_promise_of_the_issue_is_a_case() -> None:
    large = {f"sweep/{mib}MiB": 1.1 for mib in (1, 2, 4, 8, 16, 32, 64)}
    middle = {f"sweep/{kib}KiB": 1.4 for kib in (4, 8, 16, 32, 64, 128, 256, 512)}
    short = {f"sweep/{size}": 2.0 for size in ("4B", "8B", "16B", "32B", "64B", "128B", "256B")}
    short |= {f"sweep/{size}": 2.0 for size in ("512B", "1KiB", "2KiB")}
    workloads = {"resnet152/compute": 1.03, "resnet152/comm": 1.10}
    found = {case.name: case.target for case in CASES if case.target is not None}
    assert found == {**workloads, **large, **middle, **short}
    assert len(set(NAMES)) == len(NAMES)


def test_every_case_has_its_sustained_and_encrypted_rows_beside() -> None:
    for full in (False, True):
        names = {case.name for case in chosen((), full=full)}
        works = {case.work for case in CASES if case.name in names}
        assert {f"{work}/{manner}" for work in works for manner in (SUSTAINED, ENCRYPTED)} <= names


def test_short_runs_hold_the_promises_and_no_scaled_model() -> None:
    quick = chosen((), full=False)
    assert all(case.scale == 1 and case.manner != CONTROL for case in quick)
    assert {case.name for case in quick} >= {
        *("resnet152/compute", "resnet152/comm", "dlrm/comm", "cosmoflow/comm"),
        *("sweep/4B", "sweep/4KiB", "sweep/1MiB", "sweep/64MiB"),
    }
    assert chosen((), full=True) == CASES


def test_a_long_case_runs_when_named() -> None:
    assert [case.argument for case in chosen(("gpt3/comm",), full=False)] == ["gpt3/comm@16"]


def test_a_step_fits_the_pool_that_is_made_ready(lists: dict[str, Any]) -> None:
    for case in CASES:
        if case.program == "workload":
            messages = lists[case.argument.split("/")[0]]
            numbers = sum(math.floor(size / case.scale) * times for size, _, times in messages)
            assert numbers <= mpi_programs._READY_POOL["workload"], case.argument


@pytest.mark.usefixtures("no_mpiexec")
def test_without_mpi_every_case_is_a_row_with_the_reason() -> None:
    rows = list(mpi.rows())
    assert {(row.case, row.target) for row in rows} == {
        (case.name, case.target) for case in chosen((), full=False)
    }
    assert all(row.ratio is None and row.detail for row in rows)
    json.dumps(result("mpi", rows), allow_nan=False)


# ---- programs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lists(built: Programs) -> dict[str, Any]:
    """The message lists, as the program says them."""
    if NO_MPI is not None:
        pytest.skip(f"no MPI: {NO_MPI}")
    said = subprocess.run(
        [str(built.build("workload")), "--lists"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = [json.loads(line) for line in said]
    return {each["name"]: each["messages"] for each in found}


def test_message_lists_follow_the_published_shapes(lists: dict[str, Any]) -> None:
    sizes = {name: [[n] * times for n, _, times in found] for name, found in lists.items()}
    flat = {name: [n for group in found for n in group] for name, found in sizes.items()}
    assert flat["resnet152"] == [
        *(6511592, 6567936, 5905920, 6113280, 6176256),
        *(6112768, 6176256, 6112768, 5321216, 5194816),
    ]
    assert [seconds for _, seconds, _ in lists["resnet152"]] == [0.0238] * 10

    def dense(*widths: int) -> int:
        return sum(a * b + b for a, b in itertools.pairwise(widths))

    assert flat["dlrm"] == [dense(138, 512, 512, 512, 256, 1) + 3, dense(128, 128, 128, 128)]
    channels = ((256, 512), (128, 256), (64, 128), (32, 64), (4, 32))
    assert flat["cosmoflow"][1:] == [27 * a * b + b for a, b in channels]
    assert flat["gpt3"] == [2048 * 12288] * 4 + [12 * 12288**2 // 4]


def test_deepseeks_messages_are_what_its_layers_have(lists: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

    def parameters(layer: Any) -> tuple[int, int]:
        """Those of routed experts, and all others."""
        routed = other = 0
        for name, parameter in layer.named_parameters():
            if ".experts." in name:
                routed += parameter.numel()
            else:
                other += parameter.numel()
        return routed, other

    lite = transformers.DeepseekV2Config(
        hidden_size=2048,
        intermediate_size=10944,
        moe_intermediate_size=1408,
        q_lora_rank=None,
        kv_lora_rank=512,
        num_attention_heads=16,
        n_routed_experts=64,
        n_shared_experts=2,
        num_hidden_layers=27,
        first_k_dense_replace=1,
        vocab_size=102400,
    )
    large = transformers.DeepseekV3Config()  # its defaults are V3's own shape
    with torch.device("meta"):
        first, later = (parameters(v2.DeepseekV2DecoderLayer(lite, place)) for place in (0, 1))
        routed, other = parameters(v3.DeepseekV3DecoderLayer(large, 4))
    embedding = lite.vocab_size * lite.hidden_size
    assert [(size, times) for size, _, times in lists["deepseek-v2-lite"]] == [
        (embedding, 1),
        (later[1], lite.num_hidden_layers - 1),
        (first[1], 1),
        (embedding, 1),
    ]
    layer = [other, routed * 4 // large.n_routed_experts]
    assert [size for size, _, times in lists["deepseek-v3"] if times == 1] == layer * 4


@needs_mpi
def test_programs_compile_without_a_warning(built: Programs, tmp_path: Path) -> None:
    origin = mpi_programs.sources()
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c"]
    for source in sorted(origin.glob("*.c")):
        out = tmp_path / f"{source.stem}.o"
        subprocess.run([str(built.mpi.compiler), *strict, str(source), "-o", str(out)], check=True)


@needs_mpi
@pytest.mark.full
@pytest.mark.usefixtures("small")
def test_cases_are_measured_by_two_real_ranks_and_their_sums_are_right() -> None:
    works = ("dlrm/comm", "sweep/4B", "sweep/16KiB")
    manners = ("", "/sustained", "/encrypted", "/control")
    wanted = tuple(work + manner for work in works for manner in manners)
    rows = list(mpi.rows(cases=wanted))
    assert sorted(row.case for row in rows) == sorted(wanted)
    for row in rows:
        assert row.ratio is not None, (row.case, row.detail)
        assert (row.ours or 0) > 0 < (row.baseline or 0)
        assert (row.ratio_low or 0) <= row.ratio <= (row.ratio_high or 0)
        assert "2 ranks" in row.detail
        assert row.baseline_name == ("no library" if "control" in row.case else "bare")
    assert {row.detail.split("; ")[1] for row in rows if row.case.startswith("dlrm")} == {
        "float32, 777604 numbers in 2 messages"
    }


@needs_mpi
@pytest.mark.usefixtures("small")
def test_overlap_sleep_and_scale_are_measured(built: Programs) -> None:
    spoken = built.run(
        "workload", READY, ["--rounds", "2", "resnet152/compute/overlap@100"], limit=120.0
    )
    assert spoken.error is None
    (line,) = spoken.lines
    assert (line["messages"], line["scale"], line["case"]) == (10, 100, "resnet152/compute/overlap")
    assert mpi.wrong(READY, line) is None
    assert min(line["bare"] + line["ours"]) >= 10 * 0.0238 / 100
    assert spoken.protected >= 2 * 10 * 3  # of both ranks: a check and two rounds


@needs_mpi
def test_bare_calls_of_a_program_without_the_library_are_both_exact(built: Programs) -> None:
    spoken = built.run("sweep", CONTROL, ["--rounds", "2", "--sizes", "4,4096"], limit=60.0)
    assert [line["case"] for line in spoken.lines] == ["sweep/4B", "sweep/4KiB"]
    assert spoken.protected == 0
    for line in spoken.lines:
        assert line["ours_error"] < 1e-6
        assert mpi.wrong(CONTROL, line) is None
        assert mpi.wrong(READY, line) is not None or line["elements"] == 1


@needs_mpi
@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        ("workload", ["resnet152/nothing"], "expected LIST/compute or LIST/comm"),
        ("workload", ["dlrm/comm", "--sustained"], "unknown option --sustained"),
        ("workload", ["dlrm/comm", "--rounds", "one"], "expected a number of at least 2"),
        ("sweep", ["--sizes", "4,7"], "multiples of 4 bytes"),
    ],
)
def test_what_programs_do_not_understand_ends_them_with_a_text(
    built: Programs, program: Any, words: list[str], said: str
) -> None:
    spoken = built.run(program, CONTROL, words, limit=60.0)
    assert spoken.lines == []
    assert spoken.error is not None
    assert said in spoken.error


@needs_mpi
@pytest.mark.usefixtures("small")
def test_a_case_that_ends_the_program_costs_the_others_nothing(built: Programs) -> None:
    import dataclasses

    first, second, third = chosen(("dlrm/comm", "dlrm/compute", "cosmoflow/comm"), full=False)
    broken = dataclasses.replace(second, argument="dlrm/broken")
    rows = list(mpi._held(built, [first, broken, third], full=False))
    assert [(row.case, row.ratio is None) for row in rows] == [
        (first.name, False),
        (second.name, True),
        (third.name, False),
    ]
    assert "dlrm/broken" in rows[1].detail


@needs_mpi
def test_a_run_that_hangs_is_ended_once(built: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi, "_LIMIT", {False: 3.0, True: 3.0})
    monkeypatch.setattr(mpi, "_ROUNDS", {"workload": (10**6, 2), "sweep": (2, 2)})
    group = chosen(("dlrm/compute/control", "dlrm/comm/control"), full=False)
    began = time.monotonic()
    rows = list(mpi._held(built, list(group), full=False))
    assert time.monotonic() - began < 60.0
    assert [row.ratio for row in rows] == [None, None]
    assert all("no end within 3 s" in row.detail for row in rows)


# ---- judging -------------------------------------------------------------------------------------


def said(**changed: Any) -> dict[str, Any]:
    """A line of a case whose sums are right."""
    line = {
        "case": "sweep/4KiB",
        "mpi": "MPICH Version:  5.0.2",
        "ranks": 2,
        "elements": 1024,
        "messages": 1,
        "in_a_row": 9,
        "scale": 1,
        "bare_error": 1e-9,
        "ours_error": 8.0 * math.sqrt(2.0),
        "bare": [1.0, 1.0, 1.0],
        "ours": [2.0, 2.0, 2.0],
    }
    return line | changed


@pytest.mark.parametrize(
    ("manner", "changed", "wrong"),
    [
        (READY, {}, False),
        (SUSTAINED, {}, False),
        (READY, {"ours_error": 0.0}, True),
        (READY, {"ours_error": 8.0}, True),
        (READY, {"ours_error": 16.0}, True),
        (READY, {"bare_error": 0.01}, True),
        (READY, {"ours_error": float("nan")}, True),
        (READY, {"elements": 1, "ours_error": 1.0}, False),
        (READY, {"elements": 1, "ours_error": 100.0}, True),
        (ENCRYPTED, {"ours_error": 1e-7}, False),
        (ENCRYPTED, {"ours_error": 1e-2}, True),
        (CONTROL, {"ours_error": 1e-8}, False),
        (CONTROL, {"ours_error": 1e-4}, True),
    ],
)
def test_wrong_sums_are_no_rows(manner: Any, changed: dict[str, Any], wrong: bool) -> None:
    assert (mpi.wrong(manner, said(**changed)) is not None) == wrong


def test_what_the_library_did_not_take_is_no_row() -> None:
    (case,) = chosen(("sweep/4KiB",), full=False)
    taken = {"calls": {"MPI_Allreduce": {"protected": 3}}, "draws": {"dry_share": 0.25}}
    row = mpi._row(case, said(), Spoken([], taken))
    assert row.ratio == 2.0
    assert row.target == 1.4
    assert "25.0% of the noise made within calls" in row.detail
    passed = {"calls": {"MPI_Allreduce": {"cleared": 3}}, "draws": {"dry_share": None}}
    row = mpi._row(case, said(), Spoken([], passed))
    assert row.ratio is None
    assert "took no call" in row.detail
