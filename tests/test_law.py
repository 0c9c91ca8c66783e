"""The joint law of positions and velocities, at two times, is that of the plain scheme.

Runs of a small, skewed, stiff molecule with a bad draft: about 70 moments of 5000 independent runs
against 60,000 of the plain scheme. Six sound ensembles, so m is about 420; at z = 5.5 a false alarm
has probability 420 * 3.8e-8 < 1e-4. What is seen: a shift of a component's mean by 0.08 of its
standard deviation, a change of a variance by about 11 %.

The time step is such that h^2 times the gradient of the discrepancy over the mass is of order one.
There a correction that peeks at the noise of its own step changes the law; at small steps it would
not be seen. The broken samplers below must be caught: they keep these tests honest.
"""

import numpy as np
import pytest
from law import TEMPERATURE, TodaMolecule, plain_ensemble, speculative_ensemble, worst, z_scores

import openmm_lsd.sampler
from openmm_lsd.sampler import SpeculativeSampler
from openmm_lsd.schemes import ABOBA, Middle

RUNS, REFERENCE_RUNS = 5_000, 60_000
STEPS = (3, 6)
Z = 5.5

STEP_SIZE = 0.02  # ps
TARGET = TodaMolecule(stiffness=1.2 / STEP_SIZE**2, coupling=0.2 / STEP_SIZE**2)
# Half as stiff as the target and pulling elsewhere, without its coupling.
SOFT = TodaMolecule(stiffness=0.5 / STEP_SIZE**2, coupling=0.0)

SCHEMES = [Middle, ABOBA]


def draft(positions):
    return SOFT.forces(positions - 0.1 * SOFT.length)


def pushing_draft(positions):
    """A draft whose discrepancy points one way, for samplers without corrections."""
    forces = draft(positions)
    forces[0, 0] += 0.6 * TARGET.stiffness * TARGET.length
    return forces


def make_scheme(kind):
    return kind(TEMPERATURE, 1.0 / STEP_SIZE, STEP_SIZE)


@pytest.fixture(scope="module")
def reference():
    """The plain ensemble of each scheme."""
    rng = np.random.default_rng(11)
    starts = TARGET.starts(REFERENCE_RUNS, rng)
    return {
        kind: plain_ensemble(make_scheme(kind), TARGET.forces, TARGET.masses, starts, STEPS, 12)
        for kind in SCHEMES
    }


def ensemble(kind, target=TARGET.forces, draft=draft, seed=13, **options):
    starts = TARGET.starts(RUNS, np.random.default_rng(seed))
    return speculative_ensemble(
        make_scheme(kind), target, draft, TARGET.masses, starts, STEPS, seed, **options
    )


class ConstantOffset(SpeculativeSampler):
    def __init__(self, *args):
        super().__init__(*args, correction="constant")


class NoCorrection(SpeculativeSampler):
    def __init__(self, *args):
        super().__init__(*args, correction="none")


def failing_in_the_window(positions):
    """Fails where the first particle is on one side, but never at the first site, which is real."""
    forces = TARGET.forces(positions)
    far = positions[1:, 0, 0] > 0.0
    forces[1:][far] = np.nan
    return forces


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("sampler_class", [SpeculativeSampler, ConstantOffset])
def test_law_is_that_of_the_plain_scheme(kind, sampler_class, reference):
    states, rate = ensemble(kind, sampler_class=sampler_class)
    assert 0.15 < rate < 0.85, "the draft must be bad, but not so bad that nothing is accepted"
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", SCHEMES)
def test_law_survives_failing_sites(kind, reference):
    states, _ = ensemble(
        kind, target=failing_in_the_window, draft=pushing_draft, sampler_class=NoCorrection
    )
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


class PeekingSampler(SpeculativeSampler):
    """Corrects a step with the discrepancy of the next site, which contains the step's noise."""

    def _next_corrections(self, discrepancies, committed):
        corrections = super()._next_corrections(discrepancies, committed)
        kept = discrepancies[committed + 1 :]
        corrections[: len(kept)] = kept
        return corrections


class PlainBeforeFailingSite(NoCorrection):
    """Takes the noise untransported where the next site has failed: a choice made by that noise."""

    def _commit(self, window, target_forces, noise, removals):
        length, self.window = self.window, len(target_forces)
        try:
            return super()._commit(window, target_forces, noise, removals)
        finally:
            self.window = length


@pytest.mark.parametrize("kind", SCHEMES)
def test_peeking_correction_is_caught(kind, reference):
    states, _ = ensemble(kind, sampler_class=PeekingSampler)
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", SCHEMES)
def test_noise_chosen_by_a_failing_site_is_caught(kind, reference):
    states, _ = ensemble(
        kind,
        target=failing_in_the_window,
        draft=pushing_draft,
        sampler_class=PlainBeforeFailingSite,
    )
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", SCHEMES)
def test_missing_transport_is_caught(kind, reference, monkeypatch):
    monkeypatch.setattr(
        openmm_lsd.sampler, "transport", lambda noise, shift, log_uniform: (noise, True)
    )
    states, _ = ensemble(kind)
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"
