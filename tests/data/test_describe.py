"""Descriptions of tables: what they make, and how every mistake names its place."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from dither.cli.main import main
from dither.data import Between, Categorical, KeyColumn, Numeric, OneOf, build_store, find_task
from dither.data.describe import Description, read_description
from dither.data.mechanisms import Histogram, Mean, Quantiles, Vocabulary
from dither.errors import ConfigError

WHOLE = """
name = "visits"
source = "form 12"
key = { WHO = "text", NUMBER = "integer" }
person = "WHO"
rows_per_person = 4
where = [{ column = "AGE", between = [18, 99] }]
label = { column = "BACK", codes = ["1"] }
class_weights = [0.6, 3]
weights_source = "yearly report"

[columns]
AGE = { bounds = [0, 110], impute = 50 }
COST = { bounds = [0, 1e4], clip = true, scale = "log", aliases = ["PRICE"] }
WARD = { codes = ["A", "B"], blank = "at home", other = "another house" }
STAY = { bounds = [0, 400], feature = false }
BACK = { codes = [0, 1] }
"""

OPEN = """
name = "visits"
source = "form 12"
key = ["WHO"]
label = { column = "BACK", codes = ["1"] }
class_weights = { release = true, epsilon = 0.1 }
statistics = [{ kind = "histogram", column = "WARD", codes = ["A", "B"], epsilon = 0.2 }]

