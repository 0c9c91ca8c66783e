"""The joint law of positions and velocities, at two times, is that of the plain scheme.

Runs of a small, skewed, stiff molecule with a bad draft: about 70 moments of 4000 independent runs
against 60,000 of the plain scheme. Eight sound ensembles, so m is about 560; at z = 5.5 a false
alarm has probability 560 * 3.8e-8 < 1e-4. What is seen: a shift of a component's mean by 0.09 of
its standard deviation, a change of a variance by about 13 %.

The time step is such that h^2 times the gradient of the discrepancy over the mass is of order one.
There a correction that peeks at the noise of its own step changes the law; at small steps it would
not be seen. The broken samplers below must be caught: they keep these tests honest.
"""

import numpy as np
import pytest
from law import (
    TEMPERATURE,
    Caught,
    TodaMolecule,
    plain_ensemble,
    speculative_ensemble,
    worst,
    z_scores,
)

from openmm_lsd.core import correctors, jumps
from openmm_lsd.core.correctors import Following
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.core.jumps import hold_outliers
from openmm_lsd.core.schemes import ABOBA, Middle
from openmm_lsd.drafts.nativeengine import NativeEngine

RUNS, REFERENCE_RUNS = 4_000, 60_000
STEPS = (3, 6)
Z = 5.5

STEP_SIZE = 0.02  # ps
TARGET = TodaMolecule(stiffness=1.2 / STEP_SIZE**2, coupling=0.2 / STEP_SIZE**2)
# Half as stiff as the target and pulling elsewhere, without its coupling.
SOFT = TodaMolecule(stiffness=0.5 / STEP_SIZE**2, coupling=0.0)

# Where corrections are good, and one that is dropped makes a difference.
MILD = TodaMolecule(stiffness=0.4 / STEP_SIZE**2, coupling=0.1 / STEP_SIZE**2)
MILD_SOFT = TodaMolecule(stiffness=0.2 / STEP_SIZE**2, coupling=0.0)

SCHEMES = [Middle, ABOBA]


def draft(positions):
    return SOFT.forces(positions - 0.1 * SOFT.length)


def pushing_draft(positions):
    """A draft whose discrepancy points one way, for samplers without corrections."""
    forces = draft(positions)
    forces[0, 0] += 0.6 * TARGET.stiffness * TARGET.length
    return forces


def mild_draft(positions):
    forces = MILD_SOFT.forces(positions)
    forces[0, 0] += 1.5 * MILD.stiffness * MILD.length
    return forces


def make_scheme(kind):
    return kind(TEMPERATURE, 1.0 / STEP_SIZE, STEP_SIZE)


def plain(molecule):
    """The plain ensemble of each scheme."""
    starts = molecule.starts(REFERENCE_RUNS, np.random.default_rng(11))
    return {
        kind: plain_ensemble(make_scheme(kind), molecule.forces, molecule.masses, starts, STEPS, 12)
        for kind in SCHEMES
    }


@pytest.fixture(scope="module")
def reference():
    return plain(TARGET)


@pytest.fixture(scope="module")
def mild_reference():
    return plain(MILD)


def ensemble(kind, molecule=TARGET, target=None, draft=draft, seed=13, runs=RUNS, **options):
    starts = molecule.starts(runs, np.random.default_rng(seed))
    target = target or molecule.forces
    return speculative_ensemble(
        make_scheme(kind), target, draft, molecule.masses, starts, STEPS, seed, **options
    )


class NativeCommit(NativeEngine):
    """Of drafts in Python."""

    draft = NumpyEngine.draft


KINDS = {
    "secant": {},
    "native": {"engine": NativeCommit},
    "constant offset": {"correction": "constant"},
}


def failing_in_the_window(positions):
    """Fails where the first particle is on one side, but never at the first site, which is real."""
    forces = TARGET.forces(positions)
    far = positions[1:, 0, 0] > 0.0
    forces[1:][far] = np.nan
    return forces


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_law_is_that_of_the_plain_scheme(kind, options, reference):
    states, rate = ensemble(kind, **options)
    assert 0.15 < rate < 0.85, "the draft must be bad, but not so bad that nothing is accepted"
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", [Middle])
def test_law_survives_failing_sites(kind, reference):
    states, _ = ensemble(kind, target=failing_in_the_window, draft=pushing_draft, correction="none")
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", [ABOBA])
def test_law_survives_replaced_corrections(kind, mild_reference, monkeypatch):
    replaced = []

    def counting(discrepancies, *limits):
        result = hold_outliers(discrepancies, *limits)
        replaced.append((result != discrepancies).any(axis=(1, 2)).sum())
        return result

    monkeypatch.setattr(jumps, "MAX_JUMP", 0.1)
    monkeypatch.setattr(correctors, "hold_outliers", counting)
    states, rate = ensemble(kind, MILD, draft=mild_draft)
    assert 0.15 < rate < 0.85 and np.mean(replaced) > 1.0
    name, score = worst(z_scores(states, mild_reference[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


class Peeking(Following):
    """Corrects a step with the discrepancy of the next site, which contains the step's noise."""

    def next(self, measured, window, ahead):
        corrections = super().next(measured, window, ahead)
        kept = measured.discrepancies[measured.committed + 1 :]
        corrections.forces[: len(kept)] = kept
        return corrections


class JudgedByTheNextRow(Following):
    """A correction is dropped if the one after it is lower: a choice made by the step's noise."""

    def _held(self, measured):
        _, largest = super()._held(measured)
        discrepancies, judged = measured.discrepancies, measured.discrepancies.copy()
        for row in range(measured.committed, len(judged) - 1):
            if discrepancies[row + 1, 0, 0] < discrepancies[row, 0, 0]:
                judged[row, 0] = 0.0
        return judged, largest


class PlainBeforeFailingSite(NumpyEngine):
    """Takes the noise untransported where the next site has failed: a choice made by that noise."""

    def commit(self, state, window, target_forces, draws):
        cut = type(draws)(*(each[: len(target_forces)] for each in draws))
        return super().commit(state, window, target_forces, cut)


class WithoutTransport(NumpyEngine):
    """Accepts every step with the noise of the draft."""

    def transport(self, noise, shift, log_uniform):
        return noise, True


@pytest.mark.parametrize("kind", [Middle])
def test_peeking_correction_is_caught(kind, reference):
    states, _ = ensemble(kind, correction=Peeking, until=Caught(reference[kind], Z))
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", [ABOBA])
def test_correction_judged_by_the_next_row_is_caught(kind, mild_reference):
    until = Caught(mild_reference[kind], Z)
    states, _ = ensemble(kind, MILD, draft=mild_draft, correction=JudgedByTheNextRow, until=until)
    name, score = worst(z_scores(states, mild_reference[kind]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", [Middle])
def test_noise_chosen_by_a_failing_site_is_caught(kind, reference):
    states, _ = ensemble(
        kind,
        target=failing_in_the_window,
        draft=pushing_draft,
        correction="none",
        engine=PlainBeforeFailingSite,
        until=Caught(reference[kind], Z),
    )
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", [ABOBA])
def test_missing_transport_is_caught(kind, reference):
    states, _ = ensemble(kind, engine=WithoutTransport, until=Caught(reference[kind], Z))
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"
