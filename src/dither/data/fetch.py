"""Get person records from the Census Bureau's site: resumable, checked, nothing half-written."""

from __future__ import annotations

import hashlib
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import requests
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dither.errors import ConfigError, FetchError
from dither.files import locked, output_errors

BASE_URL = "https://www2.census.gov/programs-surveys/acs/data/pums"
CHECKSUMS = "SHA256SUMS"
_BLOCK_BYTES = 1 << 18

POSTAL_CODES = (
    *("al", "ak", "az", "ar", "ca", "co", "ct", "de", "dc", "fl", "ga", "hi", "id", "il", "in"),
    *("ia", "ks", "ky", "la", "me", "md", "ma", "mi", "mn", "ms", "mo", "mt", "ne", "nv", "nh"),
    *("nj", "nm", "ny", "nc", "nd", "oh", "ok", "or", "pa", "ri", "sc", "sd", "tn", "tx", "ut"),
    *("vt", "va", "wa", "wv", "wi", "wy"),
)
"""The 50 states and the District of Columbia."""

Told = Callable[[int, int | None], None]


@dataclass(frozen=True)
class _Download:
    url: str
    target: Path
    timeout: float
    retries: int
    pause: float

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")


def fetch_states(
    states: Iterable[str],
    year: int,
    out: str | Path,
    *,
    base_url: str = BASE_URL,
    checksums: str | Path | None = None,
    timeout: float = 30.0,
    retries: int = 4,
    pause: float = 1.0,
    console: Console | None = None,
) -> tuple[Path, ...]:
    """Download ``csv_p<state>.zip``, the person records of each state, into ``out``.

    A file that is already there and has the recorded digest is not fetched again. A download
    that was cut resumes where it stopped. The digest of each new file goes to ``SHA256SUMS``
    (first use is trusted, later changes are errors) unless ``checksums`` gives known ones.

    Args:
        states: Postal codes ("wy"), or "all".
        year: Survey year of the 1-year files.
        out: Folder for the zips.
        base_url: Where the Census files are, or a mirror of them.
        checksums: A file of known digests in the format of ``sha256sum``.
        timeout: Seconds without a byte before an attempt counts as failed.
        retries: Further attempts after the first.
        pause: Seconds before the first retry; doubles with each.
        console: Where to draw a progress bar; ``None`` draws none.

    Returns:
        The zips, in the order of ``states``.

    Raises:
        ConfigError: An unknown state, or an unreadable checksum file.
        FetchError: The site cannot be reached, has no such file, or a file is not what its
            checksum says.
        OutputError: ``out`` cannot be written or the disk is full.
    """
    wanted = _postal_codes(states)
    folder = Path(out)
    given = _read_checksums(Path(checksums)) if checksums is not None else {}
    paths = []
    with output_errors(folder), locked(folder / ".lock"), requests.Session() as session:
        for state in wanted:
            name = f"csv_p{state}.zip"
            url = f"{base_url.rstrip('/')}/{year}/1-Year/{name}"
            job = _Download(url, folder / name, timeout, retries, pause)
            _fetch(session, job, given, console)
            paths.append(job.target)
    return tuple(paths)


def _postal_codes(states: Iterable[str]) -> list[str]:
    wanted = [s.lower() for s in ([states] if isinstance(states, str) else states)]
    if wanted == ["all"]:
        return list(POSTAL_CODES)
    unknown = [state for state in wanted if state not in POSTAL_CODES]
    if unknown or not wanted:
        raise ConfigError(
            expected="postal codes of states, such as wy, or all",
            got=", ".join(unknown) or "none",
            fix="name the 50 states and dc by their two letters",
        )
    return wanted


