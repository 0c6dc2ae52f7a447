"""Defects between a clipped sum and what leaves: charge, noise, scale, retry."""

from __future__ import annotations

from dither.audit.mutants.mutant import Mutant

_RELEASE = "tests/release/test_release.py::"
_DOOR = "tests/train/test_door.py::"

MUTANTS = (
    Mutant(
        name="divided-by-the-actual-batch",
        entry=4,
        shipped="The noisy sum was divided by the actual batch size, which is secret.",
        target="dither.train.step:PrivateStep._release",
        right="scale=self._clip.scale,",
        wrong="scale=0.25 / max(1, batch.size),",
        killer=_DOOR + "test_the_gradient_is_the_noisy_sum_over_the_expected_batch_size",
    ),
    Mutant(
        name="noise-of-the-mean-on-the-sum",
        entry=5,
        shipped="Noise for the mean, a batch size smaller, was added to the sum.",
        target="dither.privacy.plan:Plan.bind",
        right="sigma = self.noise_multiplier * charged * self.trust.rank_share(world_size)",
        wrong="sigma = self.noise_multiplier * charged * self.trust.rank_share(world_size)\n"
        "        sigma /= max(1.0, self.expected_batch_size) ** 0.25",
        killer=_DOOR + "test_the_gradient_is_the_noisy_sum_over_the_expected_batch_size",
    ),
    Mutant(
        name="noise-of-the-sum-on-the-mean",
        entry=5,
        shipped="Noise for the sum was added to the mean: private, and useless.",
        target="dither.train.clipper:Clipper.scale",
        right="/ self._plan.expected_batch_size",
        wrong="/ 1.0",
        killer=_DOOR + "test_the_gradient_is_the_noisy_sum_over_the_expected_batch_size",
    ),
    Mutant(
        name="sensitivity-of-a-mean",
        entry=6,
        shipped="The sensitivity was C over the batch size, that of a mean, for a sum.",
        target="dither.privacy.plan:Plan.bind",
        right="charged = l2_sensitivity * (1.0 + self.numeric_slack) + rounding",
        wrong="charged = l2_sensitivity * (1.0 + self.numeric_slack) / 2.0 + rounding",
        killer="tests/privacy/test_lattice.py::"
        "test_sigma_is_z_times_charged_sensitivity_times_share",
    ),
    Mutant(
        name="rounding-not-charged",
        entry=6,
        shipped="What rounding to the lattice adds to the sensitivity was left out.",
        target="dither.privacy.plan:Plan.bind",
        right="(1.0 + self.numeric_slack) + rounding",
        wrong="(1.0 + self.numeric_slack)",
        killer="tests/privacy/test_lattice.py::"
        "test_sigma_is_z_times_charged_sensitivity_times_share",
    ),
    Mutant(
        name="another-bound-than-the-plans",
        entry=6,
        shipped="Gradients were clipped to one bound and the noise was that of another.",
        target="dither.privacy.plan:Plan.bind",
        right="if l2_sensitivity != self.l2_clip:",
        wrong="if False:",
        killer=_RELEASE + "test_another_clip_bound_is_refused_uncharged",
    ),
    Mutant(
        name="noise-per-micro-step",
        entry=12,
        shipped="Each of four micro-steps got noise of σ/√4, and only one of them was released.",
        target="dither.release.release:open_release",
        right="encoder = ChunkEncoder(lattice,",
        wrong="lattice = __import__('dataclasses').replace(lattice, sigma=lattice.sigma / 4**0.5)\n"
        "    encoder = ChunkEncoder(lattice,",
        killer=_DOOR + "test_the_gradient_is_the_noisy_sum_over_the_expected_batch_size",
    ),
    Mutant(
        name="bias-without-noise",
        entry=13,
        shipped="Parameters of a single axis, biases and norms, got no noise.",
        target="dither.release.chunk:_named",
        right="part.view(tensor.shape).to(tensor.device)",
        wrong="(tensor if tensor.ndim == 1 else part.view(tensor.shape)).to(tensor.device)",
        killer=_DOOR + "test_every_parameter_gets_noise_the_unused_and_the_bias_too",
    ),
    Mutant(
        name="short-tensors-without-noise",
        entry=13,
        shipped="The last coordinates of a message, behind whole vectors, got no noise.",
        target="dither.release.chunk:ChunkEncoder.alone",
        right="return _named(total, chunk), saturated",
        wrong="total[-1:] = 0.0\n        return _named(total, chunk), saturated",
        killer=_RELEASE + "test_every_zero_of_an_empty_batch_gets_the_right_noise",
        fast=False,
    ),
    Mutant(
        name="noise-times-the-learning-rate",
        entry=21,
        shipped="Noise was multiplied by the step's factor before it was added, then once more.",
        target="dither.release.release:open_release",
        right="encoder = ChunkEncoder(lattice,",
        wrong="lattice = __import__('dataclasses').replace(\n"
        "        lattice, sigma=max(lattice.sigma * scale, lattice.sigma / 4)\n"
        "    )\n"
        "    encoder = ChunkEncoder(lattice,",
        killer=_DOOR + "test_the_gradient_is_the_noisy_sum_over_the_expected_batch_size",
    ),
    Mutant(
        name="release-not-charged",
        entry=22,
        shipped="A tuning run was released without an entry in the account.",
        target="dither.release.release:open_release",
        right="account.charge(account.plan.event, bounded.ticket.population)",
        wrong="pass",
        killer=_RELEASE + "test_the_charge_is_durable_before_anything_leaves",
    ),
    Mutant(
        name="charged-after-it-left",
        entry=22,
        shipped="The charge was written after the release, and a crash between lost it.",
        target="dither.release.release:release_sum",
        right="for chunk in bounded.chunks:",
        wrong="account._ready += 1\n"
        "            account.ledger.give_back(account.run, account.plan.event, 1)\n"
        "            for chunk in bounded.chunks:",
        killer=_RELEASE + "test_the_charge_is_durable_before_anything_leaves",
    ),
    Mutant(
        name="probe-on-the-gradients-batch",
        entry=28,
        shipped="A quantile was taken on the gradient's own batch, and charged as independent.",
        target="dither.train.clipper:Clipper.__call__",
        right="self._adaptive.before_step(self.engine.norms, self._transport)",
        wrong="ticket = type(batch.ticket)(\n"
        "                batch.ticket.kind, batch.ticket.rate, secret=batch.ticket.secret\n"
        "            )\n"
        "            self._adaptive._draw = lambda: replace(batch, ticket=ticket)\n"
        "            self._adaptive.before_step(self.engine.norms, self._transport)",
        killer="tests/train/test_adaptive.py::test_a_share_has_a_sample_and_a_ticket_of_its_own",
    ),
    Mutant(
        name="fresh-sample-drawn-and-not-used",
        entry=28,
        shipped="A fresh sample was drawn and charged, and the quantile taken on the gradient's.",
        target="dither.train.clipper:Clipper.__call__",
        right="self._adaptive.before_step(self.engine.norms, self._transport)",
        wrong="self._adaptive.before_step(\n"
        "                lambda _: self.engine.norms(batch.data), self._transport\n"
        "            )",
        killer="tests/train/test_adaptive.py::test_a_share_has_a_sample_and_a_ticket_of_its_own",
    ),
    Mutant(
        name="retried-on-the-same-sum",
        entry=29,
        shipped="A failed AllReduce was retried with the same sum and new noise, charged once.",
        target="dither.release.release:Opened.send",
        right="noisy, clamped = _release_chunk(chunk, self._encoder.into(out), self._carrier)",
        wrong="try:\n"
        "            noisy, clamped = _release_chunk(chunk, self._encoder, self._carrier)\n"
        "        except ConnectionError:\n"
        "            noisy, clamped = _release_chunk(chunk, self._encoder, self._carrier)",
        killer=_RELEASE + "test_a_failed_transport_leaves_charge_and_spent_ticket",
    ),
    Mutant(
        name="ticket-spent-after-success-only",
        entry=29,
        shipped="A sample whose release failed could be released again.",
        target="dither.release.release:open_release",
        right="bounded.ticket.spend(account.plan)",
        wrong="pass",
        killer=_RELEASE + "test_a_failed_transport_leaves_charge_and_spent_ticket",
    ),
    Mutant(
        name="infinite-sum-leaves",
        entry=17,
        shipped="A sum that is not finite was sent, and told that some record made it so.",
        target="dither.noise.codec:arguments",
        right='data = core_array(values, ("float64", "float32"), written=False)',
        wrong='data = np.nan_to_num(core_array(values, ("float64", "float32"), written=False))',
        killer=_RELEASE + "test_a_sum_that_is_not_finite_never_leaves",
    ),
)
