"""Who the generated persons are: declared constants, and how a chunk of persons is drawn.

The constants are rounded figures of the kind that published ACS tables hold; generated records
resemble the population's margins and universes and describe nobody. Unemployment follows the
logistic model in :data:`UNEMPLOYMENT_MODEL`, so what a classifier can reach is known: the
probability itself ranks the labour force with an AUROC near 0.75.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# Resident population by state in units of 100,000, in the order of STATES (2020 Census).
STATE_WEIGHTS = (
    *(50, 7, 72, 30, 395, 58, 36, 10, 7, 215, 107, 15, 18, 128, 68, 32, 29, 45, 47, 14, 62, 70),
    *(101, 57, 30, 62, 11, 20, 31, 14, 93, 21, 202, 104, 8, 118, 40, 42, 130, 11, 51, 9, 69),
    *(291, 33, 6, 86, 77, 18, 59, 6),
)
# Share of persons by five-year age group, 0-4 to 90-94.
AGE_GROUPS = (56, 60, 64, 66, 67, 66, 68, 67, 64, 61, 62, 63, 66, 58, 46, 32, 19, 10, 5)
# Labour force participation by five-year age group from 15; no disability.
PARTICIPATION = (0.40, 0.75, 0.85, 0.85, 0.85, 0.85, 0.85, 0.84, 0.78, 0.63, 0.36, 0.2, 0.12)
PARTICIPATION_LATE = 0.05
PARTICIPATION_DISABLED = 0.5
ARMED_FORCES, ABSENT_FROM_WORK = 0.005, 0.025
GROUP_QUARTERS = 0.05
HOUSEHOLD_SIZES = (0.28, 0.35, 0.15, 0.13, 0.06, 0.03)

RACE = (0.62, 0.12, 0.008, 0.0005, 0.003, 0.06, 0.002, 0.07, 0.1165)
ORIGIN = (0.81, 0.115, *([0.015] + [0.003] * 20), 0.0)
CITIZENSHIP = (0.855, 0.005, 0.01, 0.07, 0.06)
SCHOOLING = (
    *(0.012, 0.001, 0.001, 0.001, 0.001, 0.002, 0.003, 0.003, 0.003, 0.01, 0.006, 0.012, 0.015),
    *(0.018, 0.02, 0.23, 0.04, 0.06, 0.145, 0.085, 0.2, 0.09, 0.022, 0.02),
)
MILITARY = (0.0, 0.07, 0.014, 0.916)
MARRIED_AT, ENGLISH = 24, (0.6, 0.2, 0.13, 0.07)


@dataclass(frozen=True)
class LogisticModel:
    """log-odds = intercept + the sum of the effects that apply."""

    intercept: float = -4.25
    age_under_20: float = 1.35
    age_20_to_24: float = 0.85
    never_married: float = 0.65
    separated: float = 0.5
    no_diploma: float = 0.9
    high_school: float = 0.55
    some_college: float = 0.3
    black: float = 0.85
    native_american: float = 0.95
    disability: float = 0.9
    veteran: float = -0.15
    foreign_born: float = -0.1


UNEMPLOYMENT_MODEL = LogisticModel()

Codes = Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class Persons:
    """A chunk of persons; positions count from 1 in the ACS vocabularies, 0 is a blank."""

    household: Codes
    person: Codes
    group_quarters: np.ndarray
    weight: Codes
    puma: Codes
    columns: dict[str, np.ndarray]


def draw_persons(rng: np.random.Generator, rows: int, first_household: int) -> Persons:
    """Draw exactly ``rows`` persons.

    Args:
        rng: Source of randomness.
        rows: How many, at least 1.
        first_household: Number of the first household; ``rows`` further ones suffice.
    """
    household, person, quarters, states = _households(rng, rows, first_household)
    group = _choice(rng, AGE_GROUPS, rows) - 1
    age = group * 5 + rng.integers(0, 5, rows)
    columns = _attributes(rng, age) | {"ST": states, "AGEP": age}
    columns["ESR"] = _employment(rng, columns)
    # Members of the armed forces, and only they, are on active duty.
    columns["MIL"] = np.where(np.isin(columns["ESR"], (4, 5)), 1, columns["MIL"])
    return Persons(
        household=household,
        person=person,
        group_quarters=quarters,
        weight=rng.integers(1, 300, rows),
        puma=rng.integers(1, 60, rows) * 100,
        columns=columns,
    )


def unemployment_probability(columns: dict[str, np.ndarray]) -> Float[np.ndarray, " rows"]:
    """P(unemployed | in the civilian labour force, features) under the published model."""
    m, age, school = UNEMPLOYMENT_MODEL, columns["AGEP"], columns["SCHL"]
    log_odds = (
        m.intercept
        + m.age_under_20 * (age < 20)
        + m.age_20_to_24 * ((age >= 20) & (age < 25))
        + m.never_married * (columns["MAR"] == 5)
        + m.separated * (columns["MAR"] == 4)
        + m.no_diploma * (school < 16)
        + m.high_school * ((school >= 16) & (school < 18))
        + m.some_college * ((school >= 18) & (school < 20))
        + m.black * (columns["RAC1P"] == 2)
        + m.native_american * np.isin(columns["RAC1P"], (3, 4, 5))
        + m.disability * (columns["DIS"] == 1)
        + m.veteran * (columns["MIL"] == 2)
        + m.foreign_born * (columns["NATIVITY"] == 2)
    )
    probability: Float[np.ndarray, " rows"] = 1 / (1 + np.exp(-log_odds))
    return probability


def _choice(rng: np.random.Generator, weights: tuple[int | float, ...], rows: int) -> Codes:
    """Positions, counted from 1, drawn with the given weights."""
    edges = np.cumsum(weights) / np.sum(weights)
    found: Codes = np.searchsorted(edges[:-1], rng.random(rows), side="right") + 1
    return found


def _households(
    rng: np.random.Generator, rows: int, first: int
) -> tuple[Codes, Codes, np.ndarray, Codes]:
    quarters = rng.random(rows) < GROUP_QUARTERS
    sizes = np.where(quarters, 1, _choice(rng, HOUSEHOLD_SIZES, rows))
    states = _choice(rng, STATE_WEIGHTS, rows)
    number = np.repeat(np.arange(rows), sizes)[:rows]
    starts = np.cumsum(sizes) - sizes
    person = np.arange(rows) - starts[number] + 1
    return first + number, person, quarters[number], states[number]


def _attributes(rng: np.random.Generator, age: Codes) -> dict[str, np.ndarray]:
    rows = len(age)
    citizenship = _choice(rng, CITIZENSHIP, rows)
    foreign = citizenship >= 4
    language = np.where(rng.random(rows) < np.where(foreign, 0.8, 0.13), 1, 2)
    language[age < 5] = 0
    return {
        "SEX": rng.integers(1, 3, rows),
        "MAR": _marriage(rng, age),
        "SCHL": _schooling(rng, age),
        "RAC1P": _choice(rng, RACE, rows),
        "HISP": np.minimum(_choice(rng, ORIGIN, rows), 24),
        "CIT": citizenship,
        "NATIVITY": np.where(foreign, 2, 1),
        "DIS": np.where(rng.random(rows) < 0.03 + 0.45 * (age / 100) ** 2, 1, 2),
        "MIL": np.where(age < 17, 0, _choice(rng, MILITARY, rows)),
        "LANX": language,
        "ENG": np.where(language == 1, _choice(rng, ENGLISH, rows), 0),
    }


def _marriage(rng: np.random.Generator, age: Codes) -> Codes:
    ever = rng.random(len(age)) < 0.9 * (1 - np.exp(-np.maximum(age - MARRIED_AT + 4, 0) / 10))
    ended = rng.random(len(age))
    widowed = ended < np.maximum(age - 50, 0) / 100
    state = np.select([widowed, ended > 0.82, ended > 0.79], [2, 3, 4], 1)
    return np.where(ever & (age >= 15), state, 5)


def _schooling(rng: np.random.Generator, age: Codes) -> Codes:
    # A pupil's grade follows the age; a degree needs years: 16 (diploma) from 18, 24 from 26.
    pupil = np.clip(age - 3 + rng.integers(0, 2, len(age)), 1, 15)
    adult = np.minimum(_choice(rng, SCHOOLING, len(age)), np.maximum(age - 2, 16))
    return np.select([age < 3, age < 18], [0, pupil], adult)


def _employment(rng: np.random.Generator, columns: dict[str, np.ndarray]) -> Codes:
    age = columns["AGEP"]
    group = np.clip(age // 5 - 3, 0, len(PARTICIPATION))
    active = np.array([*PARTICIPATION, PARTICIPATION_LATE])[group]
    active = np.where(columns["DIS"] == 1, active * PARTICIPATION_DISABLED, active)
    working = rng.random(len(age)) < active
    armed = (rng.random(len(age)) < ARMED_FORCES) & (age >= 17) & (age < 60)
    unemployed = rng.random(len(age)) < unemployment_probability(columns)
    absent = rng.random(len(age)) < ABSENT_FROM_WORK
    return np.select([age < 16, ~working, armed, unemployed, absent], [0, 6, 4, 3, 2], 1)
