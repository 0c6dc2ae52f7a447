"""A sample's right to one release."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from dataclasses import replace

import pytest

from dither.errors import SamplingError
from dither.privacy.events import SamplerKind
from dither.privacy.plan import Plan
from dither.privacy.ticket import SampleTicket


def _ticket(plan: Plan) -> SampleTicket:
    return SampleTicket(plan.sampler, plan.sampling_rate, secret=True)


def test_single_use(plan: Plan) -> None:
    ticket = _ticket(plan)
    ticket.spend(plan)
    with pytest.raises(SamplingError, match="a batch that was released before"):
        ticket.spend(plan)


def test_other_rate_is_refused_and_leaves_the_ticket_fresh(plan: Plan) -> None:
    ticket = _ticket(plan)
    with pytest.raises(SamplingError, match="as charged"):
        ticket.spend(replace(plan, sampling_rate=plan.sampling_rate * (1 + 1e-15)))
    ticket.spend(plan)


def test_other_sampler_is_refused(plan: Plan) -> None:
    full = replace(plan, sampler=SamplerKind.FULL, sampling_rate=1.0)
    with pytest.raises(SamplingError, match="as charged"):
        _ticket(plan).spend(full)
    with pytest.raises(SamplingError, match="as charged"):
        _ticket(full).spend(plan)
    with pytest.raises(SamplingError, match="as charged"):
        SampleTicket(SamplerKind.FULL, plan.sampling_rate, secret=True).spend(plan)


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, pickle.dumps])
def test_cannot_be_copied_or_pickled(plan: Plan, twin: object) -> None:
    assert callable(twin)
    with pytest.raises(SamplingError, match="stays in its process"):
        twin(_ticket(plan))


def test_a_forked_child_cannot_spend_its_parents_ticket(plan: Plan) -> None:
    ticket = _ticket(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
        child = os.fork()
    if child == 0:
        try:
            ticket.spend(plan)
        except SamplingError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ticket.spend(plan)
