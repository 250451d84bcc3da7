"""Pinned scores of the example photographs by the embedded model: its weights and its protocol decide them.

When they are meant to move, CHANGELOG.md says so and the numbers are measured again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import qmamba

EXAMPLES = Path(__file__).parent.parent / "examples"
SCORES = {
    "astronaut.jpg": 0.74792,
    "cameraman.jpg": 0.60939,
    "cat.jpg": 0.75912,
    "coffee.jpg": 0.79883,
    "rocket.jpg": 0.74191,
}


@pytest.fixture(scope="module")
def scorer():
    return qmamba.load("lqmamba-n")


def test_every_example_is_pinned():
    assert sorted(SCORES) == sorted(path.name for path in EXAMPLES.glob("*.jpg"))


@pytest.mark.parametrize("name", SCORES)
def test_scores_have_not_moved(name, scorer):
    assert scorer.score(EXAMPLES / name) == pytest.approx(SCORES[name], abs=1e-4)
