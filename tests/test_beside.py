"""What is done beside something else: it is done at the end, and no error is lost."""

import contextlib
import threading

import numpy as np
import openmm
import pytest

from openmm_lsd import LSDIntegrator
from openmm_lsd.core.beside import Beside
from openmm_lsd.core.jacobian import JacobianEstimate
from openmm_lsd.targets import ContextTarget, FunctionTarget
from openmm_lsd.targets.system import SystemTarget

ORIGIN = np.zeros((3, 3))


def oscillator(stiffness=1000.0):
    system, force = openmm.System(), openmm.CustomExternalForce(f"{stiffness / 2}*(x*x+y*y+z*z)")
    for index in range(3):
        system.addParticle(12.0)
        force.addParticle(index)
    system.addForce(force)
    return system


def test_it_is_done_in_another_thread_by_the_end():
    go = threading.Event()

    def work():
        assert go.wait(5.0)
        return threading.get_ident()

    with Beside(work) as beside:
        assert beside.result is None
        go.set()
    assert beside.result not in (None, threading.get_ident())


def test_nothing_to_do():
    with Beside(None) as beside:
        pass
    assert beside.result is None


def fail():
    raise ZeroDivisionError("beside")


def test_its_error_is_raised():
    with pytest.raises(ZeroDivisionError, match="beside"), Beside(fail):
        pass


def test_the_error_of_the_block_comes_first_and_only_after_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt), Beside(lambda: done.append(1)):
        raise KeyboardInterrupt
    assert done
    with pytest.raises(KeyError), Beside(fail):
        raise KeyError


@pytest.mark.parametrize(
    ("target", "busy"),
    [
        (lambda: SystemTarget(oscillator(), ORIGIN, platform="Reference"), True),
        (lambda: ContextTarget(oscillator(), platforms={"CPU": {"Threads": "1"}}), True),
        (lambda: FunctionTarget(lambda positions: -positions), False),
    ],
)
def test_who_keeps_the_cores_busy(target, busy):
    with contextlib.closing(target()) as made:
        assert made.keeps_cores_busy is busy


@pytest.mark.parametrize("platform", ["Reference", "function"])
def test_an_integrator_learns_beside_a_target_that_waits(platform, monkeypatch):
    """And not beside one that computes on all cores."""
    threads = set()
    learn = JacobianEstimate.learn

    def watched(self, *lesson):
        threads.add(threading.current_thread() is threading.main_thread())
        return learn(self, *lesson)

    monkeypatch.setattr(JacobianEstimate, "learn", watched)
    monkeypatch.setattr("openmm_lsd.core.lessons.LEARNED_AT_ONCE", 0)
    system = oscillator()
    target = FunctionTarget(lambda positions: -1000.0 * positions)
    options = {} if platform == "Reference" else {"target": target}
    integrator = LSDIntegrator(300, 1, 0.001, oscillator(900.0), windowLength=4, **options)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(ORIGIN)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(60)
    assert threads == {platform == "Reference"}
