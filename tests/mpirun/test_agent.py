"""The agent: what it grants is charged first, what was not used goes back, what is lost stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dither.errors import OutputError
from dither.mpirun.agent import Agent
from dither.privacy.events import Relation, SamplerKind, Unit
from dither.privacy.ledger import Ledger
from dither.privacy.plan import Plan
from dither.reduce.rank_ledger import open_rank_ledger

TOKEN = "0123456789abcdef" * 4
RUN = "run-a"


class Rank:
    """A rank's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20.0)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r")

    def ask(self, question: str) -> str:
        self.socket.sendall(f"{question}\n".encode())
        return self.lines.readline().rstrip("\n")

    def hello(self, rank: int = 0, size: int = 2, token: str = TOKEN) -> str:
        return self.ask(f"hello {token} {rank} {size} {os.getpid()}")

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


@pytest.fixture
def plan() -> Plan:
    return Plan(
        records=2,
        sampling_rate=1.0,
        steps=10,
        l2_clip=1.0,
        noise_multiplier=10.0,
        delta=1e-6,
        relation=Relation.REPLACE_ONE,
        unit=Unit.RANK,
        sampler=SamplerKind.FULL,
    )


@pytest.fixture
def ledgers(tmp_path: Path) -> list[Ledger]:
    return [open_rank_ledger(tmp_path / "accounts", rank) for rank in range(2)]


@pytest.fixture
def agent(tmp_path: Path, plan: Plan, ledgers: list[Ledger]) -> Iterator[Agent]:
    with Agent(tmp_path / "agent", TOKEN, plan, RUN, ledgers) as agent:
        yield agent


@pytest.fixture
def connect(agent: Agent) -> Iterator[Callable[[], Rank]]:
    made: list[Rank] = []

    def one() -> Rank:
        made.append(Rank(agent.path))
        return made[-1]

    yield one
    for rank in made:
        rank.close()


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_granted_is_charged_already(
    connect: Callable[[], Rank], ledgers: list[Ledger]
) -> None:
    rank = connect()
    assert rank.hello(0) == "ok"
    assert rank.ask("lease 4") == "granted 4 6"
    assert ledgers[0].charged(RUN) == 4
    assert ledgers[1].charged(RUN) == 0
    assert rank.ask("lease 100") == "granted 6 0"
    assert ledgers[0].charged(RUN) == 10
    assert rank.ask("lease 1") == "granted 0 0"
    assert ledgers[0].charged(RUN) == 10


def test_what_was_not_used_goes_back(
    agent: Agent, connect: Callable[[], Rank], ledgers: list[Ledger], plan: Plan
) -> None:
    rank = connect()
    rank.hello(1)
    rank.ask("lease 8")
    assert rank.ask('bye 3 {"releases": 3}') == "ok"
    assert ledgers[1].charged(RUN) == 3
    assert ledgers[1].epsilon(1e-6, RUN) == pytest.approx(plan.epsilon(3))
    state = agent.ranks[1]
    assert (state.ended, state.used, state.statistics) == ("well", 3, [{"releases": 3}])
    assert agent.ranks[0].ended == "absent"


def test_a_lost_rank_keeps_its_charge_and_its_last_figures(
    agent: Agent, connect: Callable[[], Rank], ledgers: list[Ledger]
) -> None:
    rank = connect()
    rank.hello(0)
    rank.ask("lease 8")
    assert rank.ask('stats {"releases": 1}') == "ok"
    assert rank.ask('stats {"releases": 2}') == "ok"
    rank.close()
    wait_for(lambda: agent.ranks[0].ended == "lost")
    assert ledgers[0].charged(RUN) == 8
    assert agent.ranks[0].statistics == [{"releases": 2}]


def test_a_rank_may_come_again_after_its_end(
    connect: Callable[[], Rank], agent: Agent, ledgers: list[Ledger]
) -> None:
    """A script may run one MPI program after another."""
    for used in (1, 2):
        rank = connect()
        assert rank.hello(0) == "ok"
        rank.ask("lease 5")
        assert rank.ask(f"bye {used} {{}}") == "ok"
    assert ledgers[0].charged(RUN) == 3
    assert agent.ranks[0].used == 3
    assert len(agent.ranks[0].statistics) == 2


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("lease 1", "hello first"),
        ("bye 0 {}", "hello first"),
        (f"hello {'f' * 64} 0 2 1", "does not belong"),
        (f"hello {TOKEN} 2 2 1", "plan is for 2 ranks"),
        (f"hello {TOKEN} -1 2 1", "plan is for 2 ranks"),
        (f"hello {TOKEN} 0 3 1", "plan is for 2 ranks"),
        (f"hello {TOKEN} 0 2", "error"),
        (f"hello {TOKEN} x y 1", "error"),
        ("", "error"),
        ("\x00\xff", "error"),
        ("GET / HTTP/1.1", "error"),
    ],
)
def test_who_does_not_belong_gets_nothing(
    question: str, words: str, connect: Callable[[], Rank], ledgers: list[Ledger]
) -> None:
    answer = connect().ask(question)
    assert answer.startswith("error")
    assert words in answer
    assert ledgers[0].charged(RUN) == 0