def _fetch(
    session: requests.Session, job: _Download, given: dict[str, str], console: Console | None
) -> None:
    """Make sure that a whole and checked file lies at the job's target."""
    name, sums = job.target.name, job.target.parent / CHECKSUMS
    recorded = _read_checksums(sums) if sums.is_file() else {}
    expected = given.get(name, recorded.get(name))
    fresh = not job.target.exists()
    path = job.part if fresh else job.target
    if fresh:
        _download(session, job, console)
    digest = _digest(path)
    if expected is not None and digest != expected:
        if fresh:
            path.unlink()
        raise FetchError(
            expected=f"{name} with SHA-256 {expected[:16]}...",
            got=f"{digest[:16]}...",
            fix=f"delete {job.target} and fetch again; if it stays so, the published file changed:"
            f" check it, then remove its line from {CHECKSUMS} or --checksums",
        )
    if expected is None or fresh:
        _check_zip(path, name)
    path.replace(job.target)
    if recorded.get(name) != digest:
        _write_checksums(sums, recorded | {name: digest})


def _download(session: requests.Session, job: _Download, console: Console | None) -> None:
    with _bar(console) as bar:
        task = bar.add_task(job.target.name, total=None) if bar is not None else None

        def tell(done: int, total: int | None) -> None:
            if bar is not None and task is not None:
                bar.update(task, completed=done, total=total)

        for attempt in range(job.retries + 1):
            try:
                _attempt(session, job, tell)
            except _PASSING as error:
                if attempt == job.retries:
                    raise _unreachable(job, error) from error
                time.sleep(job.pause * 2**attempt)
            except requests.RequestException as error:
                raise _unreachable(job, error) from error
            else:
                return


class _Retry(Exception):  # noqa: N818 (never leaves this file)
    """The server or the connection failed in a way that may pass."""


_PASSING = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    _Retry,
)


def _attempt(session: requests.Session, job: _Download, tell: Told) -> None:
    """Append what is missing to the part file."""
    have = job.part.stat().st_size if job.part.exists() else 0
    # Identity: byte ranges and Content-Length then speak of the file's own bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(job.url, headers=headers, stream=True, timeout=job.timeout) as response:
        status = response.status_code
        if status == requests.codes.requested_range_not_satisfiable:
            # Either the part is already whole, or it is of another file: start again.
            job.part.unlink()
            raise _Retry("range refused")
        if status >= requests.codes.internal_server_error or status in {408, 429}:
            raise _Retry(f"HTTP {status}")
        if status not in {requests.codes.ok, requests.codes.partial_content}:
            raise _refused(job, status)
        resumed = status == requests.codes.partial_content
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            job.part.unlink()
            raise _Retry("another range than asked for")
        done = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        with job.part.open("ab" if resumed else "wb") as stream:
            for block in response.iter_content(_BLOCK_BYTES):
                stream.write(block)
                done += len(block)
                tell(done, total)
        if total is not None and done != total:
            raise _Retry(f"{done} of {total} bytes")


def _bar(console: Console | None) -> Progress | nullcontext[None]:
    if console is None:
        return nullcontext()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console)


def _refused(job: _Download, status: int) -> FetchError:
    return FetchError(
        expected=f"a file at {job.url}",
        got=f"HTTP {status}",
        fix="check year and state (there is no 1-year file for 2020), or --base-url",
    )


def _unreachable(job: _Download, error: Exception) -> FetchError:
    return FetchError(
        expected=f"all of {job.url}",
        got=f"a failing connection after {job.retries + 1} attempts ({type(error).__name__})",
        fix="check the network and run the same command again; it resumes where it stopped",
    )


def _check_zip(path: Path, name: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        broken = type(error).__name__
    if broken is not None:
        path.unlink()
        raise FetchError(
            expected=f"a whole zip file as {name}",
            got=f"a truncated or corrupt one ({broken}), now deleted",
            fix="fetch it again",
        )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_checksums(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
        found = {name.strip().lstrip("*"): digest.lower() for digest, name in pairs}
        if any(
            len(bytes.fromhex(digest)) != hashlib.sha256().digest_size for digest in found.values()
        ):
            raise ValueError("not SHA-256")  # noqa: TRY301
    except (OSError, ValueError) as error:
        raise ConfigError(
            expected=f"lines of a SHA-256 and a file name in {path}",
            got="an unreadable file" if isinstance(error, OSError) else "other lines",
            fix="write it with sha256sum",
        ) from error
    return found


def _write_checksums(path: Path, digests: dict[str, str]) -> None:
    draft = path.with_name(path.name + ".part")
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    draft.write_text("".join(lines), encoding="utf-8")
    draft.replace(path)
