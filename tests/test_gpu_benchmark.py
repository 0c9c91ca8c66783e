"""gpu_benchmark.py on the CPU, and what targets copy to and from a device. No timings."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from openmm_lsd import systems
from openmm_lsd.targets import MACETarget, ModuleTarget, TorchForceTarget, TorchSimTarget
from openmm_lsd.targets.cudagraph import CUDAGraphed
from openmm_lsd.targets.module import ModuleTarget as Module
from openmm_lsd.targets.torchforce import Plan

ROOT = Path(__file__).resolve().parent.parent
BOX = 2.0 * np.eye(3)
STATES = 0.1 * np.random.default_rng(1).standard_normal((5, 4, 3))


def test_the_script_on_a_cpu(tmp_path):
    outfile = tmp_path / "gpu.json"
    command = [
        *(sys.executable, "benchmarks/gpu_benchmark.py", "--device", "cpu", "--profile"),
        *("--systems", "alanine_dipeptide", "--seconds", "1", "--warm-up", "20"),
        *("--equilibration", "20", "--batches", "1", "4", "--forms", "scripted", "static", "graph"),
        *("--windows", "4", "--outfile", str(outfile)),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr + result.stdout
    found = json.loads(outfile.read_text())
    assert {"processor", "openmm", "torch", "device", "openmmtorch"} <= set(found["machine"])
    system = found["systems"]["alanine_dipeptide"]
    assert system["atoms"] == 22 and "failed" not in system
    assert set(system["batch costs, ms"]) == {"scripted", "static"}
    assert all(set(costs) == {"1", "4"} for costs in system["batch costs, ms"].values())
    assert "CUDA device" in system["left out"]["graph"]
    assert any(name.startswith("PythonForce") for name in system["plain, ms per step"])
    rows = {row["run"]: row for row in system["rows"]}
    assert next(iter(rows)) == "plain" and rows["plain"]["ratio"] == 1
    assert {"LSD, auto draft, K auto", "LSD, force field (Reference), K = 4"} <= set(rows)
    fixed = rows["LSD, auto draft, K = 4"]
    assert 1 <= fixed["steps per round"] <= 4 and len(fixed["ratio quartiles"]) == 2
    clocked = system["profile"]["clock, ms per round"]
    assert set(clocked) == {"target", "draft", "learning", "overhead"}
    assert system["profile"]["profiler, per round"]["torch operators"]["count"] > 100
    assert "What a batch costs" in result.stdout and "by the clock" in result.stdout


def test_the_script_wants_a_card():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "benchmarks/gpu_benchmark.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2 and "--device cpu" in result.stderr


@pytest.mark.parametrize("name", ["alanine_dipeptide", "ibuprofen"])
def test_static_network_is_the_shipped_one(name):
    """To single precision; its shapes do not depend on the positions, also where atoms are far."""
    specification = importlib.util.spec_from_file_location(
        "gpu_benchmark", ROOT / "benchmarks" / "gpu_benchmark.py"
    )
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    shipped = torch.jit.load(str(ROOT / "systems" / name / f"{name}.pt")).eval()
    positions = np.array(systems.load(ROOT / "systems" / name).positions._value)
    noise = np.random.default_rng(1).standard_normal((3, *positions.shape))
    states = positions + 0.005 * noise
    states[1] *= 1.5  # fewer neighbours
    expected, found = (
        ModuleTarget(module, dtype=torch.float64).evaluate(states)
        for module in (shipped, script.StaticANI(shipped))
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=0.05)
    scale = np.sqrt(np.mean(expected[1] ** 2))
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-4 * scale)


def count_copies(monkeypatch):
    """Copies {'to', 'from'} a card that computes nothing: torch's device 'meta'."""
    counts = {"to": 0, "from": 0}
    make, take = torch.tensor, torch.Tensor.cpu

    def counted_make(*arguments, **options):
        made = make(*arguments, **options)
        counts["to"] += made.device.type == "meta"
        return made

    def counted_take(tensor):
        if tensor.device.type != "meta":
            return take(tensor)
        counts["from"] += 1
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(torch, "tensor", counted_make)
    monkeypatch.setattr(torch.Tensor, "cpu", counted_take)
    return counts


class InBox(torch.nn.Module):
    def forward(self, positions, box):
        return (positions.square().sum(-1).sum(-1)) * box.sum()


class Scaled(torch.nn.Module):
    def forward(self, positions, scale: torch.Tensor):
        return positions.square().sum(-1).sum(-1) * scale


def module_in_a_box():
    return ModuleTarget(InBox(), periodic=True, device="meta")


def torch_force():
    from openmmtorch import TorchForce

    force = TorchForce(torch.jit.script(Scaled()))
    force.addGlobalParameter("scale", 2.0)
    target = TorchForceTarget(force, "meta", torch.float32)
    target.plans[16] = Plan("batch", "scripted", 1, torch.get_num_threads())
    return target


