"""The fuzz targets for a few seconds, always with the same inputs; `make fuzz` goes on with fresh ones."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.fuzz.targets import COUNTS, TARGETS

EXAMPLES = {
    "shards": 100,
    "config": 200,
    "listing": 250,
    "containers": 400,
    "sound": 100,
    "media": 150,
    "record": 200,
    "names": 200,
}
SHARES_MIN = {
    "shards whole": 0.2,
    "shards damaged": 0.2,
    "config taken": 0.02,
    "listing listed": 0.1,
    "containers MP3": 0.02,
    "containers OGG": 0.02,
    "sound clip": 0.1,
    "media walked clip": 0.1,
    "media refused": 0.1,
    "record taken": 0.05,
    "names understood": 0.01,
}
"""Of a target's inputs that come to this: what is always refused at the door tests nothing behind it."""


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_promise(name: str) -> None:
    profile = settings(
        max_examples=EXAMPLES[name],
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    COUNTS.clear()
    profile(TARGETS[name])()
    for outcome, share in SHARES_MIN.items():
        if outcome.startswith(name):
            num = sum(count for what, count in COUNTS.items() if what.startswith(outcome))
            assert num >= share * sum(COUNTS.values()), f"{outcome}: {num} of {COUNTS}"
