"""Defects of runs: what they publish, keep, resume, and whom they count."""

from __future__ import annotations

from dither.audit.mutants.mutant import Mutant

_LOOP = "tests/train/test_loop.py::"
_DOOR = "tests/train/test_door.py::"

MUTANTS = (
    Mutant(
        name="length-follows-n",
        entry=23,
        shipped="The number of batches in a pass told n, which add/remove keeps secret.",
        target="dither.sampling.loader:poisson_loader",
        right="math.ceil(1.0 / sampler.rate)",
        wrong="len(loader)",
        killer=_DOOR + "test_n_does_not_show_in_the_loaders_length_under_add_remove",
    ),
    Mutant(
        name="n-is-published",
        entry=23,
        shipped="The exact number of records stood in the report of an add/remove run.",
        target="dither.train.run:describe_store",
        right="None if hidden else int(split.test.size)",
        wrong="int(split.test.size)",
        killer=_LOOP + "test_n_is_not_published_under_add_remove",
        fast=False,
    ),
    Mutant(
        name="content-hash-is-published",
        entry=40,
        shipped="A hash of the records was published, by which a guess at them can be checked.",
        target="dither.train.run:describe_store",
        right='f"account {ledger.header.id}" if manifest.sensitive else store.id',
        wrong="store.id",
        killer=_LOOP + "test_the_content_hash_of_sensitive_records_is_not_published",
        fast=False,
    ),
    Mutant(
        name="unprotected-run-unmarked",
        entry=22,
        shipped="An unprotected run on the same records was not in the account.",
        target="dither.privacy.ledger:Ledger.record_non_private",
        right="event = NonPrivate(reason)",
        wrong="return\n            event = NonPrivate(reason)",
        killer="tests/privacy/test_account.py::test_an_insecure_run_is_infinite",
    ),
    Mutant(
        name="sums-in-the-checkpoint",
        entry=43,
        shipped="A checkpoint held gradient sums from before the noise.",
        target="dither.train.checkpoint:_flatten",
        right="scalars: dict[str, dict[str, Any]] = {}",
        wrong='tensors["model.sum"] = next(iter(model.parameters())).detach().clone() * 2.0\n'
        "    scalars: dict[str, dict[str, Any]] = {}",
        killer=_LOOP + "test_checkpoints_hold_released_state_only",
    ),
    Mutant(
        name="lost-ledger-resumed",
        entry=11,
        shipped="A run was resumed with a ledger that lacked its charges.",
        target="dither.privacy.ledger:Ledger.require",
        right="self._require_head(database, head)",
        wrong="pass",
        killer="tests/privacy/test_ledger.py::test_a_rolled_back_ledger_is_behind",
    ),
    Mutant(
        name="exact-loss-in-the-log",
        entry=40,
        shipped="Training loss and batch size went to the public log.",
        target="dither.train.tracking:Tracker.trained",
        right="if self.target.private:",
        wrong="if True:",
        killer="tests/distributed/test_tracking.py::"
        "test_released_figures_go_everywhere_and_exact_ones_only_where_named",
        fast=False,
    ),
    Mutant(
        name="rows-that-were-touched",
        entry=40,
        shipped="Noise reached only the rows of a table that the batch touched: indices leaked.",
        target="dither.release.chunk:ChunkEncoder.alone",
        right="return _named(total, chunk), saturated",
        wrong="found = _named(total, chunk)\n"
        "        for name, tensor in chunk.items():\n"
        "            if is_rows(tensor):\n"
        "                found[name] *= (tensor.to_dense() != 0).any(1)[:, None]\n"
        "        return found, saturated",
        killer="tests/release/test_rows.py::test_rows_without_entries_get_the_same_noise",
    ),
    Mutant(
        name="persons-where-nothing-joins-rows",
        entry=42,
        shipped="A plan promised persons, and each of their rows was clipped by itself.",
        target="dither.train.door:_check_records",
        right="if plan.unit is not unit:",
        wrong="if False:",
        killer=_DOOR + "test_a_unit_that_nothing_enforces_is_refused",
        fast=False,
    ),
    Mutant(
        name="a-persons-loss-row-by-row",
        entry=42,
        shipped="A person's rows were averaged by their number, or clipped row by row.",
        target="dither.train.models:rows_loss",
        right='ignore_index=IGNORED, reduction="none"\n        )',
        wrong='ignore_index=IGNORED, reduction="none"\n'
        "        ) / (labels != IGNORED).sum(1, keepdim=True).clamp(min=1)",
        killer="tests/train/test_persons.py::test_a_persons_summed_gradient_is_clipped_as_one",
    ),
    Mutant(
        name="repeated-rows-in-a-batch",
        entry=42,
        shipped="A collate function put a record into a batch several times.",
        target="dither.sampling.loader:check_rows",
        right="first.shape[0] != batch.size",
        wrong="False",
        killer=_DOOR + "test_a_collate_function_that_repeats_records_is_refused",
        fast=False,
    ),
)