def mace():
    pytest.importorskip("mace")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.r_max, self.atomic_numbers = 5.0, torch.tensor([1])

        def forward(self, graph, compute_force):
            x = graph["positions"] * self.weight
            energies = x.new_zeros(len(graph["ptr"]) - 1) + x.sum()
            return {"interaction_energy": energies, "forces": x}

    target = MACETarget(Model(), [1] * 4)
    target._device = torch.device("meta")
    target._model.to("meta")
    target._node_attributes = target._node_attributes.to("meta")
    return target


def torch_sim():
    interface = pytest.importorskip("torch_sim.models.interface")

    class Model(interface.ModelInterface):
        def __init__(self):
            super().__init__()
            self._device, self._dtype = torch.device("meta"), torch.float32
            self._compute_forces, self._compute_stress = True, False

        def forward(self, state):
            x = state.positions
            return {"energy": x.new_zeros(len(x) // 4), "forces": x}

    target = TorchSimTarget(Model(), [18] * 4)
    # The true one looks at what it is given, which this card does not allow.
    target._torch_sim = SimpleNamespace(SimState=SimpleNamespace)
    return target


@pytest.mark.parametrize(
    ("make", "box", "there"),
    [
        (module_in_a_box, BOX, 1),
        (torch_force, None, 1),
        (mace, None, 2),  # positions and what goes with them; pairs, which are integers
        (torch_sim, None, 1),
    ],
    ids=["module", "TorchForce", "MACE", "TorchSim"],
)
def test_one_copy_each_way_for_each_batch(make, box, there, monkeypatch):
    target = make()
    copies = count_copies(monkeypatch)
    target.evaluate(STATES, box)  # what is constant goes there once
    for _ in range(3):
        copies |= {"to": 0, "from": 0}
        energies, forces = target.evaluate(STATES + 0.01, box)
        assert copies == {"to": there, "from": 1}
        assert energies.shape == (5,) and forces.shape == STATES.shape
    if box is not None:
        copies["to"] = 0
        target.evaluate(STATES, 1.01 * box)
        assert copies["to"] == there + 1


def test_another_box_and_other_parameters_are_taken_over():
    target = ModuleTarget(InBox(), periodic=True)
    for scale in (1.0, 1.5, 1.0):
        energies = target.evaluate(STATES, scale * BOX)[0]
        np.testing.assert_allclose(energies, 6 * scale * np.square(STATES).sum(axis=(1, 2)))
    from openmmtorch import TorchForce

    force = TorchForce(torch.jit.script(Scaled()))
    force.addGlobalParameter("scale", 2.0)
    target = TorchForceTarget(force)
    for scale in (2.0, 3.0, 2.0):
        target.set_parameters({"scale": scale})
        energies = target.evaluate(STATES)[0]
        np.testing.assert_allclose(energies, scale * np.square(STATES).sum(axis=(1, 2)))


class FakeGraph:
    """Records what is called while it is open, and calls it again."""

    def __init__(self):
        self.again = None

    def replay(self):
        self.again()


def test_a_graph_is_recorded_once_for_each_shape(monkeypatch):
    """Without a card: the recording is a fake, how it is fed and read is not."""
    calls = []

    def compute(x):
        calls.append(tuple(x.shape))
        return x.square().sum(dim=(1, 2)), -2 * x

    class Stream:
        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def nothing(*arguments):
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nothing)
    monkeypatch.setattr(torch.cuda, "graph", nothing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    graphed = CUDAGraphed(compute, warmup=2, device=torch.device("cpu"))
    record = graphed._record

    def replayable(given):
        recording = record(given)

        def again():
            with torch.no_grad():
                for held, made in zip(recording.outputs, compute(*recording.inputs), strict=True):
                    held.copy_(made)

        recording.graph.again = again
        return recording

    monkeypatch.setattr(graphed, "_record", replayable)
    monkeypatch.setattr(Module, "_compute", lambda self, x: graphed(x))
    target = ModuleTarget(torch.nn.Identity())
    for count in (3, 5, 3):
        states = STATES[:count] + 0.1 * count
        energies, forces = target.evaluate(states)
        np.testing.assert_allclose(energies, np.square(states).sum(axis=(1, 2)))
        np.testing.assert_allclose(forces, -2 * states)
    assert len(calls) == 2 * (2 + 1) + 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a card")
def test_graphs_need_a_card():
    with pytest.raises(ValueError, match="CUDA graph needs a CUDA device"):
        ModuleTarget(InBox(), cuda_graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_module_by_a_cuda_graph():
    expected = ModuleTarget(InBox(), periodic=True).evaluate(STATES, BOX)
    target = ModuleTarget(
        InBox(), periodic=True, device="cuda", dtype=torch.float64, cuda_graph=True
    )
    for order in (slice(None), slice(None, None, -1), slice(2)):
        for values, all_values in zip(target.evaluate(STATES[order], BOX), expected, strict=True):
            np.testing.assert_allclose(values, all_values[order], rtol=1e-9, atol=1e-9)
