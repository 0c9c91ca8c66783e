"""Who says that a run is periodic. A lattice whose forces are others without its box."""

import logging

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from particles import COLD, REFERENCE, assert_close

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.contexts import periodicity
from openmm_lsd.targets import BatchedTarget, FunctionTarget, ModuleTarget

EDGE = 0.75  # nm, of 27 atoms
BOX = EDGE * np.eye(3)
GRID = 0.25 * np.stack(np.meshgrid(*3 * [np.arange(3.0)], indexing="ij"), axis=-1).reshape(-1, 3)
POSITIONS = GRID + 0.01 * np.random.default_rng(5).standard_normal(GRID.shape)
VELOCITIES = np.random.default_rng(6).normal(0.0, 0.3, GRID.shape)
VELOCITIES -= VELOCITIES.mean(axis=0)
MASS = app.element.argon.mass
HEIGHT, WIDTH, CUTOFF = 400.0, 0.12, 0.3  # kJ/mol, nm, nm: beyond the nearest neighbours
OTHER_BOX = 0.8 * np.eye(3)


class Lattice(BatchedTarget):
    """Soft spheres, with their nearest images and a cutoff if there is a box."""

    def evaluate(self, positions, box=None):
        vectors = positions[:, :, None] - positions[:, None]
        if box is not None:
            vectors = vectors - np.round(vectors / np.diag(box)) * np.diag(box)
        squares = (vectors**2).sum(-1)
        energies = HEIGHT * np.exp(-squares / WIDTH**2)
        if box is not None:
            energies = np.where(squares < CUTOFF**2, energies, 0.0)
        forces = (2.0 / WIDTH**2) * (energies[..., None] * vectors).sum(axis=2)
        return 0.5 * energies.sum(axis=(1, 2)), forces


def particles(box=None):
    """A System without forces."""
    system = openmm.System()
    for _ in POSITIONS:
        system.addParticle(MASS)
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    return system


def topology_of(box=None):
    topology = app.Topology()
    residue = topology.addResidue("AR", topology.addChain())
    for index in range(len(POSITIONS)):
        topology.addAtom(f"A{index}", app.element.argon, residue)
    if box is not None:
        topology.setPeriodicBoxVectors(box * unit.nanometer)
    return topology


def pairs(periodic, box=None):
    """A draft with nonbonded forces."""
    system = particles(box)
    force = openmm.CustomNonbondedForce(f"{HEIGHT}*exp(-(r/{WIDTH})^2)")
    for _ in POSITIONS:
        force.addParticle([])
    methods = openmm.CustomNonbondedForce
    force.setNonbondedMethod(methods.CutoffPeriodic if periodic else methods.NoCutoff)
    force.setCutoffDistance(CUTOFF)
    system.addForce(force)
    return system


def bonds():
    """A draft that does not say whether there is a box."""
    system = particles()
    force = openmm.HarmonicBondForce()
    force.addBond(0, 1, 0.25, 100.0)
    system.addForce(force)
    return system


@pytest.fixture
def run(simulate, state_of):
    """Function: the state after 20 steps without noise."""

    def make(system, integrator, box=None):
        simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
        if box is not None:
            simulation.context.setPeriodicBoxVectors(*box)
        simulation.step(20)
        return state_of(simulation)

    return make


def plain():
    return openmm.LangevinMiddleIntegrator(0, 1, 0.002)


def lsd(**keywords):
    settings = {"windowLength": 5, "draftPlatform": "Reference", "target": Lattice(), **keywords}
    return LSDIntegrator(COLD, 1, 0.002, settings.pop("draft", "auto"), **settings)


def by_openmm(periodic):
    """The lattice as a force of OpenMM's own, which knows nothing of this package."""
    return pairs(periodic, BOX)


PERIODIC = {  # what was given: System, its Context's box, arguments of LSDIntegrator
    "System": (BOX, None, {}),
    "System and Topology": (BOX, None, {"topology": topology_of(BOX)}),
    "System, and a Topology without": (BOX, None, {"topology": topology_of()}),
    "Context": (None, BOX, {}),
    "Context, whose box is no longer the Topology's": (
        OTHER_BOX,
        BOX,
        {"topology": topology_of(OTHER_BOX)},
    ),
    "System, with a periodic draft": (BOX, None, {"draft": pairs(True, BOX)}),
    "System, with a draft that does not say": (BOX, None, {"draft": bonds()}),
}


@pytest.mark.parametrize("given", PERIODIC)
def test_a_crystal_is_a_crystal(run, given):
    """OpenMM's own pair force is the reference."""
    box, of_context, arguments = PERIODIC[given]
    expected = run(by_openmm(True), plain())
    wrong = run(by_openmm(False), plain())
    assert np.abs(wrong.positions - expected.positions).max() > 1e-3
    assert_close(run(particles(box), lsd(**arguments), of_context), expected, 1e-7)


def test_a_cluster_is_a_cluster(run):
    expected = run(by_openmm(False), plain())
    for arguments in ({}, {"topology": topology_of()}, {"draft": pairs(False)}):
        assert_close(run(particles(), lsd(**arguments)), expected, 1e-7)
    no_crystal = topology_of(0.1 * np.eye(3))  # as PDB files have it, by convention
    assert_close(run(particles(), lsd(topology=no_crystal)), expected, 1e-7)


