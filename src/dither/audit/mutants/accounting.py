"""Defects of the account: events, relations, leases, the ledger."""

from __future__ import annotations

from dither.audit.mutants.mutant import Mutant

_ACCOUNT = "tests/privacy/test_account.py::"

MUTANTS = (
    Mutant(
        name="replacement-charged-as-removal",
        entry=7,
        shipped="Replace-one was charged as add/remove, at half its distance.",
        target="dither.privacy.events:Relation.to_dp_accounting",
        right="relations.REPLACE_ONE,",
        wrong="relations.ADD_OR_REMOVE_ONE,",
        killer="tests/privacy/test_events.py::test_relations_name_themselves_to_dp_accounting",
    ),
    Mutant(
        name="replacement-charged-c-for-2c",
        entry=38,
        shipped="The closed form took C as the distance of a replacement, which is 2C.",
        target="dither.privacy.accountant:_of_gaussians",
        right="2.0 if relation is Relation.REPLACE_ONE else 1.0",
        wrong="1.0",
        killer="tests/privacy/test_accountant.py::"
        "test_relation_scales_the_gaussian_as_its_distance_says",
    ),
    Mutant(
        name="ranks-contribution-under-zero-out",
        entry=38,
        shipped="A rank's contribution, which can become any other, was charged as removed.",
        target="dither.release.contribution:contribution_plan",
        right='"relation": Relation.REPLACE_ONE,',
        wrong='"relation": Relation.ZERO_OUT,',
        killer="tests/release/test_contribution.py::"
        "test_a_plan_charges_a_replacement_without_sampling",
    ),
    Mutant(
        name="half-the-rate",
        entry=20,
        shipped="The accountant was given another sampling rate than the sampler.",
        target="dither.privacy.plan:Plan.event",
        right="SampledGaussian(self.sampling_rate, self.noise_multiplier)",
        wrong="SampledGaussian(self.sampling_rate / 2, self.noise_multiplier)",
        killer="tests/privacy/test_plan.py::test_event_and_expected_batch_size",
    ),
    Mutant(
        name="one-step-for-all",
        entry=20,
        shipped="The accountant composed epochs where steps were made.",
        target="dither.privacy.accountant:epsilon",
        right="accountant.compose(event.to_dp_event(), count)",
        wrong="accountant.compose(event.to_dp_event(), (count + 1) // 2)",
        killer="tests/privacy/test_accountant.py::"
        "test_poisson_composition_agrees_with_direct_convolution",
    ),
    Mutant(
        name="another-delta",
        entry=20,
        shipped="ε was computed for another δ than the one that was promised.",
        target="dither.privacy.plan:Plan.epsilon",
        right="epsilon([(self.event, count)], self.delta, self.relation)",
        wrong="epsilon([(self.event, count)], self.delta**0.5, self.relation)",
        killer="tests/privacy/test_plan.py::test_calibrate_meets_epsilon_from_below",
    ),
    Mutant(
        name="more-noise-than-is-added",
        entry=20,
        shipped="The event that was charged had more noise than the release.",
        target="dither.privacy.account:Account.charge",
        right="event is not self._event and event != self._event",
        wrong="False",
        killer=_ACCOUNT + "test_another_event_is_refused_uncharged",
    ),
    Mutant(
        name="account-of-one-run-only",
        entry=22,
        shipped="Each run's ε was told by itself, and tuning runs on the same records forgotten.",
        target="dither.privacy.ledger:Ledger.entries",
        right='f"{entry.run}/".startswith(f"{run}/")',
        wrong="entry.run == run",
        killer="tests/privacy/test_ledger.py::"
        "test_parts_of_a_run_belong_to_it_and_have_limits_of_their_own",
    ),
    Mutant(
        name="budget-starts-again",
        entry=11,
        shipped="A resumed run had its whole budget again.",
        target="dither.privacy.ledger:Ledger.lease",
        right="charged = charged_by(database, run)",
        wrong="charged = 0",
        killer="tests/privacy/test_ledger.py::test_limit_is_granted_in_part_and_never_exceeded",
    ),
    Mutant(
        name="steps-counted-from-the-checkpoint",
        entry=11,
        shipped="Steps left were counted from the checkpoint, not from what was charged.",
        target="dither.privacy.account:Account.steps_left",
        right="self._ready + self.plan.steps - self._leases.charged(self.run)",
        wrong="self._ready + self.plan.steps",
        killer=_ACCOUNT + "test_after_a_crash_the_account_is_too_high_by_one_lease_at_most",
    ),
    Mutant(
        name="lease-in-parent-and-child",
        entry=39,
        shipped="One lease was used by a process and by its forked child.",
        target="dither.privacy.account:Account.forget",
        right="self._ready = 0",
        wrong="pass",
        killer=_ACCOUNT + "test_a_forked_child_has_no_lease",
    ),
    Mutant(
        name="ledger-rolled-back",
        entry=39,
        shipped="An older copy of the ledger was charged on, and what was spent since forgotten.",
        target="dither.privacy.ledger:Ledger._require_head",
        right="head.sequence > 0 and not has_entry(database, head)",
        wrong="False",
        killer=_ACCOUNT + "test_a_ledger_that_was_rolled_back_is_not_charged",
    ),
    Mutant(
        name="lease-returned-twice",
        entry=39,
        shipped="What a lease had left was returned and then used.",
        target="dither.privacy.account:Account.give_back",
        right="left, self._ready = self._ready, 0",
        wrong="left = self._ready",
        killer=_ACCOUNT + "test_what_a_lease_has_left_can_be_returned_once",
    ),
    Mutant(
        name="ranks-that-share-records",
        entry=42,
        shipped="Records that lay on several ranks were in one sum several times.",
        target="dither.privacy.account:Account._require_disjoint",
        right="if found > self.plan.records:",
        wrong="if False:",
        killer="tests/distributed/test_populations.py::"
        "test_the_same_records_on_all_ranks_are_refused_uncharged",
        fast=False,
    ),
)
