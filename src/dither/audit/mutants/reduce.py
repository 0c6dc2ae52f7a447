"""Defects of sums over ranks: masks, pads, graphs, calls, MPI."""

from __future__ import annotations

from dither.audit.mutants.mutant import Mutant

_MASKED = "tests/reduce/test_masked.py::"
_ENCRYPTED = "tests/reduce/test_encrypted.py::"

MUTANTS = (
    Mutant(
        name="masks-of-one-sign",
        entry=25,
        shipped="Both ends of an edge added their pad, so masks did not cancel.",
        target="dither.reduce.protections.masked:Masks.__init__",
        right="1 if peer > rank else -1",
        wrong="1",
        killer=_MASKED + "test_masks_cancel_in_every_call",
    ),
    Mutant(
        name="pads-of-the-first-block",
        entry=25,
        shipped="Every block was encrypted with the pads of the first one (HEAR's code).",
        target="dither.reduce.protections.pads:Pads.at",
        right="return self._chunks[number - self._first]",
        wrong="if not hasattr(type(self), '_only'):\n"
        "                type(self)._only = {}\n"
        "            return type(self)._only.setdefault(id(self), self._chunks[0])",
        killer=_ENCRYPTED + "test_pads_never_repeat_in_blocks_or_calls",
    ),
    Mutant(
        name="masks-go-on-after-an-error",
        entry=25,
        shipped="After a failed round the pads of that round were used again.",
        target="dither.reduce.protections.masked:Masks.spoil",
        right="self._keys, self._reason = None, reason",
        wrong="self._reason = reason",
        killer=_MASKED + "test_spent_masks_are_refused",
    ),
    Mutant(
        name="ring-against-two",
        entry=31,
        shipped="On a ring of masks two colluding neighbours isolated their victim.",
        target="dither.reduce.protections.graph:mask_degree",
        right="max(colluders + 1, 2)",
        wrong="2",
        killer="tests/reduce/test_graph.py::test_a_ring_against_two_is_refused_with_the_reason",
    ),
    Mutant(
        name="shares-without-masks",
        entry=31,
        shipped="Shares of noise that protect only behind masks were sent without any.",
        target="dither.release.release:require_masks",
        right="masked < plan.trust.colluders",
        wrong="False",
        killer="tests/reduce/test_private_reduce.py::test_shares_of_noise_need_masks",
    ),
    Mutant(
        name="unsupported-array-in-clear",
        entry=26,
        shipped="What could not be protected was passed on to the plain AllReduce.",
        target="dither.release.arrays:_check_array",
        right="if problem is not None:",
        wrong="if problem is not None and isinstance(array, np.ma.MaskedArray):\n"
        "        return\n"
        "    if problem is not None:",
        killer="tests/reduce/test_private_reduce.py::test_what_cannot_be_protected_is_never_sent",
    ),
    Mutant(
        name="beyond-the-bound-in-clear",
        entry=26,
        shipped="A value that the cipher's fixed point cannot hold was changed and sent.",
        target="dither.reduce.protections.encrypted:Encryption._to_words",
        right="if not (float(scaled.max()) <= self._limit "
        "and float(scaled.min()) >= -self._limit):",
        wrong="np.clip(scaled, -self._limit, self._limit, out=scaled)\n        if False:",
        killer=_ENCRYPTED + "test_a_value_beyond_the_bound_is_refused_and_spends_it",
    ),
    Mutant(
        name="contribution-not-clipped",
        entry=38,
        shipped="A rank's contribution was taken to lie in the ball, and nobody scaled it.",
        target="dither.release.transport:clipped",
        right="clip_factor(values, clip)",
        wrong="min(1.0, 2.0 * clip_factor(values, clip))",
        killer="tests/release/test_contribution.py::test_what_is_sent_lies_in_the_ball",
    ),
    Mutant(
        name="call-charged-after-its-message",
        entry=22,
        shipped="An AllReduce was charged after its message had left.",
        target="dither.release.contribution:ContributionRelease.__call__",
        right="self.account.charge(self._event)\n"
        "        saturated, finite = self._sum(values, out)",
        wrong="saturated, finite = self._sum(values, out)\n"
        "        self.account.charge(self._event)",
        killer="tests/reduce/test_private_reduce.py::"
        "test_a_call_is_charged_before_its_message_leaves",
    ),
    Mutant(
        name="large-counts-unseen",
        entry=44,
        shipped="The forms of large counts, `_c`, went past the interposition.",
        target="dither.mpirun.calls:base_name",
        right='name.removesuffix("_c")',
        wrong="name",
        killer="tests/mpirun/test_calls.py::test_large_counts_are_judged_as_the_plain_form",
    ),
    Mutant(
        name="unknown-calls-unseen",
        entry=44,
        shipped="A function of a newer MPI was neither protected nor counted.",
        target="dither.mpirun.generate:counted",
        right="kinds = {Kind.COUNTED, Kind.REFUSED, None}",
        wrong="kinds = {Kind.COUNTED, Kind.REFUSED}",
        killer="tests/mpirun/test_generate.py::test_what_moves_data_or_is_unknown_is_counted",
    ),
    Mutant(
        name="one-form-of-each-call",
        entry=44,
        shipped="Only the plain form of a call was wrapped, and its `_c` form went past.",
        target="dither.mpirun.generate:source",
        right="*(_wrapper(each, number[base_name(each.name)]) for each in chosen),",
        wrong="*(\n"
        "            _wrapper(each, number[each.name])\n"
        "            for each in chosen\n"
        "            if each.name == base_name(each.name)\n"
        "        ),",
        killer="tests/mpirun/test_generate.py::test_forms_of_one_function_share_a_number",
    ),
    Mutant(
        name="mpi-unit-charged-c",
        entry=38,
        shipped="The account of an MPI program charged C where a replacement moves 2C.",
        target="dither.release.contribution:contribution_plan",
        right='"relation": Relation.REPLACE_ONE,',
        wrong='"relation": Relation.ADD_REMOVE,',
        killer="tests/mpirun/test_plan_file.py::test_the_promise_is_that_of_one_contribution",
    ),
)
