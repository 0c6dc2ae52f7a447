"""Defects of data: statistics, splits, shards and persons."""

from __future__ import annotations

from dither.audit.mutants.mutant import Mutant

_PERSONS = "tests/data/test_persons.py::"

MUTANTS = (
    Mutant(
        name="shard-by-row-number",
        entry=41,
        shipped="Shards went by row number under add/remove: one record less moved others.",
        target="dither.data.store.shard:by_key",
        right="return by_hash(hashes, rows, rank, world_size)",
        wrong="return by_row_number(rows, rank, world_size)",
        killer="tests/distributed/test_shards.py::"
        "test_under_add_remove_one_record_less_moves_no_other",
    ),
    Mutant(
        name="persons-split-by-number",
        entry=41,
        shipped="Persons were held out by their number, which one person less shifts.",
        target="dither.data.store.store:RecordStore.split",
        right='if relation != "add_remove":',
        wrong="if True:",
        killer=_PERSONS + "test_under_add_remove_a_person_less_moves_nobody",
        fast=False,
    ),
    Mutant(
        name="persons-rows-not-bounded",
        entry=42,
        shipped="A person with many rows had as many times the influence.",
        target="dither.data.persons:_kept",
        right="place >= most",
        wrong="place >= 10 * most",
        killer=_PERSONS + "test_bounding_is_brute_force_whatever_the_batches",
    ),
    Mutant(
        name="statistic-not-charged",
        entry=22,
        shipped="A statistic of the records was published without a charge.",
        target="dither.data.statistics:_release",
        right="ledger.charge(name, event, 1, limit=1)",
        wrong="pass",
        killer="tests/data/test_statistics.py::test_a_charge_comes_before_the_value",
    ),
    Mutant(
        name="rare-codes-in-the-vocabulary",
        entry=23,
        shipped="A vocabulary was taken from the records, with the codes of single persons.",
        target="dither.data.mechanisms:_vocabulary",
        right="def run(column: Column) -> tuple[str, ...]:",
        wrong="def run(column: Column) -> tuple[str, ...]:\n"
        "        return tuple(sorted(_as_counts(column, wanted)))\n",
        killer="tests/data/test_statistics.py::"
        "test_a_rare_code_is_never_released_and_frequent_ones_are",
    ),
    Mutant(
        name="statistic-of-one-row-a-person",
        entry=38,
        shipped="Noise was for one row, where a person has k and a replacement moves 2k.",
        target="dither.data.statistics:release_statistics",
        right="rows * (2 if relation == Relation.REPLACE_ONE else 1)",
        wrong="1",
        killer="tests/data/test_statistics.py::test_replacing_a_person_is_twice_as_far",
    ),
)
