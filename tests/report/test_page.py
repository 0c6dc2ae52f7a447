"""The two pages: what they hold, what they must never hold, and how they are written."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dither.errors import ConfigError, OutputError
from dither.report import write_report

MakeRun = Callable[..., Path]
VOID = {"meta", "link", "br", "hr", "img", "input"}
LOADING = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.styles: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        (self.styles if self.open[-1:] == ["style"] else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def pages_of(make_run: MakeRun) -> list[Path]:
    ours, plain = make_run(operator=True), make_run("plain", private=False)
    running = make_run("running", finished=False)
    public = [write_report(ours, plain), write_report(plain), write_report(running)]
    return [*public, ours / "private" / "report.html"]


def test_pages_load_nothing_and_are_well_formed(make_run: MakeRun) -> None:
    for path in pages_of(make_run):
        page = Page(path)
        assert not page.open
        assert not page.all("script")
        assert not page.all("iframe")
        for _, attributes in page.tags:
            for name in LOADING & attributes.keys():
                assert attributes[name].startswith(("#", "data:,")), attributes
            assert not any(name.startswith("on") for name in attributes)
        styles = " ".join([*page.styles, *(a.get("style", "") for _, a in page.tags)])
        assert "@import" not in styles
        assert set(re.findall(r"url\((.)", styles)) <= {"#"}
        assert not re.search(r"https?:", page.source)
        assert "default-src 'none'" in page.source


def test_every_figure_is_described_and_every_reference_resolves(make_run: MakeRun) -> None:
    for path in pages_of(make_run):
        page = Page(path)
        for svg in page.all("svg"):
            assert svg["role"] == "img"
            assert len(svg["aria-label"]) > 20
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        wanted = re.findall(r"(?:href=\"|url\()#([\w-]+)", page.source)
        assert set(wanted) <= set(ids)
        assert page.all("html")[0]["lang"] == "en"
        assert len(page.all("h1")) == 1


def test_a_private_run_shows_all_its_figures(make_run: MakeRun) -> None:
    page = Page(write_report(make_run(), make_run("plain", private=False)))
    assert len(page.all("svg")) == 6
    assert "NOT PRIVATE" not in page.text
    for words in ("0.9821", "1e-7", "2.15 GiB", "1,328,061", "dither ledger acs --json"):
        assert words in page.text
    assert "class_weights" in page.text
    assert "numeric_slack" in page.text
    assert "/home/somebody" not in page.source


def test_comparison_shows_values_and_differences(make_run: MakeRun) -> None:
    ours = make_run(summary={"metrics": {"auroc": 0.7012}, "seconds": 30.0})
    plain = make_run(
        "plain",
        private=False,
        about={"config": {"learning_rate": 0.125}},
        summary={"metrics": {"auroc": 0.7137}, "seconds": 12.0},
    )
    text = Page(write_report(ours, plain)).text
    assert "AUROC 0.7012 0.7137 −0.0125" in text
    assert "Time 30.0 s 12.0 s × 2.50" in text
    assert "ε 0.9821 ∞" in text
    assert "learning_rate 0.003 0.125" in text
    assert "Compared with another run" not in Page(write_report(ours)).text


@pytest.mark.parametrize(
    ("about", "summary", "words"),
    [
        ({"seeded": True}, {}, "seeded"),
        ({"private": False, "plan": None}, {"privacy": {"epsilon": None}}, "without noise"),
        ({"forced": True, "store": {"sensitive": True}}, {}, "by force"),
        ({}, {"privacy": {"epsilon": None}}, "unprotected release"),
        ({}, {"privacy": {"guarantee": "none: a test"}}, "none: a test"),
        ({}, {"private": False}, "not private"),
    ],
    ids=["seeded", "plain", "forced-sensitive", "infinite", "no-guarantee", "contradiction"],
)
def test_unprotected_runs_say_so_first(
    make_run: MakeRun, about: dict[str, Any], summary: dict[str, Any], words: str
) -> None:
    page = Page(write_report(make_run(about=about, summary=summary)))
    before = page.text[: page.text.index("What is promised")]
    assert "NOT PRIVATE" in before
    assert words in before
    assert "ε = ∞" in page.text
    assert "is (ε, δ)-differentially private" not in page.text
    assert "0.9821" not in page.text, "an ε that protects nobody is shown"
    alarm = next(a for _, a in page.tags if "alarm" in a.get("class", ""))
    assert alarm["role"] == "alert"


def test_forced_run_on_public_records_keeps_its_guarantee(make_run: MakeRun) -> None:
    assert "NOT PRIVATE" not in Page(write_report(make_run(about={"forced": True}))).text


def test_unfinished_and_lost_steps_are_told(make_run: MakeRun) -> None:
    running = Page(write_report(make_run("running", finished=False)))
    assert "has not finished" in running.text
    assert "up to the last checkpoint" in running.text
    assert len(running.all("svg")) == 3
    steps = {"planned": 400, "taken": 336, "charged": 400, "lost": 64}
    lost = Page(write_report(make_run("lost", summary={"steps": steps}))).text
    assert "64 of 400 charged steps were lost" in lost
    assert "336 of 400" in lost
    assert "before a crash" in lost
    fresh = make_run("fresh", finished=False)
    (fresh / "metrics.jsonl").unlink()
    page = Page(write_report(fresh))
    assert not page.all("svg")
    assert "has not written what it spent" in page.text


def test_no_private_value_reaches_the_public_page(make_run: MakeRun) -> None:
    run = make_run(operator=True)
    numbers = count(7_700_001)
    secrets: list[float] = []

    def secret() -> float:
        secrets.append(next(numbers) / 1000)
        return secrets[-1]

    fields = ("loss", "batch_size", "saturated", "non_finite", "clipped_fraction")
    lines = [
        {"step": step}
        | {field: secret() for field in fields}
        | {"norm_histogram": [secret() for _ in range(9)]}
        for step in range(1, 30)
    ]
    (run / "private" / "training.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    public = write_report(run).read_text()
    operator = (run / "private" / "report.html").read_text()
    digits = [f"{value:.3f}" for value in secrets]
    assert not [value for value in digits if value in public]
    assert not re.search(r"7[,\s]?7\d\d\.\d\d", public)
    # The operator's page shows the first loss: the search above can find what is there.
    assert f"{secrets[0]:.4g}" in operator


def test_public_page_does_not_depend_on_the_private_folder(make_run: MakeRun) -> None:
    run = make_run(operator=True)
    before = write_report(run).read_bytes()
    operator = (run / "private" / "report.html").read_bytes()
    lines = (run / "private" / "training.jsonl").read_text().replace('"loss": 0.', '"loss": 3.')
    (run / "private" / "training.jsonl").write_text(lines)
    assert write_report(run).read_bytes() == before
    assert (run / "private" / "report.html").read_bytes() != operator
    shutil.rmtree(run / "private")
    assert write_report(run).read_bytes() == before
    assert not (run / "private").exists()
    assert "private/" not in before.decode()


def test_operator_page_is_marked_and_closed(make_run: MakeRun) -> None:
    run = make_run(operator=True)
    public = write_report(run)
    path = run / "private" / "report.html"
    page = Page(path)
    assert "OPERATOR ONLY — not covered by the guarantee; do not publish" in page.text
    assert page.text.index("OPERATOR ONLY — not") < page.text.index("Totals")
    assert len(page.all("svg")) == 4
    assert "Zero at every step" in page.text
    assert "28.5 % at or above the bound" in page.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not page.all("a")
    assert not Page(public).all("a")


def test_operator_page_of_a_run_without_clipping(make_run: MakeRun) -> None:
    run = make_run(private=False, operator=True)
    line = {"step": 1, "loss": 0.5, "batch_size": 32, "norm_histogram": None}
    (run / "private" / "training.jsonl").write_text(json.dumps(line) + "\n")
    write_report(run)
    assert "The run recorded none." in Page(run / "private" / "report.html").text


def test_same_files_give_the_same_bytes_in_another_process(make_run: MakeRun) -> None:
    run = make_run()
    here = write_report(run).read_bytes()
    code = "import sys; from pathlib import Path; from dither.report import write_report\n"
    code += "write_report(Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(run)], check=True, env=environment
    )
    assert (run / "report.html").read_bytes() == here


def test_text_of_a_run_is_never_markup(make_run: MakeRun) -> None:
    evil = "<script>alert(1)</script>"
    run = make_run(
        about={
            "config": {"task": evil, "optimizer": evil},
            "store": {"public_inputs": {evil: evil}, "task": evil},
            "environment": {"cpu": f'"><img src="https://example.org">{evil}'},
        },
        summary={"privacy": {"accountant": evil}},
    )
    page = Page(write_report(run))
    assert not page.all("script")
    assert not page.all("img")
    assert evil in page.text


def test_lines_show_every_checkpoint(make_run: MakeRun) -> None:
    svg = re.findall(r"<svg.*?</svg>", write_report(make_run()).read_text(), re.DOTALL)
    lines = [re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series-0\)', one) for one in svg]
    points = [max(len(re.findall(r"[ML] ", path)) for path in paths) for paths in lines[:3]]
    assert points == [20, 20, 41]  # ε is a stair: two points a checkpoint


def test_failed_write_leaves_nothing_behind(make_run: MakeRun) -> None:
    run = make_run()
    (run / "report.html").mkdir()
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(OutputError, match=r"report\.html"):
        write_report(run)
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize("what", ["task", "store", "itself"])
def test_runs_that_cannot_be_compared(make_run: MakeRun, what: str) -> None:
    run = make_run()
    about = {"task": {"config": {"task": "employment"}}, "store": {"store": {"id": "another"}}}
    other = run if what == "itself" else make_run("other", about=about[what])
    with pytest.raises(ConfigError, match=r"same task|same record store|another run"):
        write_report(run, other)
    assert not (run / "report.html").exists()


def test_colours_are_readable() -> None:
    import dither.report.page as module

    css = (Path(module.__file__).parent / "templates" / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    for block in (light, light + dark):
        colour = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for name in ("ink", "muted", "accent"):
            assert contrast(colour[name], colour["panel"]) >= 4.5, name
        assert contrast(colour["alarm-ink"], colour["alarm"]) >= 4.5
        assert contrast(colour["ink"], colour["notice"]) >= 4.5
        for name in ("series-0", "series-1"):
            assert contrast(colour[name], colour["panel"]) >= 3.0, name


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.2, section 1.4.3."""
    a, b = sorted((luminance(one), luminance(other)))
    return (b + 0.05) / (a + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_figures_of_several_ranks_are_rank_zeros(make_run: MakeRun) -> None:
    about = {"plan": {"trust": "local"}}
    path = make_run("two runs", operator=True, about=about, summary={"ranks": 2})
    page = write_report(path).read_text()
    operator = (path / "private" / "report.html").read_text()
    assert "Dashed: expected, 2048." in operator
    assert "rank 0&#39;s own records" in operator.replace("'", "&#39;")
    assert "dither ledger &#39;two runs&#39; --json" in page
    assert "ledger.rank-1.sqlite" in page
    alone = make_run("one", operator=True)
    assert "ledger.rank-1" not in write_report(alone).read_text()
    operator = (alone / "private" / "report.html").read_text()
    assert "Dashed: expected, 4096." in operator
    assert "rank 0" not in operator
