"""Defects of who is in a batch, how often it serves, and what randomness follows it."""

from __future__ import annotations

from dither.audit.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name="batches-of-one-size",
        entry=2,
        shipped="Batches of a shuffled loader, all of one size, were charged as Poisson samples.",
        target="dither.sampling.poisson:PoissonSampler._rows",
        right="expected = self.records * self.rate",
        wrong="expected = self.records * self.rate\n"
        "        return np.sort(np.random.permutation(self.records)[: round(expected)])",
        killer="tests/sampling/test_poisson.py::test_size_is_binomial",
    ),
    Mutant(
        name="weighted-loader-taken",
        entry=2,
        shipped="A loader with a sampler of its own was wrapped and charged as if it were Poisson.",
        target="dither.sampling.loader:check_loader",
        right="type(loader.sampler) not in {RandomSampler, SequentialSampler}",
        wrong="type(loader.sampler) is type(None)",
        killer="tests/sampling/test_loader.py::test_loaders_with_rules_of_their_own_are_refused",
    ),
    Mutant(
        name="stream-taken",
        entry=2,
        shipped="Streamed batches, in the order of the records, were charged as Poisson samples.",
        target="dither.sampling.loader:_require_random_access",
        right="if streams or not reachable:",
        wrong="if False:",
        killer="tests/sampling/test_loader.py::test_streams_are_refused",
    ),
    Mutant(
        name="ticket-of-another-sampler",
        entry=2,
        shipped="The sampler that ran and the one that was charged were never compared.",
        target="dither.privacy.ticket:SampleTicket.spend",
        right="(self.kind, self.rate) != (plan.sampler, plan.sampling_rate)",
        wrong="False",
        killer="tests/privacy/test_ticket.py::test_other_sampler_is_refused",
    ),
    Mutant(
        name="empty-batch-skipped",
        entry=3,
        shipped="A rank whose sample was empty left the step out and fell behind the others.",
        target="dither.sampling.loader:_Draws.__iter__",
        right="sample = self._sampler.draw()",
        wrong="sample = self._sampler.draw()\n            if not sample.rows.size:\n"
        "                continue",
        killer="tests/distributed/test_shards.py::test_a_shard_with_no_records_gives_empty_batches",
    ),
    Mutant(
        name="sample-serves-twice",
        entry=27,
        shipped="A batch was replayed after a resume, and each time charged as a new sample.",
        target="dither.privacy.ticket:SampleTicket.spend",
        right="self._unspent.pop()",
        wrong="self._unspent[0]",
        killer="tests/privacy/test_ticket.py::test_single_use",
    ),
    Mutant(
        name="sample-serves-parent-and-child",
        entry=27,
        shipped="A sample drawn before a fork was released by parent and child.",
        target="dither.privacy.ticket:SampleTicket.spend",
        right="os.getpid() != self._owner",
        wrong="False",
        killer="tests/privacy/test_ticket.py::test_a_forked_child_cannot_spend_its_parents_ticket",
    ),
    Mutant(
        name="sampler-restarts-from-a-seed",
        entry=27,
        shipped="A sampler's seed came with the checkpoint, so resumed runs drew the same batches.",
        target="dither.sampling.poisson:PoissonSampler.__init__",
        right="entropy or OsEntropy()",
        wrong="entropy or __import__('dither.noise.entropy').noise.entropy.InsecureSeed(0)",
        killer="tests/sampling/test_poisson.py::test_default_entropy_is_the_operating_systems",
    ),
    Mutant(
        name="one-sampling-seed-for-all-ranks",
        entry=30,
        shipped="All ranks drew their samples from one broadcast seed.",
        target="dither.noise.entropy:entropy_of_rank",
        right="InsecureSeed(seed + (rank << _SEED_BITS))",
        wrong="InsecureSeed(seed)",
        killer="tests/distributed/test_shards.py::"
        "test_ranks_with_one_seed_draw_apart_and_rank_zero_as_before",
    ),
    Mutant(
        name="augmentation-from-a-public-seed",
        entry=35,
        shipped="Random crops followed the user's seed, so one record's absence changed the rest.",
        target="dither.sampling.secret:secret_randomness",
        right="torch.manual_seed(seed)",
        wrong="torch.manual_seed(0)",
        killer="tests/sampling/test_gather.py::"
        "test_augmentation_takes_fresh_entropy_and_leaves_the_users_generators",
    ),
    Mutant(
        name="dropout-from-a-public-seed",
        entry=35,
        shipped="Dropout drew by row position after the user's seed.",
        target="dither.clipping.engine:ClippingEngine._gradients",
        right="self._entropy.seed()",
        wrong="0",
        killer="tests/clipping/test_engine.py::"
        "test_dropout_masks_are_fresh_each_call_and_differ_between_examples",
    ),
    Mutant(
        name="split-by-row-number",
        entry=41,
        shipped="Training and test rows were told apart by row number under add/remove.",
        target="dither.data.store.split:by_key",
        right='by_hash(np.frombuffer(b"".join(map(digest, keys)), dtype="<u8"), test_fraction)',
        wrong="by_row_number(len(list(keys)), test_fraction)",
        killer="tests/data/test_store.py::test_only_the_key_decides_under_add_remove",
    ),
)
