"""Fixed random programs agree with brute force; `make fuzz` tries as many others as wanted."""

import pytest

import comparison
import fuzz

BATCH, COUNT = 15, 75


@pytest.mark.parametrize("first", range(0, COUNT, BATCH))
def test_engine_programs(first):
    outcomes = [comparison.run(seed) for seed in range(first, first + BATCH)]
    wrong = [fuzz.describe(*found) for found in outcomes if found[1].kind in fuzz.FAILURES]
    assert not wrong, "\n".join(wrong)
    compared = sum(outcome.kind == "agrees" for _, outcome in outcomes)
    assert compared >= BATCH * 0.6, "too many programs are refused, too large or without sites"