[columns]
AGE = { bounds = { release = [0.01, 0.99], epsilon = 0.3, candidates = [0, 50, 100] } }
COST = { bounds = [0, 1e4], impute = { release = "mean", epsilon = 0.4 } }
STAY = { bounds = [0, 400], impute = { release = "median", epsilon = 0.4 } }
WARD = { codes = { release = true, epsilon = 0.5, delta = 1e-7 }, other = "rare" }
BACK = { codes = ["0", "1"] }
"""


def described(folder: Path, text: str) -> Description:
    path = folder / "visits.toml"
    path.write_text(text, encoding="utf-8")
    return read_description(path)


def test_a_description_makes_the_schema_that_one_would_write(tmp_path: Path) -> None:
    task = described(tmp_path, WHOLE).task({})
    schema = task.schema
    assert schema.key == (KeyColumn("WHO"), KeyColumn("NUMBER", "integer"))
    assert (schema.person, schema.rows_per_person, schema.unit) == (KeyColumn("WHO"), 4, "person")
    assert schema.features == (
        Numeric("AGE", 0, 110, impute=50),
        Numeric("COST", 0, 10_000, clip=True, scale="log", aliases=("PRICE",)),
        Categorical("WARD", ("A", "B"), blank="at home", other="another house"),
    )
    assert schema.context == (Numeric("STAY", 0, 400), Categorical("BACK", ("0", "1")))
    assert task.where == (Between("AGE", 18, 99),)
    assert task.label == OneOf("BACK", ("1",))
    assert (task.class_weights, task.weights_source) == ((0.6, 3.0), "yearly report")
    assert not schema.public
    assert not task.released


def test_open_constants_are_asked_for_and_nothing_is_built_without_them(tmp_path: Path) -> None:
    found = described(tmp_path, OPEN)
    asked = {request.name: request.statistic for request in found.requests}
    assert asked == {
        "bounds of AGE": Quantiles("AGE", (0.01, 0.99), 0.3, (0.0, 50.0, 100.0)),
        "imputation of COST": Mean("COST", 0.0, 10_000.0, 0.4),
        "imputation of STAY": Quantiles("STAY", (0.5,), 0.4),
        "vocabulary of WARD": Vocabulary("WARD", 0.5, 1e-7),
        "class weights": Histogram("(label)", 0.1, codes=("0", "1")),
        "histogram of WARD": Histogram("WARD", 0.2, codes=("A", "B")),
    }
    assert "histogram of WARD" not in found.open_constants
    with pytest.raises(ConfigError, match="neither for bounds of AGE, imputation of COST"):
        found.task({})
    with pytest.raises(ConfigError, match="dither data statistics"):
        find_task(str(found.path))
    values = {
        "bounds of AGE": [0, 100],
        "imputation of COST": 3.5,
        "imputation of STAY": 2.0,
        "vocabulary of WARD": ["B"],
        "class weights": [0.5, 2.0],
    }
    task = found.task(values)
    age, cost, stay, ward = task.schema.features
    assert age == Numeric("AGE", 0, 100, clip=True)
    assert [cost.impute, stay.impute] == [3.5, 2.0]
    assert ward == Categorical("WARD", ("B",), other="rare")
    assert task.class_weights == (0.5, 2.0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "visits"', "nam = 1", "a field name"),
        ('name = "visits"', 'name = "../visits"', "a short name"),
        ("impute = 50", "impute = 500", "impute value in [0, 110]"),
        ("bounds = [0, 110]", "bounds = [0, inf]", "both finite"),
        ('codes = ["A", "B"]', 'codes = ["", "B"]', "an empty field"),
        ("form 12", "form 12\nx", "TOML"),
        ('key = { WHO = "text"', 'key = { WHO = "words"', "text or integer"),
        ("rows_per_person = 4", "", "rows_per_person"),
        ("rows_per_person = 4", "rows_per_person = 0", "at least 1"),
        ('person = "WHO"', "", "person"),
        ('column = "BACK"', 'column = "ELSE"', "under [columns]"),
        ('codes = ["1"]', 'codes = ["7"]', "a code of column BACK"),
        ("between = [18, 99]", "between = [18]", "lower and an upper"),
        ("[0.6, 3]", "[0.6, -3]", "two positive weights"),
        ("AGE = { bounds", "AGE = { codes = [1], bounds", "either bounds"),
        ("bounds = [0, 110]", "bounds = [0]", "lower and an upper"),
        ("bounds = [0, 110]", "bounds = [110, 0]", "lower < upper"),
        ("impute = 50", "imput = 50", "visits.toml, columns, AGE"),
        ('scale = "log"', 'scale = "cubic"', "linear or log"),
        ('codes = ["A", "B"]', 'codes = ["A", "A"]', "same code twice"),
        ("BACK = { codes = [0, 1] }", "BACK = { codes = [0, 1], feature = true }", "label"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in WHOLE
    with pytest.raises(ConfigError) as found:
        described(tmp_path, WHOLE.replace(old, new, 1))
    assert says in str(found.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[0.01, 0.99]", "[0.99, 0.01]", "two quantile levels"),
        ("epsilon = 0.3", "epsilon = 0", "epsilon above 0"),
        ("[0, 50, 100]", "[50, 0]", "ascending"),
        ('release = "mean"', 'release = "mode"', "median"),
        ('other = "rare"', 'blank = "none"', "too rare"),
        ("delta = 1e-7", "delta = 2", "delta in (0, 1)"),
        ("release = true, epsilon = 0.5", "release = false, epsilon = 0.5", "release = true"),
        ("release = true, epsilon = 0.1", "release = false, epsilon = 0.1", "release = true"),
        ("[0, 50, 100]", "[50]", "at least two candidates"),
        ("[0, 50, 100]", "[0, inf]", "finite candidates"),
        ('kind = "histogram"', 'kind = "mean"', "a field bounds"),
        ('column = "WARD", codes', 'column = "AGE", codes', "numbers or codes"),
        (
            'BACK = { codes = ["0", "1"] }',
            'BACK = { codes = { release = true, epsilon = 1, delta = 0.1 }, other = "x" }',
            "public codes for BACK",
        ),
    ],
)
def test_mistaken_requests_name_their_place(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in OPEN
    with pytest.raises(ConfigError) as found:
        described(tmp_path, OPEN.replace(old, new, 1))
    assert says in str(found.value)


def test_a_missing_description_is_an_error_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dither data describe --data"):
        find_task(str(tmp_path / "none.toml"))


def test_a_store_is_built_by_a_description(tmp_path: Path) -> None:
    about = described(tmp_path, WHOLE).path
    table = tmp_path / "visits.csv"
    table.write_text(
        "WHO,NUMBER,AGE,PRICE,WARD,STAY,BACK\n"
        "a,1,70,20000,A,3,0\na,2,,10,X,4,1\nb,1,17,10,A,3,1\nb,2,30,10,,3,1\n"
    )
    store = build_store(table, str(about), tmp_path / "store")
    assert [store.units, len(store)] == [2, 2]  # a missing age is in no scope, though it is imputed
    assert store.feature_names == ("AGE", "COST", "WARD=A", "WARD=B")


def test_describe_says_what_is_public_and_what_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = described(tmp_path, OPEN).path
    assert main(["data", "describe", "--task", str(about), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["open"]["vocabulary of WARD"] == {"epsilon": 0.5, "delta": 1e-7}
    assert found["released"] == {}
    assert "bounds of COST" in found["public"]
    assert not set(found["open"]) & set(found["public"])
    assert main(["data", "describe", "--task", "unemployment"]) == 0
    assert "vocabulary of SEX: 2 codes" in capsys.readouterr().out
    assert main(["data", "describe"]) == 2


def test_a_draft_needs_only_question_marks_filled_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "visits.csv"
    table.write_text("WHO,AGE,BACK\nsecret,70,0\n")
    assert main(["data", "describe", "--data", str(table)]) == 0
    text = capsys.readouterr().out
    assert "secret" not in text
    filled = text.replace('"BACK" = { codes = ["?"] }', '"BACK" = { codes = ["0", "1"] }')
    filled = filled.replace('"AGE" = { codes = ["?"] }', '"AGE" = { bounds = [0, 110] }')
    filled = filled.replace('"WHO" = { codes = ["?"] } # or bounds = [0, 1]\n', "")
    assert described(tmp_path, filled).task({}).label == OneOf("BACK", ("1",))


def test_what_is_imputed_stays_within_released_bounds(tmp_path: Path) -> None:
    text = OPEN.replace("candidates = [0, 50, 100] }", "candidates = [0, 50, 100] }, impute = 90")
    values = {
        "bounds of AGE": [0, 50],
        "imputation of COST": 3.5,
        "imputation of STAY": 512.0,
        "vocabulary of WARD": ["B"],
        "class weights": [0.5, 2.0],
    }
    age, _, stay, _ = described(tmp_path, text).task(values).schema.features
    assert [age.impute, stay.impute] == [50.0, 400.0]


def test_a_draft_quotes_what_a_header_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / 'my "cards".csv'
    table.write_text('"A ""B""\\",AGE,BACK\nsecret,70,0\n')
    assert main(["data", "describe", "--data", str(table)]) == 0
    found = tomllib.loads(capsys.readouterr().out)
    assert found["key"] == ['A "B"\\']
    assert found["name"] == 'my "cards"'
