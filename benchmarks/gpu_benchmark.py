"""LSD against plain dynamics on one GPU: the shipped networks, the water box, and where time goes.

For each system: what a batch costs in every form of the target; then LSD, with its draft on the
host and on the card, against plain dynamics in its fastest form on the same card, in alternating
blocks. Forms of the network:

    scripted    the shipped TorchScript file; the shapes in it depend on the neighbours, so that it
                waits for the card several times, and no CUDA graph can be made of it
    static      the same network with all pairs and triples, in shapes that do not change
    graph       'static' recorded as a CUDA graph
    compiled    'static' through torch.compile
    TorchForce  the file in a TorchForce, where openmmtorch loads

The water box has no network: its target is AMOEBA, by Contexts of OpenMM, one or several.
A form that does not work is left out, and why is printed. Without --device cuda nothing that is
measured says anything about GPUs; --device cpu is for trying the script.

On a machine with a GPU, from the repository:

    python benchmarks/gpu_benchmark.py --profile --outfile gpu.json

On one with torch, numpy and scipy, from which nothing can be downloaded (torch 2.11 for CUDA 13 and
Python 3.12, say), carry wheels. Here, with that Python and nanobind, scikit-build-core and openmm
in its environment; `pip download` wants the names of the packages that are missing there:

    pip wheel --no-build-isolation --no-deps -w .whl .
    pip download --no-deps --only-binary=:all: -d .whl openmm==8.6.1 OpenMM-CUDA-13==8.6.1 mdtraj

and there:

    python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl
    PYTHONPATH=/tmp/site python3 benchmarks/gpu_benchmark.py --profile --outfile $OUT/gpu.json
"""

import argparse
import dataclasses
import json
import logging
import time
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import unit

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.commands.benchmark import Kind, Way, machine, time_in_turns
from openmm_lsd.commands.case import Case, Run
from openmm_lsd.commands.timing import seconds_per_step
from openmm_lsd.contexts.checks import default_box
from openmm_lsd.targets import ContextTarget, ModuleTarget, TorchForceTarget
from openmm_lsd.targets.base import perturb
from openmm_lsd.targets.torchplugin import import_openmmtorch

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (1, 2, 4, 8, 16, 32, 64)
COMPILED = (1, 16)  # batches; each takes torch.compile a while
FORMS = ("scripted", "static", "graph", "compiled", "compiled graph", "TorchForce")
AGREE = 1e-3  # of the root mean square force, between forms
PROFILED_ROUNDS = 20


