"""Write the pages of a run."""

from __future__ import annotations

import shlex
from pathlib import Path

import jinja2
from markupsafe import Markup

from dither.errors import ConfigError
from dither.files import write_atomic
from dither.report.audit_page import audit_drawings, audit_rows, audit_words
from dither.report.figures import checkpoint_rows, public_drawings
from dither.report.folder import (
    Run,
    check_comparable,
    read_data_part,
    read_operator_part,
    read_run,
)
from dither.report.operator_figures import data_rows, operator_drawings, operator_rows
from dither.report.statement import guarantee_statement
from dither.report.tables import (
    compare,
    environment_rows,
    key_figures,
    plan_rows,
    public_input_rows,
    quality_rows,
    released_input_rows,
    setting_rows,
    status_lines,
)

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(run: Path, against: Path | None = None) -> Path:
    """Write ``report.html`` of a run, and its operator's page where the run kept one.

    The public page is made from released and public values only and never reads the private
    folder; the operator's page (``private/report.html``, readable by its owner alone) holds what
    only the operator may see. Neither loads anything from elsewhere. The same files give the same
    bytes.

    Args:
        run: Folder of a finished, stopped or running run.
        against: Folder of another run on the same task and records to compare with, usually the
            same settings without privacy.

    Returns:
        Path of the public page.

    Raises:
        ConfigError: A folder is no run, or the two cannot be compared.
        DataError: A file of a run is broken.
        OutputError: The page cannot be written.
    """
    found = read_run(run)
    other = None if against is None else _other(run, against)
    if other is not None:
        check_comparable(found, other)
    operator = read_operator_part(run)
    page = run / "report.html"
    write_atomic(page, public_page(found, other).encode())
    if operator is not None:
        rate = found.about.number("plan", "sampling_rate")
        records = found.about.number("plan", "records")
        expected = None
        if rate is not None and records is not None:
            expected = rate * (records // found.ranks)  # rank 0's part: the others' are not here
        text = _render(
            "operator.html.j2",
            run=found,
            task=found.about.text("config", "task"),
            drawings=operator_drawings(operator, expected, found.ranks),
            rows=operator_rows(operator, found.ranks),
            data=data_rows(read_data_part(run)),
        )
        write_atomic(run / "private" / "report.html", text.encode(), mode=0o600)
    return page


def public_page(run: Run, against: Run | None = None) -> str:
    """Return the public page as HTML.

    Raises:
        DataError: A field of the run has another type than it must have.
    """
    statement = guarantee_statement(run.about, run.summary, spent=run.spent, starts=run.starts)
    return _render(
        "public.html.j2",
        run=run,
        command=f"dither ledger {shlex.quote(run.name)} --json",
        others=run.ranks > 1 and run.about.text("plan", "trust") not in {None, "central"},
        task=run.about.text("config", "task"),
        started=run.about.text("started"),
        sensitive=run.about.get("store", "sensitive") is not False,
        statement=statement,
        status=status_lines(run),
        figures=key_figures(run),
        drawings=public_drawings(run, against),
        checkpoints=checkpoint_rows(run),
        comparison=None if against is None else compare(run, against),
        plan=plan_rows(run),
        settings=setting_rows(run),
        public_inputs=public_input_rows(run),
        released_inputs=released_input_rows(run),
        quality=quality_rows(run),
        environment=environment_rows(run),
        audit=audit_rows(run.audit, run.about),
        audit_words=audit_words(run.audit),
        audit_drawings=audit_drawings(run.audit),
    )


def _other(run: Path, against: Path) -> Run:
    if against.is_dir() and run.resolve() == against.resolve():
        raise ConfigError(
            expected="another run to compare with",
            got=f"the same folder, {against}",
            fix="give the folder of a second run, for instance one with --no-private",
        )
    return read_run(against)


def _render(template: str, **values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - ours
    return environment.get_template(template).render(style=style, **values)
