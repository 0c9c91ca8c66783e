"""Which way is fastest, on a clock that the test drives."""

import pytest

import openmm_lsd.contexts.autotune
from openmm_lsd.contexts.autotune import choose, recall, restore, snapshot, time_candidates


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, as a list of one number."""
    now = [0.0]
    monkeypatch.setattr(openmm_lsd.contexts.autotune, "perf_counter", lambda: now[0])
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
    medians = time_candidates(
        runner(clock, {"noisy": noisy, "steady": steady})[0], ["noisy", "steady"]
    )
    assert medians == {"noisy": pytest.approx(0.5), "steady": pytest.approx(0.4)}


def test_a_hopeless_way_is_dropped_early(clock):
    run, counts = runner(clock, {"fast": [0.11] * 11, "slow": [0.3] * 11})
    assert time_candidates(run, ["slow", "fast"]) == {"fast": pytest.approx(0.11)}
    assert counts == {"fast": 11, "slow": 5}


def test_threads_of_the_way_before_do_not_count(clock):
    """What is short is run twice at a time."""
    run, counts = runner(clock, {"spins": [0.05] * 22, "suffers": [0.09, 0.04] * 11})
    medians = time_candidates(run, ["spins", "suffers"])
    assert medians == {"spins": pytest.approx(0.05), "suffers": pytest.approx(0.04)}
    assert counts == {"spins": 22, "suffers": 22}


def test_a_slow_function_is_tried_once(clock):
    run, counts = runner(clock, {"a": [8.0] * 11, "b": [7.0] * 11})
    assert time_candidates(run, ["a", "b"]) == {"a": pytest.approx(8.0), "b": pytest.approx(7.0)}
    assert counts == {"a": 1, "b": 1}


@pytest.fixture
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(openmm_lsd.contexts.autotune, "_choices", {})


def test_the_choice_is_made_once_and_travels(clock, nothing_chosen):
    run, counts = runner(clock, {("a", 1): [0.3] * 12, ("b", 2): [0.2] * 12})
    assert choose("key", counts, run, what="test") == ("b", 2)
    before = dict(counts)
    assert choose("key", counts, run, what="test") == ("b", 2) and counts == before
    record = snapshot()
    assert not restore(record)
    assert restore({"key": ["a", 1]}) and recall("key", counts) == ("a", 1)
    assert recall("key", [("b", 2)]) is None and recall("another", counts) is None


def test_what_does_not_work_is_not_chosen(clock, nothing_chosen):
    def run(candidate):
        if candidate == "raises":
            raise RuntimeError("not here")
        clock[0] += {"fast but wrong": 0.1, "slow": 0.5}[candidate]

    names = ["raises", "fast but wrong", "slow"]
    assert choose("key", names, run, works=lambda each: each == "slow", what="test") == "slow"
    assert choose("other", names, run, what="test") == "fast but wrong"
    assert choose("none", ["raises"], run, what="test") is None


def test_a_slow_candidate_is_run_once(clock, nothing_chosen):
    run, counts = runner(clock, {"a": [3.0] * 12, "b": [2.5] * 12})
    assert choose("key", counts, run, what="test") == "b"
    assert counts == {"a": 1, "b": 1}
