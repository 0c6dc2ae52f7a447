"""Which records of a data set a rank samples from."""

from __future__ import annotations

from dither.errors import ConfigError


def rank_rows(records: int, rank: int, world_size: int) -> range:
    """Return one rank's rows of a data set: a stretch; all ranks' are disjoint and together whole.

    Right where row numbers are public and a record keeps its own: under ``zero_out`` and
    ``replace_one``. Under ``add_remove`` one more record would move others from rank to rank
    (`dither.data.store.RecordStore.shard` then goes by each record's key).

    Args:
        records: How many records all ranks have together.
        rank: Whose rows, 0 ≤ rank < world_size.
        world_size: R.

    Raises:
        ConfigError: No such rank, or fewer than 0 records.
    """
    if not 0 <= rank < world_size or records < 0:
        raise ConfigError(
            expected=f"a rank in [0, {world_size}) and 0 records or more",
            got=f"rank {rank} and {records} records",
            fix="pass len(records), world.rank and world.world_size",
        )
    return range(records * rank // world_size, records * (rank + 1) // world_size)
