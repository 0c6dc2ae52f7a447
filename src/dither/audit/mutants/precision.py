"""Defects of low precision and its probe."""

from __future__ import annotations

from dither.audit.mutants.mutant import Mutant

_PROBE = "tests/precision/test_probe.py::"

MUTANTS = (
    Mutant(
        name="scales-with-a-history",
        entry=37,
        shipped="A format's scale followed the largest number of earlier batches (amax history).",
        target="dither.precision.isolation:_keeps_apart",
        right="if not torch.equal(found[row], whole[row]):",
        wrong="if False:",
        killer="tests/precision/test_isolation.py::test_a_scale_with_a_history_is_refused",
    ),
    Mutant(
        name="scale-of-the-whole-batch",
        entry=37,
        shipped="One scale for a batch let one example's size round all others anew.",
        target="dither.precision.isolation:check_isolation",
        right="for product, shape in _SHAPES:",
        wrong="for product, shape in _SHAPES[:0]:",
        killer="tests/precision/test_isolation.py::test_a_scale_over_the_batch_is_refused",
    ),
    Mutant(
        name="probe-not-clipped",
        entry=22,
        shipped="What a probe measured was released with noise for a bound it did not have.",
        target="dither.precision.probe:whole_steps",
        right="(clip / lengths).clamp(max=1.0)",
        wrong="(2.0 * clip / lengths).clamp(max=1.0)",
        killer=_PROBE + "test_one_record_moves_the_sum_by_its_bound_and_no_more",
    ),
    Mutant(
        name="probe-not-charged",
        entry=22,
        shipped="A probe of the records was released and not charged.",
        target="dither.privacy.account:Account.charge",
        right="if self._ready <= 0:",
        wrong="if self._ready <= 0 and not self.run.endswith('probe'):",
        killer=_PROBE + "test_a_release_is_charged_once_and_carries_the_plan_s_noise",
    ),
    Mutant(
        name="probe-keeps-its-batch",
        entry=28,
        shipped="A probe's ticket was never compared with what its batch had served already.",
        target="dither.privacy.ticket:SampleTicket.spend",
        right="if not self._unspent:",
        wrong="if not self._unspent:\n            return\n        if False:",
        killer=_PROBE + "test_a_sample_serves_one_release_the_gradient_s_or_the_probe_s",
    ),
    Mutant(
        name="rounding-from-a-public-seed",
        entry=35,
        shipped="Stochastic rounding followed a public seed by row position.",
        target="dither.precision.probe:Probe._differences",
        right="model, seed = self._model, self._rounding.seed()",
        wrong="model, seed = self._model, 0",
        killer=_PROBE + "test_stochastic_rounding_follows_no_public_seed",
    ),
)
