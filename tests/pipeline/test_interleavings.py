"""Commit, crash, resume and gc in every interleaving that Hypothesis can think of, on the product's own functions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.pipeline import protocol
from tests.pipeline.protocol import INPUTS
from tests.pipeline.stepping import FATES, PLACE, Actor, SteppedStore, World

ACTORS_MAX = 5
STOPS: dict[str, Callable[[str], bool]] = {
    "call": lambda step: True,
    "object": lambda step: step == "put_file tokens",
    "record": lambda step: step in ("put_if_absent commits", "put commits"),
    "reading": lambda step: step == "read commits",
    "listing": lambda step: step in ("list tokens", "list s3:"),
    "deletion": lambda step: step == "delete tokens",
    "end": lambda step: False,
}
"""Where an actor comes to stand: right before such a call."""

CHANGES_MAX = 4
ACTS = 16
WALKS_MAX = 300
TO_THE_END_MAX = 400
SEEN: Counter[str] = Counter()
"""What was done in all examples."""

Body = tuple[str, Callable[[SteppedStore], object]]
RUN: Body = ("run", lambda store: protocol.run(store, redo=False))
REDO: Body = ("run --redo-changed", lambda store: protocol.run(store, redo=True))
ATTEMPT: Body = ("attempt", lambda store: protocol.attempt(store, protocol.shard_of(store.world, INPUTS[0])))
GC: Body = ("gc", protocol.gc)

CHOICES: dict[str, Sequence[Any]] = {
    "deed": ["move"] * 9 + ["change", "land"],
    "which": range(ACTORS_MAX + 1),
    "body": [ATTEMPT, ATTEMPT, GC, GC, RUN, REDO, REDO],
    "stop": [*STOPS, "record", "end", "end"],
    "fate": ["do"] * 6 + [*FATES, "crash"],
}
"""What comes next; the more often named, the likelier."""


class Interleavings(RuleBasedStateMachine):
    """Actors on one job; exactly one moves, one store call a step."""

    def __init__(self) -> None:
        super().__init__()
        self._patched = ExitStack()
        self._patched.enter_context(protocol.stepped())
        self.world: World = protocol.new_world()
        self.actors: list[Actor] = []

    @initialize(num_inputs=st.sampled_from((1, 1, 1, 2)))
    def begin(self, num_inputs: int) -> None:
        for uri in INPUTS[:num_inputs]:
            protocol.change_input(self.world, uri)

    @rule(**{name: st.sampled_from(choices) for name, choices in CHOICES.items()})
    def act(self, deed: str, which: int, body: Body, stop: str, fate: str) -> None:
        """One rule, since Hypothesis would choose among several without weights."""
        if deed == "change" and self.world.seen["input changed"] < CHANGES_MAX:
            protocol.change_input(self.world, min(self.world.inputs))
            self.world.seen["input changed"] += 1
        elif deed == "land" and self.world.pending:
            self.world.pending.pop(which % len(self.world.pending))()
            self.world.seen["late request"] += 1
        else:
            if which >= len(self.live) and len(self.live) < ACTORS_MAX:
                self.actors.append(Actor(self.world, *body))
            self.move(self.live[min(which, len(self.live) - 1)], stop, fate)

    def move(self, actor: Actor, stop: str, fate: str) -> None:
        """All calls up to the stop, and that one too if it has a fate; who crashes never moves again."""
        actor.move()
        while not (actor.ended or self.world.broken or STOPS[stop](actor.step)):
            actor.move()
        if fate == "crash" and not actor.ended:
            actor.halt()
            self.world.seen["crash"] += 1
        elif fate != "do" and not actor.ended:
            actor.move(fate)

    @invariant()
    def nothing_is_broken(self) -> None:
        assert not self.world.broken, self.world.broken

    def teardown(self) -> None:
        try:
            if not self.world.broken:
                self.end()
        finally:
            for actor in self.live:
                actor.halt()
            self._patched.close()
            SEEN.update(self.world.seen)

    def end(self) -> None:
        """All end, what was under way lands, and the job runs once more."""
        for _ in range(TO_THE_END_MAX):
            for actor in self.live:
                actor.move()
        assert not self.live, f"without end: {[(actor.name, actor.step) for actor in self.live]}"
        for deed in self.world.pending:
            deed()
        self.nothing_is_broken()
        report = protocol.run(SteppedStore(self.world), redo=True)
        self.nothing_is_broken()
        assert (report.state, report.orphans) == ("complete", ())
        current = {protocol.shard_of(self.world, uri) for uri in self.world.inputs}
        assert {(r.input.uri, r.input.etag) for r in self.world.commits()} == {(s.uri, s.etag) for s in current}
        assert len(self.world.commits()) == len(self.world.inputs)
        assert self.world.tokens() == self.world.named()
        before = {uri: data for uri, data in self.world.objects.items() if not PLACE.path(uri).startswith(".probe-")}
        protocol.gc(SteppedStore(self.world))
        assert self.world.objects == before, "gc finds nothing in a complete job but probes of the dead"

    @property
    def live(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.ended]


def walk(rng: random.Random) -> None:
    """One random example: evenly drawn, where Hypothesis likes to repeat itself; it finds rare ones sooner."""
    machine = Interleavings()
    try:
        machine.begin(num_inputs=rng.choice((1, 1, 1, 2)))
        for _ in range(ACTS):
            machine.act(**{name: rng.choice(choices) for name, choices in CHOICES.items()})
            machine.nothing_is_broken()
    finally:
        machine.teardown()


def walks(num: int) -> None:
    for seed in range(num):
        walk(random.Random(seed))


def test_no_interleaving_loses_or_doubles_a_shard() -> None:
    """Hypothesis's examples, which it makes small when one fails."""
    machine = settings(
        max_examples=40,
        derandomize=True,
        database=None,
        deadline=None,
        stateful_step_count=ACTS,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Interleavings, settings=machine)


def test_no_random_walk_does() -> None:
    SEEN.clear()
    walks(60)
    for what in (
        "ours", "another's", "AttemptFencedError", "StoreUnavailableError", "ObjectChangedError", "gc fenced",
        "gc removed", "fence over a record", "commit", "late request", "crash", "input changed", "token object deleted",
        "run complete", "run incomplete", *(f"fate {fate}" for fate in FATES),
    ):  # fmt: skip
        assert SEEN[what] >= 3, f"{what}: {SEEN}"


@pytest.mark.parametrize("name", protocol.BROKEN)
def test_a_protocol_that_is_wrong_is_found_out(name: str) -> None:
    with protocol.broken(name), pytest.raises(AssertionError, match=r"[.]parquet|[.]json|is committed"):
        walks(WALKS_MAX)
