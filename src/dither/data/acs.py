"""The American Community Survey's person records (ACS PUMS) and two tasks on them.

Vocabularies, bounds and universes are those of the published PUMS data dictionaries (2018 and
2021 agree on every column here), so they cost no privacy.
"""

from __future__ import annotations

from types import MappingProxyType

from dither.data.schema import (
    Between,
    Categorical,
    KeyColumn,
    Numeric,
    OneOf,
    Schema,
    Task,
    Vintage,
)
from dither.errors import ConfigError

DICTIONARY = "U.S. Census Bureau, ACS PUMS Data Dictionary (2018, 2021)"

# FIPS 5-2 state codes: the 50 states and the District of Columbia.
STATES = tuple(f"{code:02d}" for code in range(1, 57) if code not in {3, 7, 14, 43, 52})


def _numbered(count: int, digits: int = 1) -> tuple[str, ...]:
    return tuple(f"{code:0{digits}d}" for code in range(1, count + 1))


ACS = Schema(
    name="acs-pums-persons",
    key=(KeyColumn("SERIALNO"), KeyColumn("SPORDER", "integer")),
    features=(
        Categorical("ST", STATES, aliases=("STATE",)),
        Numeric("AGEP", 0, 99),
        Categorical("SEX", _numbered(2)),
        Categorical("MAR", _numbered(5)),
        Categorical("SCHL", _numbered(24, 2), blank="less than 3 years old"),
        Categorical("RAC1P", _numbered(9)),
        Categorical("HISP", _numbered(24, 2)),
        Categorical("CIT", _numbered(5)),
        Categorical("NATIVITY", _numbered(2)),
        Categorical("DIS", _numbered(2)),
        Categorical("MIL", _numbered(4), blank="less than 17 years old"),
        Categorical("LANX", _numbered(2), blank="less than 5 years old"),
        Categorical("ENG", _numbered(4), blank="less than 5 years old, or only English"),
    ),
    context=(
        Categorical("ESR", _numbered(6), blank="less than 16 years old"),
        Numeric("PWGTP", 1, 9999),
    ),
    source=DICTIONARY,
    public=True,
    vintage=Vintage("SERIALNO", 4),
    record_type=OneOf("RT", ("P",)),
)
"""Person records; 135 features: 12 one-hot columns (134) and the age."""

UNEMPLOYMENT = Task(
    name="unemployment",
    schema=ACS,
    where=(OneOf("ESR", ("1", "2", "3")),),
    label=OneOf("ESR", ("3",)),
    class_weights=(0.52, 12.5),
    weights_source=(
        "1/(2p) with p = 4.0 %, the U.S. civilian unemployment rate of 2024 "
        "(Bureau of Labor Statistics, Current Population Survey, annual averages)"
    ),
)
"""Who in the civilian labour force is unemployed (ESR 3 among 1-3)."""

EMPLOYMENT = Task(
    name="employment",
    schema=ACS,
    where=(Between("AGEP", 17, 89), Between("PWGTP", 1, 9999)),
    label=OneOf("ESR", ("1",)),
)
"""Who aged 17-89 is at work (ESR 1); ACSEmployment of folktables (Ding et al., NeurIPS 2021)."""

TASKS = MappingProxyType({task.name: task for task in (UNEMPLOYMENT, EMPLOYMENT)})


def find_task(task: str | Task) -> Task:
    """A task by name, by the path of its description (a TOML file), or the task itself.

    Raises:
        ConfigError: No task has this name; or the description is wrong, or has constants that are
            neither public nor released.
        LedgerError: A released constant was not charged.
    """
    if isinstance(task, Task):
        return task
    if task.endswith(".toml"):
        from dither.data.statistics import load_task  # noqa: PLC0415 - it brings the accountant

        return load_task(task)
    if task not in TASKS:
        raise ConfigError(
            expected="a task out of " + ", ".join(sorted(TASKS)),
            got=repr(task),
            fix="name one of these, or the description of a table of your own (a .toml file)",
        )
    return TASKS[task]