@pytest.mark.parametrize(
    "question",
    [
        *("lease 0", "lease -1", "lease x", "lease", f"lease {2**40}", "bye 3 {}", "bye -1 {}"),
        *("bye 1", "bye 1 [2]", "bye 1 {", "stats 3", "hello again", "give me"),
    ],
)
def test_a_wrong_question_changes_nothing(
    question: str, connect: Callable[[], Rank], ledgers: list[Ledger], agent: Agent
) -> None:
    rank = connect()
    rank.hello(0)
    rank.ask("lease 2")
    assert rank.ask(question).startswith("error")
    assert ledgers[0].charged(RUN) == 2
    assert agent.ranks[0].ended == "running"
    assert rank.ask("bye 2 {}") == "ok"


def test_one_rank_is_not_two(connect: Callable[[], Rank]) -> None:
    assert connect().hello(0) == "ok"
    assert "here already" in connect().hello(0)
    assert connect().hello(1) == "ok"


def test_after_bye_nothing_more_is_granted(
    connect: Callable[[], Rank], ledgers: list[Ledger]
) -> None:
    rank = connect()
    rank.hello(0)
    rank.ask("lease 2")
    rank.ask("bye 1 {}")
    assert rank.ask("lease 2").startswith("error")
    assert rank.ask("bye 0 {}").startswith("error")
    assert ledgers[0].charged(RUN) == 1


def test_questions_in_pieces_and_together(connect: Callable[[], Rank]) -> None:
    rank = connect()
    for part in (f"hello {TOKEN} 0", " 2 1\nlea", "se 2\nlease 3\n"):
        rank.socket.sendall(part.encode())
        time.sleep(0.02)
    assert [rank.lines.readline() for _ in range(3)] == ["ok\n", "granted 2 8\n", "granted 3 5\n"]


def test_an_endless_line_is_cut_off(connect: Callable[[], Rank], agent: Agent) -> None:
    rank = connect()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        rank.socket.sendall(b"x" * (64 << 20))
    assert connect().hello(0) == "ok"


def test_a_ledger_rolled_back_is_noticed(
    agent: Agent, connect: Callable[[], Rank], ledgers: list[Ledger]
) -> None:
    rank = connect()
    rank.hello(0)
    rank.ask("lease 2")
    for path in ledgers[0].path.parent.glob("rank-0.sqlite*"):
        path.unlink()
    open_rank_ledger(ledgers[0].path.parent, 0)
    assert rank.ask("lease 2").startswith("error")
    assert agent.ranks[0].error


def test_another_launcher_of_the_same_run_cannot_exceed_it(
    connect: Callable[[], Rank], ledgers: list[Ledger], plan: Plan
) -> None:
    rank = connect()
    rank.hello(0)
    ledgers[0].charge(RUN, plan.event, 7, limit=10)
    assert rank.ask("lease 5").startswith("granted 3")
    assert rank.ask("lease 5") == "granted 0 0"
    assert ledgers[0].charged(RUN) == 10


def test_encrypted_sums_are_granted_nothing(
    tmp_path: Path, plan: Plan, ledgers: list[Ledger]
) -> None:
    with Agent(tmp_path / "agent", TOKEN, plan, RUN, ledgers, unlimited=True) as agent:
        rank = Rank(agent.path)
        rank.hello(0)
        assert rank.ask("lease 5").startswith("error")
        assert rank.ask("bye 12 {}") == "ok"
        rank.close()
    assert ledgers[0].charged(RUN) == 0


def test_nothing_is_left_of_the_socket(tmp_path: Path, plan: Plan, ledgers: list[Ledger]) -> None:
    with Agent(tmp_path / "agent", TOKEN, plan, RUN, ledgers) as agent:
        rank = Rank(agent.path)
        rank.hello(0)
        rank.ask("lease 4")
    assert not (tmp_path / "agent").exists()
    assert rank.lines.readline() == ""
    rank.close()
    assert agent.ranks[0].ended == "lost"
    assert ledgers[0].charged(RUN) == 4


