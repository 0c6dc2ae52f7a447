"""Where stores and ledgers would lie: real folders, real file systems."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dither.doctor.check import Check
from dither.doctor.places import checks, file_system


def by_name(monkeypatch: pytest.MonkeyPatch, home: Path) -> dict[str, Check]:
    monkeypatch.setenv("DITHER_HOME", str(home))
    return {check.name: check for check in checks()}


def test_a_home_that_is_not_there_is_good_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = by_name(monkeypatch, tmp_path / "a" / "b")
    assert [check.state for check in found.values()] == ["good"] * 3
    assert "not there yet" in found["home"].found
    assert list(tmp_path.iterdir()) == []


def test_a_home_is_written_to_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stores" / "secret-0123abcd").mkdir(parents=True)
    found = by_name(monkeypatch, tmp_path)
    assert [check.state for check in found.values()] == ["good"] * 3
    assert "one durable write took" in found["ledgers"].found
    assert [path.name for path in tmp_path.iterdir()] == ["stores"]
    assert not any("0123abcd" in str(check) for check in found.values())


@pytest.mark.parametrize("below", [".", "more"])
def test_a_file_in_its_place_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "file").touch()
    found = by_name(monkeypatch, tmp_path / "file" / below)
    assert list(found) == ["home"]
    assert found["home"].stops
    assert "not a folder" in found["home"].found


def test_a_broken_link_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    home = by_name(monkeypatch, tmp_path / "link")["home"]
    assert home.stops
    assert "broken link" in home.found


def test_a_small_disk_is_told(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = by_name(monkeypatch, small_disk(512))
    assert found["home"].state == "good"
    assert "on tmpfs" in found["ledgers"].found
    assert (found["disk"].state, found["disk"].stops) == ("wrong", False)


def test_a_full_disk_is_wrong(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    point = small_disk(8)
    (point / "filled").write_bytes(bytes(8192))
    home = by_name(monkeypatch, point)["home"]
    assert home.stops
    assert "no space left" in home.found


def test_a_disk_that_cannot_be_written_is_wrong(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    point = small_disk(64)
    subprocess.run(["mount", "-o", "remount,ro", str(point)], check=True)
    for home in (point, point / "below"):
        check = by_name(monkeypatch, home)["home"]
        assert check.stops
        assert "cannot be written" in check.found


def test_the_file_system_is_that_behind_a_link(
    small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(small_disk(64))
    assert file_system(tmp_path / "link") == "tmpfs"
