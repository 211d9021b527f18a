"""LongCat passes what transformers asks of its own models; see `tests/transformers_checks`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.transformers_checks.fetch import NotFetchedError, fetch

ROOT = Path(__file__).parents[2]
CHECKS = ROOT / "tests" / "transformers_checks" / "longcat.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_longcat_passes_the_common_tests_of_transformers() -> None:
    try:
        path = fetch(ROOT / "build" / "transformers-checks")
    except NotFetchedError as error:
        pytest.skip(f"the tests of transformers could not be fetched: {error}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ROOT, "-p", "no:cacheprovider", CHECKS],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{path}", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed.group(1)) >= 60, "most of the common tests went away"
