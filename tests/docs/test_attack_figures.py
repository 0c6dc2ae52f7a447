"""Tables of attacks in the docs say what was recorded, and what was recorded keeps the promise."""

from __future__ import annotations

from typing import Any

from tests.docs.test_figures import recorded, table

PAGE = "guides/attacks.md"


def _name(name: str) -> str:
    return name.replace("epsilon", "ε =")


def test_membership_is_as_recorded() -> None:
    models = recorded("audit-membership.json")["models"]
    wanted = []
    for model in models:
        allowed = " / ".join(f"{100 * each:.2f}" for each in model["ceilings"])
        for roc in model["attacks"]:
            rates = [[100 * rate[key] for key in ("tpr", "low", "high")] for rate in roc["rates"]]
            shown = [f"{tpr:.2f} ({low:.2f} to {high:.2f})" for tpr, low, high in rates]
            most = "anything" if model["epsilon"] is None else allowed
            wanted.append([_name(model["name"]), roc["attack"], *shown, most, f"{roc['auc']:.3f}"])
    assert table(PAGE, "models | attack") == wanted


def test_membership_shows_what_it_should() -> None:
    found = recorded("audit-membership.json")
    plain, private = found["models"]
    assert (plain["epsilon"], private["epsilon"]) == (None, 1.0)
    assert found["tpr_ratio_at_1_percent"] >= 5.0
    assert private["within"]


def test_inversion_is_as_recorded() -> None:
    found = recorded("audit-inversion.json")
    wanted = []
    for row in found["rows"]:
        leak = f"{row['leak']:+.3f} ({row['leak_low']:+.3f} to {row['leak_high']:+.3f})"
        most = "anything" if row["epsilon"] is None else f"{row['leak_ceiling']:.3f}"
        numbers = [f"{row[key]:.3f}" for key in ("accuracy", "control")]
        others = [f"{row[key]:.3f}" for key in ("majority", "imputation")]
        wanted.append([row["attribute"], _name(row["name"]), *numbers, leak, most, *others])
    assert table(PAGE, "attribute | models") == wanted
    assert {row["epsilon"] for row in found["rows"]} == {None, 8.0, 1.0}
    assert all(row["leak_low"] <= row["leak_ceiling"] for row in found["rows"])


def _column(row: dict[str, Any]) -> tuple[str, str] | None:
    """Where a row of the JSON stands in the table, if it does."""
    kind, _, rest = row["trust"].partition("(")
    observer, _, count = row["observer"].partition(" of ")
    if observer != "coalition":
        promised = row["promised"] or kind != "central"
        return kind, observer if promised else f"{observer}, not promised"
    if kind == "local" and int(count) == row["ranks"] - 1:
        return kind, "all others together"
    if kind == "distributed" and count == rest.removesuffix(")"):
        return kind, "t ranks together"
    return None


def test_sums_are_as_recorded() -> None:
    rows = recorded("audit-allreduce.json")["rows"]
    found = {
        (*place, row["ranks"]): f"{row['advantage']:.3f} ({row['ceiling']:.3f})"
        for row in rows
        if row["inference"] == "mean" and (place := _column(row)) is not None
    }
    said = table(PAGE, "trust | observer")
    assert len(said) == 8
    for trust, observer, *cells in said:
        for ranks, cell in zip((2, 8, 64, 1024), cells, strict=True):
            assert cell == found.get((trust.removesuffix("(t)"), observer, ranks), "-")


def test_sums_keep_every_ceiling() -> None:
    found = recorded("audit-allreduce.json")
    assert found["findings"] == found["blind"] == []
    assert {row["ranks"] for row in found["rows"]} == {2, 8, 64, 1024}
    assert all(row["within"] for row in found["rows"])
    mean = [row for row in found["rows"] if row["inference"] == "mean"]
    assert all(row["high"] >= row["ceiling"] for row in mean)  # the attack had its power
    assert max(row["advantage"] - row["ceiling"] for row in mean) < 0.017


def test_noise_and_defects_are_as_recorded() -> None:
    found = recorded("audit-allreduce.json")
    noise = [
        [each["case"], "numbers used twice", f"{each['score']:.1f} σ, threshold 7.0"]
        for each in found["reuse"]
    ]
    noise += [
        [each["case"], "even numbers", f"{each['even']:.4f}; advantage {each['advantage']:.2f}"]
        for each in found["parity"]
    ]
    assert table(PAGE, "noise | looked for") == noise
    defects: dict[str, dict[bool, str]] = {}
    for each in found["defects"]:
        defects.setdefault(each["defect"], {})[each["safeguard"]] = f"{each['advantage']:.3f}"
    wanted = [[name, sides[False], sides[True]] for name, sides in defects.items()]
    assert table(PAGE, "defect | safeguard off") == wanted
