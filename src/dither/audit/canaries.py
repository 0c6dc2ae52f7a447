"""Canaries of a one-run audit: contributions that are nobody's, each in by a fair coin."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dither.audit.scores import LikelihoodScore
from dither.data.schema import Categorical, Schema
from dither.errors import ConfigError
from dither.release.rows import dense


def fresh_generator() -> np.random.Generator:
    """Return a generator that nobody can repeat: what it draws decides no record's privacy."""
    return np.random.default_rng(secrets.randbits(128))


@dataclass(frozen=True)
class Placed:
    """Where canaries stand: each on one coordinate of the model's gradient, on which no other does.

    Attributes:
        places: By parameter: the canaries' numbers, and the coordinates in it.
        count: m.
    """

    places: Mapping[str, tuple[Int64[np.ndarray, " some"], Int64[Tensor, " some"]]]
    count: int


def check_count(count: int, dimension: int) -> None:
    """Refuse more canaries than a model has coordinates.

    Raises:
        ConfigError: It has fewer.
    """
    if not 1 <= count <= dimension:
        raise ConfigError(
            expected=f"between 1 and {dimension} canaries, each on a coordinate of its own",
            got=str(count),
            fix="choose fewer --canaries, or audit a larger model (--hidden)",
        )


def place(model: nn.Module, count: int, draw: np.random.Generator) -> Placed:
    """Choose coordinates for canaries, at random among all trained ones.

    Raises:
        ConfigError: The model has fewer coordinates.
    """
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    dimension = sum(sizes.values())
    check_count(count, dimension)
    chosen = draw.choice(dimension, count, replace=False)
    places, start = {}, 0
    for name, size in sizes.items():
        here = np.flatnonzero((chosen >= start) & (chosen < start + size))
        if here.size:
            places[name] = here, torch.from_numpy(chosen[here] - start)
        start += size
    return Placed(places, count)


@final
class GradientCanaries:
    """Canaries in gradient space (Dirac canaries of 2305.08846): a `train.beside.Beside`.

    Each is a gradient of norm C on a coordinate of its own, with a sign of its own. Half of them,
    by fair coins, are in; of these each joins the sum of a step with the run's own sampling
    probability, by a coin of its own, as a record would.

    What it costs the records: nothing. Canaries, their coins and their places are drawn without a
    look at any record. Given them, a step releases S(records) + c with the same c for neighbouring
    records, so the distance of neighbouring sums is that of S, within C and the slack (the sum
    S + c is taken in float64, whose rounding is 1e-13 of it), and the release is the very event
    that is charged. That holds for every c, so also on average, and when the coins are published.
    The scores are functions of released sums and of the canaries alone: post-processing.

    Args:
        placed: Where they stand.
        rate: q, of the run's Poisson samples.
        l2_clip: C.
        score: Told of each step's released numbers.
        draw: Where coins come from.
    """

    def __init__(
        self,
        placed: Placed,
        *,
        rate: float,
        l2_clip: float,
        score: LikelihoodScore,
        draw: np.random.Generator,
    ) -> None:
        self.score = score
        self.included: Bool[np.ndarray, " canaries"] = draw.random(placed.count) < 0.5
        self.seen = 0
        self._placed = placed
        self._signs = np.where(draw.random(placed.count) < 0.5, -1.0, 1.0)
        self._rate = rate
        self._clip = l2_clip
        self._draw = draw

    def join(self, chunks: Iterable[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
        """Return the pieces of a step's sum with this step's canaries."""
        sampled = self.included & (self._draw.random(self._placed.count) < self._rate)
        joining = torch.from_numpy(np.where(sampled, self._signs * self._clip, 0.0))
        return (
            {name: self._added(name, tensor, joining) for name, tensor in chunk.items()}
            for chunk in chunks
        )

    def _added(self, name: str, tensor: Tensor, joining: Float[Tensor, " canaries"]) -> Tensor:
        if name not in self._placed.places:
            return tensor
        numbers, coordinates = self._placed.places[name]
        # A copy, in float64: the engine's own sums serve again, and adding must not round them.
        total = dense(tensor).detach().to(torch.float64, copy=True).contiguous()
        total.view(-1)[coordinates] += joining[numbers]
        return total

    def released(self, tensors: Mapping[str, Tensor], scale: float) -> None:
        """Score the canaries by one released sum."""
        found = np.empty(self._placed.count)
        for name, (numbers, coordinates) in self._placed.places.items():
            flat = tensors[name].detach().reshape(-1)
            found[numbers] = flat[coordinates].to(torch.float64).numpy()
        self.seen += 1
        self.score.step(found * self._signs / scale)


@final
class RecordCanaries:
    """A data set of records, and canaries that are records of nobody behind them.

    Features are drawn from the schema alone, labels by a coin; those that are in follow the
    records. A record's own contribution is clipped as ever and depends on no canary, so neighbours
    are as far apart as without them.

    Args:
        dataset: The records; an item is a row of features and a label.
        features: Of all canaries.
        labels: Of all canaries.
        included: Which of them are in.
    """

    def __init__(
        self,
        dataset: Any,
        features: Float[Tensor, "canaries features"],
        labels: Int64[Tensor, " canaries"],
        included: Bool[np.ndarray, " canaries"],
    ) -> None:
        self._dataset = dataset
        at = torch.from_numpy(included)
        self._features, self._labels = features[at], labels[at]

    def __len__(self) -> int:
        return len(self._dataset) + len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        features, labels = self.gather_batch(np.asarray([index], dtype=np.int64))
        return features[0], labels[0]

    def gather_batch(
        self, rows: Int64[np.ndarray, " batch"]
    ) -> tuple[Float[Tensor, "batch features"], Int64[Tensor, " batch"]]:
        """Return a batch of records and canaries, in the order of the rows."""
        records = len(self._dataset)
        own = rows < records
        features, labels = self._dataset.gather_batch(rows[own])
        inserted = torch.from_numpy(rows[~own] - records)
        order = torch.from_numpy(np.argsort(np.argsort(~own, kind="stable"), kind="stable"))
        return (
            torch.cat([features, self._features[inserted]])[order],
            torch.cat([labels, self._labels[inserted]])[order],
        )


def draw_records(
    schema: Schema, count: int, draw: np.random.Generator
) -> tuple[Float[Tensor, "canaries features"], Int64[Tensor, " canaries"]]:
    """Draw records of nobody: every column uniform over its published values, labels by a coin."""
    columns = []
    for column in schema.features:
        if isinstance(column, Categorical):
            code = draw.integers(column.width, size=count)
            columns.append(np.eye(column.width, dtype=np.float32)[code])
        else:
            columns.append(draw.random((count, 1), dtype=np.float32))
    labels = draw.integers(2, size=count)
    return torch.from_numpy(np.concatenate(columns, axis=1)), torch.from_numpy(labels)
