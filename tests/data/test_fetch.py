"""Downloads from a real local server that cuts, lies, refuses and stalls."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dither.data.fetch import POSTAL_CODES, fetch_states
from dither.errors import ConfigError, FetchError, OutputError


def census_zip(size: int = 400_000) -> bytes:
    """A zip that does not compress, so that it spans several blocks."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("psam_p56.csv", np.random.default_rng(0).bytes(size))
    return stream.getvalue()


@dataclass
class Site:
    """What the server holds and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """Serves a site with byte ranges."""

    site: Site

    def do_GET(self) -> None:
        site, asked = self.site, self.headers.get("Range")
        site.requests.append((self.path, asked))
        data = site.files.get(self.path)
        forced = site.status.pop(0) if site.status else None
        if forced or data is None:
            self.send_error(forced or 404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and site.ranges else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = start + site.cut_after.pop(0) if site.cut_after else len(data)
        self.wfile.write(data[start:end])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site(files={"/2018/1-Year/csv_pwy.zip": census_zip()})
    handler = type("SiteHandler", (Handler,), {"site": found})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(
    site: Site,
    out: Path,
    *,
    checksums: Path | None = None,
    retries: int = 2,
    console: Console | None = None,
) -> Path:
    (path,) = fetch_states(
        ["WY"],
        2018,
        out,
        base_url=site.url,
        checksums=checksums,
        retries=retries,
        timeout=2.0,
        pause=0.01,
        console=console,
    )
    return path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_file_is_fetched_recorded_and_not_fetched_again(site: Site, tmp_path: Path) -> None:
    path = fetch(site, tmp_path / "pums")
    data = site.files["/2018/1-Year/csv_pwy.zip"]
    assert path.read_bytes() == data
    sums = (tmp_path / "pums" / "SHA256SUMS").read_text()
    assert sums == f"{digest(data)}  csv_pwy.zip\n"
    assert fetch(site, tmp_path / "pums") == path
    assert len(site.requests) == 1
    assert names(tmp_path / "pums") == {"csv_pwy.zip", "SHA256SUMS"}


def test_cut_connection_resumes_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.cut_after = [300_000, 50_000]
    path = fetch(site, tmp_path)
    assert path.read_bytes() == site.files["/2018/1-Year/csv_pwy.zip"]
    ranges = [asked for _, asked in site.requests]
    assert ranges[0] is None
    starts = [int(re.sub(r"\D", "", asked)) for asked in ranges[1:] if asked]
    assert len(starts) == 2
    assert 0 < starts[0] <= starts[1] <= 350_000


def test_next_command_resumes_what_the_last_one_left(site: Site, tmp_path: Path) -> None:
    site.cut_after = [280_000]
    with pytest.raises(FetchError, match="resumes where it stopped"):
        fetch(site, tmp_path, retries=0)
    assert names(tmp_path) == {"csv_pwy.zip.part"}
    path = fetch(site, tmp_path, retries=0)
    assert path.read_bytes() == site.files["/2018/1-Year/csv_pwy.zip"]
    assert site.requests[1][1] is not None


def test_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.cut_after = [300_000]
    assert fetch(site, tmp_path).read_bytes() == site.files["/2018/1-Year/csv_pwy.zip"]


def test_part_longer_than_the_file_starts_over(site: Site, tmp_path: Path) -> None:
    (tmp_path / "csv_pwy.zip.part").write_bytes(bytes(500_000))
    assert fetch(site, tmp_path).read_bytes() == site.files["/2018/1-Year/csv_pwy.zip"]


def test_part_of_another_file_is_found_out(site: Site, tmp_path: Path) -> None:
    (tmp_path / "csv_pwy.zip.part").write_bytes(bytes(1000))
    with pytest.raises(FetchError, match=r"corrupt one .* now deleted"):
        fetch(site, tmp_path)
    assert names(tmp_path) == set()
    assert fetch(site, tmp_path).is_file()


def test_passing_server_error_is_retried(site: Site, tmp_path: Path) -> None:
    site.status = [503, 429]
    assert fetch(site, tmp_path).is_file()
    assert len(site.requests) == 3


def test_no_such_file_is_not_retried(site: Site, tmp_path: Path) -> None:
    site.files.clear()
    with pytest.raises(FetchError, match=r"HTTP 404.*year and state"):
        fetch(site, tmp_path)
    assert len(site.requests) == 1
    assert names(tmp_path) == set()


def test_known_checksum_is_enforced_and_the_file_removed(site: Site, tmp_path: Path) -> None:
    known = tmp_path / "known.txt"
    known.write_text(f"{'0' * 64}  csv_pwy.zip\n")
    with pytest.raises(FetchError, match="SHA-256 0000"):
        fetch(site, tmp_path / "pums", checksums=known)
    assert names(tmp_path / "pums") == set()
    good = digest(site.files["/2018/1-Year/csv_pwy.zip"])
    known.write_text(f"{good} *csv_pwy.zip\n")
    assert fetch(site, tmp_path / "pums", checksums=known).is_file()


def test_file_that_changed_since_it_was_recorded(site: Site, tmp_path: Path) -> None:
    path = fetch(site, tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FetchError, match="fetch again"):
        fetch(site, tmp_path)
    path.unlink()
    site.files["/2018/1-Year/csv_pwy.zip"] = census_zip(1000)
    with pytest.raises(FetchError, match="published file changed"):
        fetch(site, tmp_path)
    assert not path.exists()


def test_page_that_is_no_zip_is_refused(site: Site, tmp_path: Path) -> None:
    site.files["/2018/1-Year/csv_pwy.zip"] = b"<html>moved</html>"
    with pytest.raises(FetchError, match="truncated or corrupt"):
        fetch(site, tmp_path)
    assert names(tmp_path) == set()


def test_unreachable_site(site: Site, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        site.url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(FetchError, match="2 attempts"):
            fetch(site, tmp_path, retries=1)


def test_silent_site_times_out(site: Site, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(FetchError, match="ReadTimeout"):
            fetch_states(["wy"], 2018, tmp_path, base_url=url, timeout=0.2, retries=0)


def test_progress_bar_names_the_file(site: Site, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    fetch(site, tmp_path, console=console)
    assert isinstance(console.file, io.StringIO)
    assert "csv_pwy.zip" in console.file.getvalue()


def test_unknown_state_and_bad_checksum_file(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zz"):
        fetch_states(["wy", "zz"], 2018, tmp_path)
    with pytest.raises(ConfigError, match="got none"):
        fetch_states([], 2018, tmp_path)
    bad = tmp_path / "bad.txt"
    bad.write_text("abc csv_pwy.zip\n")
    with pytest.raises(ConfigError, match="sha256sum"):
        fetch(site, tmp_path, checksums=bad)
    assert len(set(POSTAL_CODES)) == 51


def test_folder_that_cannot_be_written(site: Site) -> None:
    with pytest.raises(OutputError, match="place to write"):
        fetch(site, Path("/proc/pums"))