CONTRADICTIONS = {  # box of the System, arguments, words
    "Topology": (None, {"topology": topology_of(BOX)}, ["no periodic box", "the Topology"]),
    "another box": (
        OTHER_BOX,
        {"topology": topology_of(BOX)},
        ["0.8 x 0.8 x 0.8 nm", "the Topology has one of 0.75 x 0.75 x 0.75 nm"],
    ),
    "periodic draft": (
        None,
        {"draft": pairs(True, BOX)},
        ["no periodic box", "the draft System is periodic", "0.75 x 0.75 x 0.75 nm"],
    ),
    "isolated draft": (
        BOX,
        {"draft": pairs(False)},
        ["0.75 x 0.75 x 0.75 nm", "the draft System's nonbonded forces are not periodic"],
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_name_both(simulate, refused, case):
    box, arguments, words = CONTRADICTIONS[case]
    simulation = simulate(particles(box), lsd(**arguments), POSITIONS, VELOCITIES)
    refused(simulation, ValueError, *words)


@pytest.mark.parametrize("source", ["System", "System with forces", "Topology"])
@pytest.mark.parametrize("periodic", [True, False])
def test_with_target_takes_the_box(run, source, periodic):
    box = BOX if periodic else None
    given = {
        "System": particles(box),
        "System with forces": pairs(periodic, BOX),  # which has a box, and uses it or not
        "Topology": topology_of(box),
    }[source]
    system = systems.with_target(given, Lattice())
    assert system.usesPeriodicBoundaryConditions() is periodic
    expected = run(by_openmm(periodic), plain())
    assert_close(run(system, plain()), expected, 1e-7)
    assert_close(run(system, lsd(target=None)), expected, 1e-7)


def test_virtual_sites_stay_virtual_sites():
    system = particles(BOX)
    system.setParticleMass(2, 0.0)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    assert systems.with_target(system, Lattice()).isVirtualSite(2)


def warned(caplog):
    text = " ".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    caplog.clear()
    return text


def test_a_target_that_takes_no_box_is_a_warning(simulate, caplog):
    module = torch.nn.Linear(3, 1, dtype=torch.float64)
    system = systems.with_target(topology_of(BOX), ModuleTarget(module))
    assert not system.usesPeriodicBoundaryConditions()
    assert "0.75 x 0.75 x 0.75 nm, and the target, a ModuleTarget, takes none" in warned(caplog)
    target = FunctionTarget(lambda positions: Lattice().evaluate(positions)[1])
    simulate(particles(BOX), lsd(target=target), POSITIONS, VELOCITIES).step(1)
    assert "the target, a FunctionTarget, takes none" in warned(caplog)
    simulate(particles(BOX), lsd(), POSITIONS, VELOCITIES).step(1)
    assert "takes none" not in warned(caplog)


def python_force(periodic):
    system = systems.with_target(topology_of(BOX), Lattice())
    system.getForce(0).setUsesPeriodicBoundaryConditions(periodic)
    return system


def test_forces_that_do_not_use_the_box_that_there_is(simulate, caplog):
    """Plain OpenMM runs it, so it is a warning."""
    for arguments, words in (
        ({"topology": topology_of(BOX)}, "the Topology has a periodic box of 0.75 x 0.75 x 0.75"),
        ({"draft": pairs(True, BOX)}, "the draft System is periodic"),
    ):
        for periodic in (True, False):
            integrator = lsd(target=None, **arguments)
            simulate(python_force(periodic), integrator, POSITIONS, VELOCITIES).step(1)
            text = warned(caplog)
            assert (words in text and "PythonForce" in text) is not periodic
    # A classical force field without a cutoff is meant as it is.
    integrator = lsd(target=None, topology=topology_of(BOX))
    simulate(pairs(False, BOX), integrator, POSITIONS, VELOCITIES).step(1)
    assert "isolated" not in warned(caplog)


def test_openmms_default_box_where_the_topology_has_another(simulate, caplog):
    system = particles()
    system.addForce(openmm.PythonForce(lambda state: (0.0, np.zeros((27, 3)))))
    system.getForce(0).setUsesPeriodicBoundaryConditions(True)
    integrator = lsd(target=None, topology=topology_of(BOX))
    simulate(system, integrator, POSITIONS, VELOCITIES).step(1)
    assert "default box of 2 x 2 x 2 nm" in warned(caplog)


class InBox(torch.nn.Module):
    def forward(self, positions: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
        angles = 6.283185307179586 * positions / torch.diagonal(box)
        return torch.cos(angles).sum(dim=(-2, -1))


class Anywhere(torch.nn.Module):
    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return positions.pow(2).sum(dim=(-2, -1))


def test_torchscript_files_that_take_a_box_get_it(tmp_path, caplog):
    files = {}
    for module in (InBox, Anywhere):
        files[module] = tmp_path / f"{module.__name__}.pt"
        torch.jit.script(module()).save(str(files[module]))
    system = systems.with_torch_force(topology_of(BOX), files[InBox])
    assert system.usesPeriodicBoundaryConditions() and not warned(caplog)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(POSITIONS)
    energy = context.getState(energy=True).getPotentialEnergy()._value
    assert energy == pytest.approx(np.cos(2 * np.pi * POSITIONS / EDGE).sum(), abs=1e-4)
    with pytest.raises(ValueError, match=r"InBox\.pt takes a box .* there is none"):
        systems.with_torch_force(topology_of(), files[InBox])
    assert not systems.with_torch_force(
        topology_of(BOX), files[Anywhere]
    ).usesPeriodicBoundaryConditions()
    assert "Anywhere.pt takes none" in warned(caplog)


def test_the_default_box_is_openmms():
    assert np.array_equal(periodicity.OPENMM_BOX, 2.0 * np.eye(3))
