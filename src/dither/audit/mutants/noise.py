"""Defects of noise: its law, its width, who has it, and how often it serves."""

from __future__ import annotations

from dither.audit.mutants.mutant import Mutant

_FLOATS = (
    "drawn = __import__('numpy').random.default_rng().standard_normal(array.size)\n"
    "    array[:] = __import__('numpy').rint({})\n"
    "    return 0\n"
    "    with core_errors("
)
_AS_FLOAT32 = "drawn.astype('float32') * __import__('numpy').float32(sigma)"
_AS_BF16 = "(drawn * sigma).astype('float32').view('uint32') // 65536 * 65536).view('float32'"

MUTANTS = (
    Mutant(
        name="float-noise-after-rounding",
        entry=1,
        shipped="Noise was added to floats: their low bits told what it was added to.",
        target="dither.noise.codec:decode",
        right="    return values",
        wrong="    values += np.random.default_rng().standard_normal(values.size) * 1e-6\n"
        "    return values",
        killer="tests/release/test_release.py::test_released_values_are_on_the_wire_lattice",
    ),
    Mutant(
        name="draws-rounded-from-float32",
        entry=32,
        shipped="Lattice noise was float32 noise, rounded: even numbers came 53.6 % of the time.",
        target="dither.noise.rounded:fill_rounded_gaussian",
        right="with core_errors(",
        wrong=_FLOATS.format(_AS_FLOAT32),
        killer="tests/noise/test_rounded_statistics.py::test_draws_are_rounded_gaussians",
        fast=False,
    ),
    Mutant(
        name="odd-draws-rounded-to-even",
        entry=32,
        shipped="The lowest bit of large draws was lost, so they were even.",
        target="dither.noise.rounded:rounded_gaussian",
        right="    return draws",
        wrong="    return np.where(abs(draws) > sigma, draws // 2 * 2, draws)",
        killer="tests/noise/test_rounded.py::test_every_draw_is_the_rounding_of_its_bits",
    ),
    Mutant(
        name="noise-in-bf16",
        entry=18,
        shipped="Noise was drawn in bf16, of which few values exist.",
        target="dither.noise.rounded:fill_rounded_gaussian",
        right="with core_errors(",
        wrong=_FLOATS.format("(" + _AS_BF16 + ")"),
        killer="tests/noise/test_rounded.py::test_every_draw_is_the_rounding_of_its_bits",
    ),
    Mutant(
        name="tail-cut-off",
        entry=19,
        shipped="Draws beyond four standard deviations were drawn again.",
        target="dither.noise.rounded:rounded_gaussian",
        right="    return draws",
        wrong="    return draws.clip(-int(4 * sigma), int(4 * sigma))",
        killer="tests/noise/test_rounded.py::test_every_draw_is_the_rounding_of_its_bits",
    ),
    Mutant(
        name="one-key-for-all",
        entry=9,
        shipped="All ranks drew their noise from one seed, so a rank could take it away.",
        target="dither.noise.key:Key.__init__",
        right="_native.Key(code)",
        wrong="_native.Key(bytes(KEY_BYTES), code)",
        killer="tests/noise/test_independence.py::test_ranks_are_independent",
    ),
    Mutant(
        name="ranks-share-a-seeds-noise",
        entry=9,
        shipped="A seeded run gave all ranks the same noise, which adds up R-fold, not √R-fold.",
        target="dither.noise.entropy:entropy_of_rank",
        right="InsecureSeed(seed + (rank << _SEED_BITS))",
        wrong="InsecureSeed(seed)",
        killer="tests/distributed/test_shards.py::"
        "test_ranks_with_one_seed_draw_apart_and_rank_zero_as_before",
    ),
    Mutant(
        name="stream-starts-again",
        entry=11,
        shipped="A resumed or repeated call began its noise stream from the start.",
        target="dither.noise.pool:FreshNoise.encode",
        right="encode(values, grid, self._key,",
        wrong="encode(values, grid, Key.agreed(bytes(32)),",
        killer="tests/release/test_reuse.py::test_no_two_releases_share_noise",
    ),
    Mutant(
        name="shared-key-makes-noise",
        entry=9,
        shipped="Noise came from a key that other ranks had too.",
        target="dither.noise.pool:is_private",
        right="and noise.own",
        wrong="and True",
        killer="tests/release/test_release.py::test_known_noise_is_refused_by_a_private_account",
    ),
    Mutant(
        name="pool-copied",
        entry=24,
        shipped="A pool of ready noise was copied to another process, which used it too.",
        target="dither.noise.pool:NoisePool.__reduce_ex__",
        right="raise NoiseError(",
        wrong="return str, ()\n        raise NoiseError(",
        killer="tests/noise/test_pool.py::test_pools_are_not_copied_or_pickled",
    ),
    Mutant(
        name="pool-block-handed-out-twice",
        entry=24,
        shipped="A block of the pool served two messages: their difference has no noise.",
        target="dither.noise.pool:NoisePool.take",
        right="native.take(array)",
        wrong="native.take(array)\n            array[array.size // 2 :] = array[: array.size - "
        "array.size // 2]",
        killer="tests/noise/test_pool.py::test_the_draws_are_those_of_a_twin_key_each_once",
    ),
    Mutant(
        name="share-of-a-colluder-counts",
        entry=10,
        shipped="Noise was shared among all ranks where t of them may take theirs away.",
        target="dither.privacy.trust:Trust.rank_share",
        right="math.sqrt(world_size - self.colluders)",
        wrong="math.sqrt(world_size)",
        killer="tests/privacy/test_trust.py::test_distributed_follows_the_table",
    ),
    Mutant(
        name="local-noise-is-shared",
        entry=10,
        shipped="Under local trust each rank added only its share of the sum's noise.",
        target="dither.privacy.trust:Trust.rank_share",
        right="return 1.0\n",
        wrong="return 1.0 / math.sqrt(world_size)\n",
        killer="tests/privacy/test_trust.py::test_central_and_local_follow_the_table",
    ),
    Mutant(
        name="noise-on-rank-zero-only",
        entry=10,
        shipped="Rank 0 added the noise of all, and the others sent their sums without any.",
        target="dither.release.contribution:ContributionRelease.__init__",
        right="self._lattice = bound_lattice(plan, dimension, transport.world_size)",
        wrong="self._lattice = bound_lattice(plan, dimension, transport.world_size)\n"
        "        if getattr(getattr(transport, 'endpoint', None), 'rank', 0):\n"
        "            self._lattice = __import__('dataclasses').replace(self._lattice, sigma=1e-9)",
        killer="tests/reduce/test_private_reduce.py::test_the_noise_is_that_of_the_trust",
    ),
)