class StaticANI(torch.nn.Module):
    """The network of systems/make/train_mlip.py, from its TorchScript file, in static shapes.

    All pairs and triples of atoms take part; the cutoff function makes those that are too far
    apart count nothing, as in TorchANI, which leaves them out. Every atom multiplies with the
    weights of its element.

    Called with positions (B, N, 3) or (N, 3) in nm; gives energies (B,) or () in kJ/mol.
    """

    def __init__(self, scripted):
        super().__init__()
        part = scripted.model.potentials.nnp
        radial, angular = part.aev_computer.radial, part.aev_computer.angular
        for term in (radial, angular):
            if term.cutoff_fn.original_name != "CutoffSmooth" or term.cutoff_fn.order != 2:
                raise ValueError("the network has another cutoff function than TorchANI's smooth")
        self.units = (
            float(scripted.angstrom),
            float(scripted.shift),
            float(scripted.kilojoule_per_mole),
        )
        self.cutoffs = (float(radial.cutoff), float(angular.cutoff))
        numbers, known = scripted.numbers, scripted.model.atomic_numbers
        elements = (numbers[:, None] == known).long().argmax(1)
        count, kinds = len(numbers), len(known)
        everyone = torch.arange(count)
        others = torch.stack([everyone[everyone != i] for i in everyone])
        first, second = torch.triu_indices(count - 1, count - 1, 1)
        of_others = elements[others]
        pair_kinds = part.aev_computer.triu_index[of_others[:, first], of_others[:, second]]
        one_hot = torch.nn.functional.one_hot
        constants = {
            "others": others,
            "first": first,
            "second": second,
            "is_kind": one_hot(of_others, kinds).float(),
            "is_pair": one_hot(pair_kinds, kinds * (kinds + 1) // 2).float(),
            "eta": radial.eta,
            "shifts": radial.shifts,
            "angular_eta": angular.eta,
            "angular_shifts": angular.shifts,
            "sections": angular.sections,
            "zeta": angular.zeta,
        }
        state = dict(part.neural_networks.named_parameters())
        symbols = [name.split(".")[1] for name in state if name.endswith("layers.0.weight")]
        for layer in ("layers.0", "layers.1", "final_layer"):
            for kind in ("weight", "bias"):
                by_element = [state[f"atomics.{symbol}.{layer}.{kind}"] for symbol in symbols]
                name = f"{layer.replace('layers.', 'layer_')}_{kind}"
                constants[name] = torch.stack(by_element)[elements]
        for name, tensor in constants.items():
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        angstrom, shift, kilojoule_per_mole = self.units
        states = positions if positions.dim() == 3 else positions.unsqueeze(0)
        x = (states * angstrom).float()
        batch, count = x.shape[0], x.shape[1]
        others = x.index_select(1, self.others.flatten()).view(batch, count, count - 1, 3)
        vectors = others - x[:, :, None]
        distances = vectors.square().sum(-1).sqrt()
        factors = self.cutoff(distances, self.cutoffs[0])[..., None]
        near = torch.exp(-self.eta * (distances[..., None] - self.shifts) ** 2)
        radial = torch.einsum("bijr,ijs->bisr", 0.25 * near * factors, self.is_kind)

        a, b = vectors.index_select(2, self.first), vectors.index_select(2, self.second)
        r, s = distances.index_select(2, self.first), distances.index_select(2, self.second)
        angles = torch.acos(0.95 * (a * b).sum(-1) / (r * s))[..., None]
        turned = 2 * ((1 + torch.cos(angles - self.sections)) / 2) ** self.zeta
        mean = (0.5 * (r + s))[..., None]
        shells = torch.exp(-self.angular_eta * (mean - self.angular_shifts) ** 2)
        factors = (self.cutoff(r, self.cutoffs[1]) * self.cutoff(s, self.cutoffs[1]))[..., None]
        terms = (shells * factors)[..., :, None] * turned[..., None, :]
        angular = torch.einsum("bipt,ipq->biqt", terms.flatten(3), self.is_pair)

        features = torch.cat(
            [radial.reshape(batch, count, -1), angular.reshape(batch, count, -1)], dim=-1
        )
        gelu = torch.nn.functional.gelu
        hidden = gelu(self.layer(features, self.layer_0_weight, self.layer_0_bias))
        hidden = gelu(self.layer(hidden, self.layer_1_weight, self.layer_1_bias))
        atomic = self.layer(hidden, self.final_layer_weight, self.final_layer_bias)
        energies = atomic.sum(dim=(1, 2)).to(positions.dtype)
        energies = (energies + shift) * kilojoule_per_mole
        return energies if positions.dim() == 3 else energies[0]

    def cutoff(self, distances: torch.Tensor, longest: float) -> torch.Tensor:
        return torch.exp(1 - 1 / (1 - (distances / longest) ** 2).clamp(min=1e-10))

    def layer(
        self, values: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor
    ) -> torch.Tensor:
        return torch.einsum("bni,noi->bno", values, weights) + biases


class Clock:
    """What is printed, with the time; and how much of it is left."""

    def __init__(self, limit):
        self.begin, self.limit = time.perf_counter(), limit

    def left(self):
        return self.limit - (time.perf_counter() - self.begin)

    def say(self, line):
        print(f"[{time.perf_counter() - self.begin:6.1f} s] {line}", flush=True)


def why(error):
    """The last line of an exception, cut to one line of a terminal."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()[:160] if lines else ''}"


def without_gradients(module):
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


class NotHereError(Exception):
    """A form that is not for this machine."""


def load(name):
    """Topology, positions, draft and target System (None without openmmtorch), and the .pt file."""
    directory = ROOT / "systems" / name
    if (directory / "forcefields.json").exists():
        molecule = systems.load(directory)
        return molecule.topology, molecule.positions, molecule.draft, molecule.target, None
    stem = directory / name
    prmtop = openmm.app.AmberPrmtopFile(f"{stem}.prmtop")
    positions = openmm.app.AmberInpcrdFile(f"{stem}.inpcrd").positions
    draft = prmtop.createSystem(nonbondedMethod=openmm.app.NoCutoff, constraints=None)
    return prmtop.topology, positions, draft, None, f"{stem}.pt"


class NetworkForms:
    """Targets of a TorchScript file, made when they are asked for."""

    def __init__(self, file, draft, device):
        self.file, self.draft, self.device = file, draft, torch.device(device)
        self.compiled = None  # both forms of it share what torch.compile makes

    def scripted(self):
        return without_gradients(torch.jit.load(self.file, map_location=self.device).eval())

    def static(self):
        # Constants are put together on the CPU: float32 there and here.
        return StaticANI(torch.jit.load(self.file).eval()).to(self.device)

    def make(self, form):
        # Positions in double precision: energies are small differences of large numbers.
        options = {"device": self.device, "dtype": torch.float64}
        graphed = form in ("graph", "compiled graph")
        if graphed and self.device.type != "cuda":
            raise NotHereError("CUDA graphs need a CUDA device")
        if form == "TorchForce":
            try:
                return self.torch_force_target()
            except ImportError as error:
                raise NotHereError(str(error)) from error
        if form == "scripted":
            return ModuleTarget(self.scripted(), **options)
        if not form.startswith("compiled"):
            module = self.static()
        else:
            self.compiled = self.compiled or torch.compile(self.static(), dynamic=False)
            module = self.compiled
        return ModuleTarget(module, **options, cuda_graph=graphed)

    def torch_force_target(self):
        openmmtorch = import_openmmtorch()
        return TorchForceTarget(openmmtorch.TorchForce(self.file), self.device, torch.float64)

    def torch_force_systems(self):
        """Systems for plain dynamics with a TorchForce: {name: function that makes it}."""

        def system(static, graphs):
            openmmtorch = import_openmmtorch()
            module = torch.jit.script(self.static().cpu()) if static else torch.jit.load(self.file)
            properties = {"useCUDAGraphs": "true"} if graphs else {}
            result = systems.with_target(self.draft, _Nothing())
            result.removeForce(0)
            result.addForce(openmmtorch.TorchForce(module, properties))
            return result

        ways = {
            "TorchForce scripted": lambda: system(False, False),
            "TorchForce static": lambda: system(True, False),
        }
        if self.device.type == "cuda":
            ways["TorchForce static, CUDA graphs"] = lambda: system(True, True)
        return ways


class _Nothing(ModuleTarget):
    """Stands where a force is about to be put."""

    def __init__(self):
        super().__init__(torch.nn.Identity())


class ContextForms:
    """Targets of a System that OpenMM computes itself."""

    def __init__(self, system, draft, device):
        self.system, self.draft = system, draft
        self.platform = "CUDA" if device == "cuda" and cuda_platform()[0] else "Reference"

    def make(self, form):
        contexts = int(form.split()[0])
        return ContextTarget(self.system, platforms={self.platform: {}}, contexts=contexts)


def median_seconds(call, longest, least=3):
    """Of one call, after two that do not count; none is begun after ``longest`` seconds."""
    call()
    call()
    times = []
    begin = time.perf_counter()
    while len(times) < least or (time.perf_counter() - begin < longest and len(times) < 1000):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def batch_costs(forms, names, positions, box, args, clock):
    """{form: {batch: milliseconds}} of those that work, their targets, and why others do not."""
    costs, targets, skipped = {}, {}, {}
    reference = None
    for name in names:
        if clock.left() < 0.4 * args.limit:
            skipped[name] = "no time left"
            clock.say(f"  {name}: no time left")
            continue
        begin = time.perf_counter()
        own = {}
        try:
            target = forms.make(name)
            for batch in args.batches:
                if name.startswith("compiled") and batch not in args.compiled_batches:
                    continue
                states = perturb(positions, batch, 0.002)
                if name == "TorchForce":
                    target.prepare(positions, batch)
                forces = target.evaluate(states, box)[1]
                if reference is None:
                    reference = target
                elif batch in (1, 4) and not np.abs(
                    forces - (expected := reference.evaluate(states, box)[1])
                ).max() < AGREE * np.sqrt(np.mean(expected**2)):
                    raise ValueError(f"forces differ from those of {next(iter(costs))}")
                seconds = median_seconds(lambda s=states, t=target: t.evaluate(s, box), args.each)
                own[batch] = 1e3 * seconds
                if batch != args.batches[-1] and time.perf_counter() - begin > args.per_form:
                    clock.say(f"  {name}: larger batches left out, for lack of time")
                    break
        except Exception as error:  # torch, Triton, CUDA and OpenMM raise what they like
            skipped[name] = why(error)
            clock.say(f"  {name}: left out ({why(error)})")
        if own:
            costs[name], targets[name] = own, target
            line = "  ".join(f"{batch}: {cost:.3g}" for batch, cost in own.items())
            clock.say(f"  {name}: {line}")
    return costs, targets, skipped


def batch_table(costs, batches):
    """Milliseconds for a batch of each size, and states per second."""
    head = "".join(f"{f'B = {batch}':>9s}" for batch in batches)
    lines = [f"{'What a batch costs':27s}{head}"]
    for name, own in costs.items():
        for unit_name, value in (
            ("ms", lambda batch, own=own: f"{own[batch]:9.3g}"),
            ("states/s", lambda batch, own=own: f"{1e3 * batch / own[batch]:9.0f}"),
        ):
            cells = "".join(value(batch) if batch in own else f"{'-':>9s}" for batch in batches)
            lines.append(f"{name:18s}{unit_name:9s}{cells}")
            name = ""
    return "\n".join(lines)


def plain_runs(case, forms, costs, targets, platforms, clock):
    """{name: Run} of the ways to run plain dynamics, that work."""
    ways = {}
    if isinstance(forms, ContextForms):
        ways["OpenMM"] = lambda: case.target
    else:
        # A step needs one state: the fastest forms for one.
        fastest = sorted(costs, key=lambda name: costs[name].get(1, np.inf))[:2]
        for name in fastest:
            if name != "TorchForce":
                ways[f"PythonForce {name}"] = lambda name=name: systems.with_target(
                    case.draft, targets[name]
                )
        try:
            import_openmmtorch()
            ways |= forms.torch_force_systems()
        except ImportError as error:
            clock.say(f"  no TorchForce: {why(error)}")
    runs, skipped = {}, {}
    for name, make in ways.items():
        for platform in platforms:
            if isinstance(forms, ContextForms) and platform != forms.platform:
                continue
            label = f"{name}, {platform}"
            try:
                of_its_own = dataclasses.replace(case, target=make())
                run = of_its_own.plain(platform)
                run.step(2)
                runs[label] = run
            except Exception as error:
                skipped[label] = why(error)
                clock.say(f"  {label}: left out ({why(error)})")
    if not runs:
        raise RuntimeError(f"plain dynamics runs in no form: {skipped}")
    return runs, skipped


def fastest_plain(runs, state, seconds, clock):
    """Its name, and milliseconds per step of all, in turns."""
    steps, times = {}, {}
    for name, run in runs.items():
        run.set_state(*state)
        run.step(2)
        steps[name] = max(2, min(200, round(seconds / 10 / seconds_per_step(run, 3))))
    for _ in range(5):
        for name, run in runs.items():
            run.set_state(*state)
            times.setdefault(name, []).append(seconds_per_step(run, steps[name]))
    medians = {name: 1e3 * float(np.median(own)) for name, own in times.items()}
    for name, cost in medians.items():
        clock.say(f"  {name}: {cost:.3g} ms per step")
    return min(medians, key=medians.get), medians


def lsd_run(case, window, draft, platform, context_platform):
    integrator = LSDIntegrator(
        case.temperature,
        case.friction,
        case.step_size,
        draft,
        windowLength=window,
        draftPlatform=platform,
        randomNumberSeed=case.seed,
        topology=case.topology,
    )
    return Run(case, integrator, context_platform)


def equilibrated(case, run, seconds, steps):
    """A state at the temperature of the case, after so many steps or seconds."""
    run.simulation.minimizeEnergy(maxIterations=100)
    run.simulation.context.setVelocitiesToTemperature(2 * case.temperature, case.seed or 1)
    warm(run, seconds, steps)
    return run.state


def warm(run, seconds, steps):
    """Steps that do not count, no more than ``steps`` and, about, ``seconds``."""
    begin, done = time.perf_counter(), 0
    while done < steps and (time.perf_counter() - begin < seconds or not done):
        run.step(min(20, steps - done))
        done += 20


def lsd_runs(cases, args, platforms, clock):
    """{name: Run}: the draft that makes itself, and the force field on each platform."""
    choices = [("LSD, auto draft, K auto", "auto", None, "auto")]
    choices += [(f"LSD, auto draft, K = {k}", "auto", None, k) for k in args.windows]
    for platform in platforms:
        label = f"LSD, force field ({platform})"
        choices.append((f"{label}, K auto", "force field", platform, "auto"))
        choices += [(f"{label}, K = {k}", "force field", platform, k) for k in args.windows[-1:]]
    runs, skipped = {}, {}
    for name, draft, platform, window in choices:
        case = cases.get(window, cases["auto"])
        system = "auto" if draft == "auto" else case.draft
        try:
            runs[name] = lsd_run(case, window, system, platform, "Reference")
        except Exception as error:
            skipped[name] = why(error)
            clock.say(f"  {name}: left out ({why(error)})")
    return runs, skipped


def compare(case, plain_name, plain, runs, state, args, clock):
    """Rows of alternating blocks, and why runs that fail in the warm-up are left out."""
    seconds = min(args.seconds, 0.6 * clock.left())
    skipped = {}
    for name, run in list(runs.items()):
        try:
            if clock.left() < seconds:
                raise TimeoutError("no time left")
            run.set_state(*state)
            warm(run, seconds / (2 * len(runs)), args.warm_up)
        except Exception as error:
            skipped[name] = why(error)
            clock.say(f"  {name}: left out ({why(error)})")
            del runs[name]
    ways = [Way("plain", Kind.PLAIN, plain)]
    ways += [Way(name, Kind.LSD, run) for name, run in runs.items()]
    plain.set_state(*state)
    per_step = seconds_per_step(plain, 8)
    # Twenty blocks of each run, if the time allows that; five at least.
    block = 8 * round(seconds / len(ways) / 20 / per_step / 8)
    block = max(8, min(args.block, block))
    first, *others = time_in_turns(case, ways, state, seconds, block, clock.say)
    return [dataclasses.replace(first, settings=plain_name), *others], skipped


def comparison_table(rows):
    lines = [
        f"{'':34s}{'ns/day':>8s}{'ms/step':>9s}{'speed-up':>10s}{'quartiles':>15s}"
        f"{'steps/round':>13s}{'K':>5s}{'T, K':>7s}   target/draft/learning/other"
    ]
    for row in rows:
        quartiles = "{:.2f} to {:.2f}".format(*row.ratio_quartiles)
        line = (
            f"{row.name:34s}{row.ns_per_day:8.1f}{row.ms_per_step:9.3f}{row.ratio:10.2f}"
            f"{quartiles:>15s}"
        )
        kelvin = "blew up" if row.temperature is None else f"{row.temperature:7.0f}"
        if row.spent is not None:
            shares = " / ".join(f"{100 * row.spent.shares[part]:.0f}" for part in PARTS)
            line += f"{row.spent.steps_per_round:13.2f}{row.spent.window:5d}{kelvin}   {shares} %"
        else:
            line += f"{'':18s}{kelvin}   {row.settings}"
        lines.append(line)
    return "\n".join(lines)


WAITS = ("cudaMemcpyAsync", "cudaStreamSynchronize", "cudaDeviceSynchronize")
PARTS = {
    "target": "target, seen from the host",
    "draft": "draft",
    "learning": "learning",
    "overhead": "transport, bookkeeping, Context",
}


def profile_rounds(run, device):
    """Where the time of a round goes: milliseconds by the clock, then counts by torch.profiler."""
    steps = PROFILED_ROUNDS * 4
    run.step(steps)
    before, begin = run.integrator.statistics, time.perf_counter()
    run.step(steps)
    seconds = time.perf_counter() - begin
    spent = run.integrator.statistics.since(before)
    rounds = max(1, spent.rounds)
    clocked = {name: 1e3 * getattr(spent, f"{name}_seconds") / rounds for name in PARTS}
    result = {
        "window": spent.window_length,
        "steps per round": spent.steps_per_round,
        "ms per round": 1e3 * seconds / rounds,
        "clock, ms per round": clocked,
    }

    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    before = run.integrator.statistics
    with torch.profiler.profile(activities=activities) as profile:
        run.step(steps)
        if device == "cuda":
            torch.cuda.synchronize()
    rounds = max(1, run.integrator.statistics.since(before).rounds)
    counted = {}
    for event in profile.key_averages():
        on_device = event.self_device_time_total
        if event.key.startswith("aten::"):
            kind, spent_ms = "torch operators", 1e-3 * event.self_cpu_time_total
        elif event.key.startswith("Memcpy HtoD"):
            kind, spent_ms = "copies to the card", 1e-3 * on_device
        elif event.key.startswith("Memcpy DtoH"):
            kind, spent_ms = "copies to the host", 1e-3 * on_device
        elif event.key.startswith(("Memcpy", "Memset")):
            kind, spent_ms = "copies on the card", 1e-3 * on_device
        elif event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")):
            kind, spent_ms = "kernel launches", 1e-3 * event.self_cpu_time_total
        elif event.key.startswith("cudaGraphLaunch"):
            kind, spent_ms = "graph launches", 1e-3 * event.self_cpu_time_total
        elif event.key.startswith(WAITS):
            kind, spent_ms = "waiting for the card", 1e-3 * event.self_cpu_time_total
        elif on_device > 0 and event.self_cpu_time_total == 0:
            kind, spent_ms = "kernels on the card", 1e-3 * on_device
        else:
            continue
        count, total = counted.get(kind, (0, 0.0))
        counted[kind] = count + event.count, total + spent_ms
    result["profiler, per round"] = {
        kind: {"count": count / rounds, "ms": spent_ms / rounds}
        for kind, (count, spent_ms) in counted.items()
    }
    return result


def profile_table(name, profile):
    lines = [
        f"One round of {name}: K = {profile['window']}, "
        f"{profile['steps per round']:.2f} steps, {profile['ms per round']:.3g} ms",
        "  by the clock",
    ]
    for part, milliseconds in profile["clock, ms per round"].items():
        share = 100 * milliseconds / profile["ms per round"]
        lines.append(f"    {PARTS[part]:34s}{milliseconds:9.3f} ms {share:5.0f} %")
    lines.append("  by torch.profiler, which slows them down; parts of the target")
    for kind, each in sorted(profile["profiler, per round"].items()):
        lines.append(f"    {kind:34s}{each['ms']:9.3f} ms {each['count']:7.1f} times")
    return "\n".join(lines)


def cuda_platform():
    """Whether OpenMM has its CUDA platform, and why not."""
    try:
        openmm.Platform.getPlatform("CUDA")
    except openmm.OpenMMException as error:
        failures = [line for line in openmm.Platform.getPluginLoadFailures() if "CUDA" in line]
        return False, "; ".join([why(error), *failures])
    return True, ""


def about_the_machine(device):
    result = machine()
    result["device"] = device
    result["torch CUDA"] = torch.version.cuda
    result["OpenMM platforms"] = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    try:
        import_openmmtorch()
        result["openmmtorch"] = "loads"
    except ImportError as error:
        result["openmmtorch"] = why(error)
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        result["card"] = card.name
        result["card's memory, GB"] = round(card.total_memory / 1e9, 1)
        result["compute capability"] = f"{card.major}.{card.minor}"
    return result


def one_system(name, args, clock, result, save):
    """All that is measured on one system, into ``result``."""
    device = args.device
    topology, positions, draft, target, file = load(name)
    start = np.array(positions.value_in_unit(unit.nanometer))
    if file is None:
        step_size = 1e-3 * min(args.timestep, 0.5)
        forms, names = ContextForms(target, draft, device), ["1 Context", "4 Contexts"]
        box = default_box(target)
        result["target"] = f"AMOEBA through Contexts of OpenMM ({forms.platform}), no network"
    else:
        step_size = 1e-3 * args.timestep
        forms = NetworkForms(file, draft, device)
        names = [form for form in FORMS if form in args.forms]
        box = None
        result["target"] = f"network {Path(file).name} on {device}"
    result |= {"atoms": len(start), "timestep, fs": 1e3 * step_size}
    clock.say(f"{name}: {len(start)} atoms; {result['target']}; ms for B states:")

    costs, targets, skipped = batch_costs(forms, names, start, box, args, clock)
    if not costs:
        raise RuntimeError(f"no form of the target works: {skipped}")
    result |= {"batch costs, ms": costs, "left out": skipped}
    print("\n" + batch_table(costs, args.batches) + "\n", flush=True)
    save()

    conditions = {"temperature": 300.0, "friction": 1.0, "step_size": step_size, "seed": args.seed}
    everywhere = [form for form in costs if set(args.batches) <= set(costs[form])]
    largest = max((batch for batch in args.batches if batch <= 16), default=args.batches[0])
    best = min(everywhere or costs, key=lambda form: costs[form].get(largest, np.inf))

    def case_of(form):
        system = systems.with_target(draft, targets[form])
        return Case(topology, positions, draft, system, **conditions)

    cases = {"auto": case_of(best)}
    forms_of_windows = {"auto": best}
    for window in args.windows:
        own = min(costs, key=lambda form: costs[form].get(window, np.inf))
        if window in costs[own]:
            cases[window] = case_of(own) if own != best else cases["auto"]
            forms_of_windows[window] = own
    result["form of the target, by window"] = {str(k): v for k, v in forms_of_windows.items()}
    clock.say(f"LSD evaluates by: {result['form of the target, by window']}")

    platforms = [name for name in args.platforms if name != "CUDA" or device == "cuda"]
    own_case = cases["auto"]
    if file is None:
        own_case = dataclasses.replace(own_case, target=target)
    clock.say("plain dynamics, in turns:")
    candidates, result["plain, left out"] = plain_runs(
        own_case, forms, costs, targets, platforms, clock
    )
    state = equilibrated(
        own_case, next(iter(candidates.values())), args.seconds / 4, args.equilibration
    )
    plain_name, result["plain, ms per step"] = fastest_plain(
        candidates, state, args.seconds / 20, clock
    )
    save()

    clock.say("LSD: making the runs, and steps in which drafts learn and windows are found")
    runs, result["LSD, left out"] = lsd_runs(cases, args, platforms, clock)
    rows, failed = compare(
        cases["auto"], plain_name, candidates[plain_name], runs, state, args, clock
    )
    result["LSD, left out"] |= failed
    result["rows"] = [row.as_dict() for row in rows]
    print(f"\n{name}, {own_case.conditions()}\n{comparison_table(rows)}\n", flush=True)
    save()

    if args.profile:
        fixed = [row for row in rows[1:] if "K auto" not in row.name]
        if fixed:
            fastest = max(fixed, key=lambda row: row.ratio).name
            result["profile"] = {
                "run": fastest,
                **profile_rounds(runs[fastest], device),
            }
            print(profile_table(fastest, result["profile"]) + "\n", flush=True)
            save()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--systems", nargs="+", default=["alanine_dipeptide", "ibuprofen", "amoeba_water"]
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0, help="of blocks, for each system")
    parser.add_argument("--limit", type=float, default=520.0, help="seconds of the whole run")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--compiled-batches", type=int, nargs="*", default=list(COMPILED))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 16], help="fixed K")
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=["Reference", "CUDA"],
        default=["Reference", "CUDA"],
        help="of plain dynamics and of the force field that drafts",
    )
    parser.add_argument("--timestep", type=float, default=1.0, help="fs; water: 0.5 at most")
    parser.add_argument("--block", type=int, default=400, help="steps, at most")
    parser.add_argument("--warm-up", type=int, default=3000, help="steps of each LSD run, at most")
    parser.add_argument("--equilibration", type=int, default=1000, help="steps, at most")
    parser.add_argument("--profile", action="store_true", help="where a round's time goes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--outfile", type=Path, help="JSON")
    parser.add_argument("--verbose", action="store_true", help="what the package logs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu tries the script without one")
    if args.verbose:
        logging.basicConfig(level=logging.INFO)
    args.windows = [k for k in args.windows if k <= max(args.batches)] or [max(args.batches)]
    args.each = min(0.3, args.seconds / 50)  # seconds of measurement of one number
    args.per_form = max(10.0, args.limit / 12)
    clock = Clock(args.limit)
    about = about_the_machine(args.device)
    for key, value in about.items():
        print(f"{key}: {value}")
    found, reason = cuda_platform()
    if args.device == "cuda" and found:
        # In single precision the energies' rounding fails the check that forces are gradients.
        openmm.Platform.getPlatform("CUDA").setPropertyDefaultValue("Precision", "mixed")
    elif args.device == "cuda":
        args.platforms = ["Reference"]
        print(f"OpenMM has no CUDA platform: {reason}")
    options = {k: v for k, v in vars(args).items() if k != "outfile"}
    results = {"machine": about, "options": options, "systems": {}}

    def save():
        if args.outfile:
            results["seconds"] = time.perf_counter() - clock.begin
            args.outfile.write_text(json.dumps(results, indent=1))

    whole = args.limit
    for index, name in enumerate(args.systems):
        # Each system has its share of what is left.
        clock.limit = whole
        share = clock.left() / (len(args.systems) - index)
        clock.limit = time.perf_counter() - clock.begin + share
        args.limit = share
        result = results["systems"][name] = {}
        try:
            one_system(name, args, clock, result, save)
        except Exception as error:
            result["failed"] = why(error)
            clock.say(f"{name}: given up ({why(error)})")
            logging.getLogger(__name__).info("traceback", exc_info=True)
        save()
    save()
    if args.outfile:
        clock.say(f"written to {args.outfile}")
    if all("rows" not in result for result in results["systems"].values()):
        raise SystemExit("nothing could be compared")


if __name__ == "__main__":
    main()
