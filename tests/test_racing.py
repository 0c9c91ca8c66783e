"""Which way is fastest, on a clock that the test drives."""

import pytest

import openmm_lsd.racing
from openmm_lsd.racing import race


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, as a list of one number."""
    now = [0.0]
    monkeypatch.setattr(openmm_lsd.racing, "perf_counter", lambda: now[0])
    return now


def runner(clock, durations):
    """A function that takes, at each call for a way, the next of that way's durations."""
    left = {way: iter(times) for way, times in durations.items()}
    counts = dict.fromkeys(durations, 0)

    def run(way):
        clock[0] += next(left[way])
        counts[way] += 1

    return run, counts


def test_the_median_counts_and_not_the_shortest_nor_the_warm_up(clock):
    noisy = [0.2, 0.2] + [0.2, 0.5, 0.5] * 3
    steady = [9e-1, 9e-1] + [0.4] * 9
    medians = race(runner(clock, {"noisy": noisy, "steady": steady})[0], ["noisy", "steady"])
    assert medians == {"noisy": pytest.approx(0.5), "steady": pytest.approx(0.4)}


def test_a_hopeless_way_is_dropped_early(clock):
    run, counts = runner(clock, {"fast": [0.11] * 11, "slow": [0.3] * 11})
    assert race(run, ["slow", "fast"]) == {"fast": pytest.approx(0.11)}
    assert counts == {"fast": 11, "slow": 5}


def test_threads_of_the_way_before_do_not_count(clock):
    """What is short is run twice at a time."""
    run, counts = runner(clock, {"spins": [0.05] * 22, "suffers": [0.09, 0.04] * 11})
    medians = race(run, ["spins", "suffers"])
    assert medians == {"spins": pytest.approx(0.05), "suffers": pytest.approx(0.04)}
    assert counts == {"spins": 22, "suffers": 22}


def test_a_slow_function_is_tried_once(clock):
    run, counts = runner(clock, {"a": [8.0] * 11, "b": [7.0] * 11})
    assert race(run, ["a", "b"]) == {"a": pytest.approx(8.0), "b": pytest.approx(7.0)}
    assert counts == {"a": 1, "b": 1}