def test_a_path_too_long_for_a_socket_is_said(
    tmp_path: Path, plan: Plan, ledgers: list[Ledger]
) -> None:
    with (
        pytest.raises(OutputError, match="TMPDIR"),
        Agent(tmp_path / ("x" * 120), TOKEN, plan, RUN, ledgers),
    ):
        pass


_STUBBORN = """
import signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
s.connect(sys.argv[1])
s.sendall(f"hello {sys.argv[2]} 0 2 1\\n".encode())
print(s.recv(100).decode(), flush=True)
time.sleep(600)
"""


def test_ranks_that_outlive_mpiexec_are_ended(agent: Agent) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _STUBBORN, str(agent.path), TOKEN],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ok\n"
    agent.finish(0.3)
    assert process.wait(20) == -signal.SIGKILL
    process.stdout.close()
    wait_for(lambda: agent.ranks[0].ended == "lost")


def test_finish_does_not_wait_where_all_have_left(
    agent: Agent, connect: Callable[[], Rank]
) -> None:
    rank = connect()
    rank.hello(0)
    rank.ask("bye 0 {}")
    rank.close()
    start = time.monotonic()
    agent.finish(10.0)
    assert time.monotonic() - start < 5.0


def test_many_ranks_at_once(tmp_path: Path, plan: Plan) -> None:
    """Every one gets what its own account allows, and no other's."""
    ledgers = [open_rank_ledger(tmp_path / "many", rank) for rank in range(12)]
    with Agent(tmp_path / "agent", TOKEN, plan, RUN, ledgers) as agent:
        ranks = [Rank(agent.path) for _ in ledgers]
        for number, rank in enumerate(ranks):
            rank.socket.sendall(f"hello {TOKEN} {number} 12 1\nlease {number + 1}\n".encode())
        answers: list[Any] = [[rank.lines.readline() for _ in range(2)] for rank in ranks]
        for number, rank in enumerate(ranks):
            granted = min(number + 1, 10)
            assert answers[number] == ["ok\n", f"granted {granted} {10 - granted}\n"]
            assert rank.ask(f"bye 1 {json.dumps({'releases': 1})}") == "ok"
            rank.close()
    assert [ledger.charged(RUN) for ledger in ledgers] == [1] * 12


def test_ranks_that_do_not_come_are_named_once(
    tmp_path: Path, plan: Plan, ledgers: list[Ledger]
) -> None:
    told: list[str] = []
    with Agent(
        tmp_path / "agent", TOKEN, plan, RUN, ledgers, told=told.append, patience=0.3
    ) as agent:
        time.sleep(0.5)
        assert not told  # a program that is long before its MPI_Init is no news
        rank = Rank(agent.path)
        rank.hello(0)
        assert not told
        wait_for(lambda: bool(told))
        time.sleep(0.5)
        assert rank.ask("lease 1") == "granted 1 9"
        rank.close()
    assert len(told) == 1
    assert "rank 1 not in MPI_Init through dither, 0.3 s after others" in told[0]


def test_nothing_is_said_when_all_came_in_time(
    tmp_path: Path, plan: Plan, ledgers: list[Ledger]
) -> None:
    told: list[str] = []
    with Agent(
        tmp_path / "agent", TOKEN, plan, RUN, ledgers, told=told.append, patience=0.4
    ) as agent:
        ranks = [Rank(agent.path), Rank(agent.path)]
        for number, rank in enumerate(ranks):
            rank.hello(number)
        time.sleep(0.8)
        for rank in ranks:
            rank.close()
    assert told == []


def test_who_cannot_be_told_does_not_end_the_ranks(
    tmp_path: Path, plan: Plan, ledgers: list[Ledger]
) -> None:
    asked: list[str] = []

    def told(line: str) -> None:
        asked.append(line)
        raise BrokenPipeError

    with Agent(tmp_path / "agent", TOKEN, plan, RUN, ledgers, told=told, patience=0.1) as agent:
        rank = Rank(agent.path)
        rank.hello(0)
        wait_for(lambda: bool(asked))
        assert rank.ask("lease 2") == "granted 2 8"
        rank.close()


def test_what_another_start_charges_is_not_this_starts(
    agent: Agent, connect: Callable[[], Rank], ledgers: list[Ledger], plan: Plan
) -> None:
    rank = connect()
    rank.hello(0)
    assert rank.ask("lease 4") == "granted 4 6"
    ledgers[0].charge(RUN, plan.event, 3, limit=10)
    assert agent.ranks[0].charged == 4
    assert rank.ask("bye 1 {}") == "ok"
    assert agent.ranks[0].charged == 1
    assert ledgers[0].charged(RUN) == 4
