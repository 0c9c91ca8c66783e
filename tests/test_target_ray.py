"""RayTarget: workers that share a batch, fail, hang and die. One Ray session for all tests."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from law import make_sampler

from openmm_lsd import TargetError
from openmm_lsd.core.clock import Times
from openmm_lsd.core.schemes import SCHEMES
from openmm_lsd.targets.base import BatchedTarget
from openmm_lsd.targets.ray import RayTarget, WorkerError, _even_shares, _release
from openmm_lsd.targets.raysessions import NICENESS

ray = pytest.importorskip("ray")

CPUS = 4  # that Ray believes in
FAR, DEADLY, STUCK, WAITING = 10.0, 20.0, 30.0, 40.0  # nm, x of atom 0: what happens there


@pytest.fixture(scope="module", autouse=True)
def session():
    # Workers cannot import this file by its name.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NICENESS, "0")  # else tests beside these starve the workers
        ray.init(
            num_cpus=CPUS,
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()


class OutOfReachError(Exception):
    """Cannot be unpickled from its arguments alone, as TargetError and many others."""

    def __init__(self, where, atom):
        super().__init__(f"beyond {where}")
        self.atom = atom


class Springs(BatchedTarget):
    """Anharmonic springs, and what else may befall a target, once for each file in ``faults``."""

    def __init__(self, faults=None, error=ValueError):
        self.faults = None if faults is None else Path(faults)
        self.error, self.constant, self.preparation = error, 100.0, (0, 0.0)

    def set_parameters(self, parameters):
        if parameters["constant"] < 0:
            raise ValueError("a negative spring constant")
        self.constant = parameters["constant"]

    def prepare(self, positions, batch, box=None):
        self.preparation = (batch, positions[0, 0])

    def evaluate(self, positions, box=None):
        length = 1.0 if box is None else box[0, 0]
        energies = np.array([0.5 * self.constant * np.sum(x * x) for x in positions])
        forces = -self.constant * length * positions - 3.0 * positions**3
        for x in positions[:, 0, 0]:
            if x == FAR:
                raise self.error(f"beyond {FAR}") if self.error is ValueError else self.error(x, 3)
            if x == DEADLY and self.occurs("deadly"):
                os.kill(os.getpid(), signal.SIGKILL)
            if x == STUCK and self.occurs("stuck"):
                time.sleep(1000)
            if x == WAITING and self.occurs("waiting"):
                (self.faults / "here").write_text(str(os.getpid()))
                time.sleep(1000)
        return energies, forces

    def occurs(self, name):
        if (self.faults / f"always {name}").exists():
            return True
        try:
            (self.faults / name).unlink()
        except FileNotFoundError:
            return False
        return True


class Reporting(Springs):
    """What a worker knows about itself, in place of energies."""

    def evaluate(self, positions, box=None):
        import torch

        values = [self.constant, *self.preparation, int(os.environ["OMP_NUM_THREADS"])]
        values.append(torch.get_num_threads())
        return np.resize(values, len(positions)).astype(float), -positions


class OnlySingles(Springs):
    def evaluate(self, positions, box=None):
        if len(positions) > 1:
            raise RuntimeError("one at a time")
        return super().evaluate(positions, box)


@contextlib.contextmanager
def ray_target(factory=Springs, workers=2, **keywords):
    with RayTarget(factory, workers, **keywords) as target:
        yield target


def states(count):
    return np.random.default_rng(1).uniform(-1, 1, (count, 5, 3))


def is_running(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def assert_rows_equal(result, expected, rows=slice(None)):
    np.testing.assert_array_equal(result[0][rows], expected[0][rows])
    np.testing.assert_array_equal(result[1][rows], expected[1][rows])


def assert_rows_lost(result, rows):
    assert np.isnan(result[0][rows]).all() and np.isnan(result[1][rows]).all()


# Shares


@pytest.mark.parametrize(
    ("batch", "workers", "sizes"),
    [(16, 3, [6, 5, 5]), (16, 2, [8, 8]), (2, 3, [1, 1]), (1, 4, [1]), (5, 4, [2, 1, 1, 1])],
)
def test_shares_are_even(batch, workers, sizes):
    assert _even_shares(batch, workers) == sizes


@pytest.fixture(scope="module")
def three_workers():
    with ray_target(workers=3, num_cpus=0) as target:  # beside the workers of other tests
        yield target


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 16])
def test_equals_the_target_itself(three_workers, batch):
    positions = states(batch)
    before = positions.copy()
    result = three_workers.evaluate(positions)
    assert result[0].shape == (batch,) and result[1].shape == positions.shape
    assert_rows_equal(result, Springs().evaluate(positions))
    np.testing.assert_array_equal(positions, before)
    assert result[1].flags.writeable


def test_rows_box_and_memory_layout(three_workers):
    positions = states(8)
    box = np.diag([2.0, 3.0, 4.0])
    result = three_workers.evaluate(positions, box)
    order = np.random.default_rng(2).permutation(8)
    shuffled = three_workers.evaluate(positions[order], box)
    assert_rows_equal(shuffled, (result[0][order], result[1][order]))
    assert_rows_equal(result, Springs().evaluate(positions, box))
    strided = np.asfortranarray(positions)[::2]
    assert_rows_equal(three_workers.evaluate(strided, box), (result[0][::2], result[1][::2]))


def sampler(target):
    return make_sampler(
        SCHEMES["middle"](300.0, 1.0, 0.02),
        [12.0, 16.0, 1.0, 14.0, 12.0],
        lambda positions: -50.0 * positions,
        lambda positions: target.evaluate(positions)[1],
        window=8,
        seed=5,
    )


def trajectory(target, steps=120):
    run = sampler(target)
    run.set_state(states(1)[0], np.zeros((5, 3)))
    path = [np.concatenate(run.advance(1)) for _ in range(steps)]
    return np.array(path), run.statistics


def test_same_trajectory_whatever_the_number_of_workers(three_workers):
    expected, statistics = trajectory(Springs())
    assert 1.5 < statistics.steps_per_round < 8 and statistics.rejected > 5
    np.testing.assert_array_equal(trajectory(three_workers)[0], expected)
    for workers in (1, 2):
        with ray_target(workers=workers) as target:
            np.testing.assert_array_equal(trajectory(target)[0], expected)


# Workers that die or hang


FATES = ["dies", "hangs", "is killed from outside", "is stopped"]


@pytest.mark.parametrize(("fate", "row"), [("dies", 1), *((fate, 9) for fate in FATES)])
def test_a_lost_worker_is_replaced(tmp_path, fate, row):
    """In mid-batch; its share is evaluated again, and the other worker stays."""
    place, name = {"dies": (DEADLY, "deadly"), "hangs": (STUCK, "stuck")}.get(
        fate, (WAITING, "waiting")
    )
    (tmp_path / name).touch()
    positions = states(16)
    positions[row, 0, 0] = place
    timeout = 60.0 if fate in ("dies", "is killed from outside") else 5.0

    def strike():
        wait_until((tmp_path / "here").exists)
        wait_until(lambda: (tmp_path / "here").read_text() != "")
        kind = signal.SIGSTOP if fate == "is stopped" else signal.SIGKILL
        os.kill(int((tmp_path / "here").read_text()), kind)

    with ray_target(lambda: Springs(tmp_path), timeout=timeout) as target:
        before = target.pids
        target.evaluate(states(16))  # the first answer may take longer
        thread = threading.Thread(target=strike)
        if place == WAITING:
            thread.start()
        result = target.evaluate(positions)
        if place == WAITING:
            thread.join()
        assert_rows_equal(result, Springs(tmp_path).evaluate(positions))
        assert target.replaced == 1
        lost, other = (0, 1) if row == 1 else (1, 0)
        assert target.pids[other] == before[other] and target.pids[lost] != before[lost]
        wait_until(lambda: not is_running(before[lost]))
        assert_rows_equal(target.evaluate(states(16)), Springs().evaluate(states(16)))
        assert target.replaced == 1


def test_a_slow_first_answer_is_no_hang(tmp_path):
    """Nor is that of a worker that takes the place of another."""

    class SlowAtFirst(Springs):
        def evaluate(self, positions, box=None):
            if not getattr(self, "is_warm", False):
                self.is_warm = True
                time.sleep(1.5)
            return super().evaluate(positions, box)

    with ray_target(SlowAtFirst, timeout=0.5) as target:
        assert_rows_equal(target.evaluate(states(8)), Springs().evaluate(states(8)))
        assert target.replaced == 0
        target._timeout = 60.0  # of the other worker
        os.kill(target.pids[1], signal.SIGKILL)
        assert_rows_equal(target.evaluate(states(8)), Springs().evaluate(states(8)))
        assert target.replaced == 1


class Timed(Springs):
    """Forces that depend on time and step count."""

    uses_times = True

    def evaluate_at(self, positions, box=None, times=None):
        energies, forces = super().evaluate(positions, box)
        return energies + times.times, forces + times.step_counts[:, None, None]


def test_times_reach_the_workers():
    """Each share those of its own rows; also where a worker goes through its share one by one."""
    times = Times(np.arange(7.0), np.arange(10, 17))
    positions = states(7)
    with ray_target(Timed, workers=3) as target:
        assert target.uses_times
        result = target.evaluate_at(positions, None, times)
        assert_rows_equal(result, Timed().evaluate_at(positions, None, times))
        positions[6, 0, 0] = FAR
        result = target.evaluate_at(positions, None, times)
        expected = Timed().evaluate_at(positions[:6], None, times.rows(slice(6)))
        assert_rows_equal(result, expected, slice(6))
        os.kill(target.pids[1], signal.SIGKILL)
        result = target.evaluate_at(positions[:6], None, times.rows(slice(6)))
        assert_rows_equal(result, expected)
        assert target.replaced == 1
    with ray_target() as target:
        assert not target.uses_times
        assert_rows_equal(target.evaluate_at(states(4), None, times), Springs().evaluate(states(4)))


def test_trajectory_of_workers_that_are_killed():
    """Between and during rounds; nothing is lost and nothing committed twice."""
    expected, _ = trajectory(Springs())
    with ray_target() as target:
        run = sampler(target)
        run.set_state(states(1)[0], np.zeros((5, 3)))
        path = []
        for step in range(120):
            if step in (7, 50):
                os.kill(target.pids[step % 2], signal.SIGKILL)
            path.append(np.concatenate(run.advance(1)))
        assert target.replaced == 2
    np.testing.assert_array_equal(path, expected)


def test_a_state_that_kills_every_worker(tmp_path):
    """It ends its share like any failing state; at the front of the batch it is an error."""
    (tmp_path / "always deadly").touch()
    positions = states(16)
    positions[10, 0, 0] = DEADLY
    good = Springs().evaluate(states(16))
    with ray_target(lambda: Springs(tmp_path)) as target:
        result = target.evaluate(positions)
        assert_rows_equal(result, good, slice(10))
        assert_rows_lost(result, slice(10, 16))
        assert target.replaced == 3
        with pytest.raises(WorkerError, match="both its replacements were lost at the first state"):
            target.evaluate(positions[10:])
        assert_rows_equal(target.evaluate(states(16)), good)


# Targets that fail


def test_a_failing_state_costs_the_rest_of_its_share():
    good = Springs().evaluate(states(16))
    with ray_target(workers=3) as target:
        for row, end in ((2, 6), (8, 11), (11, 16), (15, 16)):
            positions = states(16)
            positions[row, 0, 0] = FAR
            result = target.evaluate(positions)
            assert_rows_lost(result, slice(row, end))
            rest = np.r_[0:row, end:16]
            assert_rows_equal(result, good, rest)
        positions = states(16)
        positions[0, 0, 0] = FAR
        with pytest.raises(ValueError, match=r"^beyond 10\.0$") as caught:
            target.evaluate(positions)
        assert "RayTaskError" not in type(caught.value).__name__
        assert "Springs" not in repr(caught.value) and "evaluate" in str(caught.value.__cause__)
        with pytest.raises(ValueError, match=r"^beyond 10\.0$"):
            target.evaluate(positions[:1])
        assert_rows_equal(target.evaluate(states(16)), good)
        assert target.replaced == 0


def test_after_an_interrupt_the_next_batch_is_right(tmp_path):
    """In a notebook, say; a worker that does not come back is replaced when its time is over."""
    (tmp_path / "stuck").touch()
    with ray_target(lambda: Springs(tmp_path), timeout=5.0) as target:
        target.evaluate(states(4))
        positions = states(4)
        positions[3, 0, 0] = STUCK
        timer = threading.Timer(1.0, lambda: signal.raise_signal(signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            target.evaluate(positions)
        timer.join()
        for shift in (1.0, 2.0):
            result = target.evaluate(shift + states(4))
            assert_rows_equal(result, Springs().evaluate(shift + states(4)))
        assert target.replaced == 1


def test_an_exception_that_cannot_be_pickled():
    positions = np.full((4, 5, 3), FAR)
    with (
        ray_target(lambda: Springs(error=OutOfReachError)) as target,
        pytest.raises(RuntimeError, match=r"OutOfReachError: beyond 10\.0"),
    ):
        target.evaluate(positions)


def test_a_batch_that_fails_as_a_whole():
    with ray_target(OnlySingles) as target:
        assert_rows_equal(target.evaluate(states(7)), Springs().evaluate(states(7)))


def test_sampler_over_a_wall():
    """The sampler sees a failing site as the end of its window, a failing state as an error."""

    class Wall(Springs):
        def evaluate(self, positions, box=None):
            if (positions[:, 0, 0] > 0.5).any():
                raise ArithmeticError("behind the wall")
            return super().evaluate(positions, box)

    runs = []
    with ray_target(Wall) as remote:
        for target in (Wall(), remote):
            run = sampler(target)
            start = np.zeros((5, 3))
            velocities = np.zeros((5, 3))
            velocities[0, 0] = 3.0
            run.set_state(start, velocities)
            with pytest.raises(TargetError, match="behind the wall") as caught:
                run.advance(100)
            assert isinstance(caught.value.__cause__, ArithmeticError)
            assert run.statistics.failed_sites > 0
            runs.append(run.state)
    np.testing.assert_array_equal(runs[0].positions, runs[1].positions)
    assert runs[0].step == runs[1].step > 5


# What workers are told


def test_parameters_preparation_and_threads():
    pytest.importorskip("torch")
    positions = states(10)
    start = np.full((5, 3), 7.0)
    with ray_target(Reporting, num_cpus=2) as target:
        target.prepare(start, 9)
        target.set_parameters({"constant": 3.0})
        wanted = np.resize([3.0, 5, 7.0, 2, 2], 10)
        np.testing.assert_array_equal(target.evaluate(positions)[0], wanted)
        os.kill(target.pids[0], signal.SIGKILL)
        np.testing.assert_array_equal(target.evaluate(positions)[0], wanted)
        os.kill(target.pids[1], signal.SIGKILL)
        target.set_parameters({"constant": 4.0})
        assert target.replaced == 2
        wanted[::5] = 4.0
        np.testing.assert_array_equal(target.evaluate(positions)[0], wanted)
        for _ in range(2):
            with pytest.raises(ValueError, match="negative spring constant"):
                target.set_parameters({"constant": -1.0})


# Workers that do not start


def fail():
    raise LookupError("no model here")


def die():
    os._exit(3)


@pytest.mark.parametrize(
    ("factory", "keywords", "error", "words"),
    [
        (fail, {}, LookupError, "^no model here$"),
        (dict, {}, TypeError, "made a dict; it must make a BatchedTarget"),
        (die, {}, WorkerError, "died while it was started"),
        (lambda: time.sleep(1000), {"start_timeout": 2.0}, WorkerError, "0 of 2 workers started"),
        (Springs(), {}, TypeError, "factory is a Springs"),
        (Springs, {"workers": 0}, ValueError, "workers is 0; it must be at least 1"),
        (Springs, {"workers": -2}, ValueError, "workers is -2"),
        (Springs, {"workers": 1.5}, TypeError, "integer"),
        (Springs, {"workers": CPUS + 1}, ValueError, "5 workers .* need 5 CPUs.* has 4"),
        (Springs, {"num_gpus": 1}, ValueError, "need 2 GPUs.* has 0"),
        (Springs, {"num_cpus": -1}, ValueError, "num_cpus is -1"),
        (Springs, {"timeout": 0}, ValueError, "timeout is 0"),
        (Springs, {"address": "10.0.0.1:6379"}, ValueError, "connected to the Ray cluster at"),
    ],
)
def test_what_cannot_work_is_an_error(factory, keywords, error, words):
    with pytest.raises(error, match=words):
        RayTarget(factory, **{"workers": 2, **keywords})
    wait_until(lambda: ray.available_resources().get("CPU") == CPUS)


def test_in_a_forked_child():
    """An error at once: the connection to the workers is the parent's; so is their end."""
    with ray_target() as target:
        own, target._resources.process = target._resources.process, -1
        with pytest.raises(WorkerError, match="was forked"):
            target.evaluate(states(4))
        _release(ray, target._resources)
        target._resources.process = own
        assert_rows_equal(target.evaluate(states(4)), Springs().evaluate(states(4)))


def test_a_busy_cluster():
    with (
        ray_target(workers=3),
        pytest.raises(WorkerError, match=r"[01] of 2 workers started within 3 s; .* 0 CPUs"),
    ):
        RayTarget(Springs, 2, start_timeout=3.0)
    wait_until(lambda: ray.available_resources().get("CPU") == CPUS)


def test_a_worker_that_cannot_be_replaced(tmp_path):
    flag = tmp_path / "no more"

    def factory():
        if flag.exists():
            raise OSError("the device is gone")
        return Springs()

    with ray_target(factory) as target:
        flag.touch()
        os.kill(target.pids[1], signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"worker 1 was lost .* the device is gone"):
            target.evaluate(states(4))
        flag.unlink()
        assert_rows_equal(target.evaluate(states(4)), Springs().evaluate(states(4)))


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install .*ray"):
        RayTarget(Springs, 2)


# The end


def test_close_leaves_no_worker_and_not_our_ray():
    target = RayTarget(Springs, 2)
    pids = target.pids
    assert all(map(is_running, pids))
    target.close()
    target.close()
    wait_until(lambda: not any(map(is_running, pids)))
    assert ray.is_initialized()
    with pytest.raises(RuntimeError, match="closed"):
        target.evaluate(states(2))
    target = RayTarget(Springs, 1)
    (pid,) = target.pids
    del target
    wait_until(lambda: not is_running(pid))


def descendants(pid):
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(status[1])
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


OWN_RAY = """
    import os, sys, time
    import numpy as np
    from openmm_lsd.targets.base import BatchedTarget
    from openmm_lsd.targets.ray import RayTarget

    class Target(BatchedTarget):
        def evaluate(self, positions, box=None):
            if positions[0, 0, 0] == 1:
                time.sleep(1000)
            return positions.sum((1, 2)), np.full(positions.shape, os.nice(0))

    first, second = RayTarget(Target, 1), RayTarget(Target, 1)
    first.close()
    assert (second.evaluate(np.zeros((2, 1, 3)))[1] == os.nice(0)).all()
    if "close" in sys.argv[1]:
        import ray
        second.close()
        assert not ray.is_initialized()
        print("closed", flush=True)
        time.sleep(1000)
    print("evaluating", flush=True)
    second.evaluate(np.ones((2, 1, 3)))
"""


@pytest.mark.parametrize("end", ["close", "interrupt"])
def test_ray_that_was_started_for_us_is_gone(end):
    """After close of the last RayTarget; and after Control-C, which a terminal sends to all.

    Its workers had the priority of the process that waits for them.
    """
    environment = {k: v for k, v in os.environ.items() if k != NICENESS}
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(OWN_RAY), end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    started = set()
    try:
        line = ""
        while line not in ("closed\n", "evaluating\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
        started = descendants(process.pid)
        if "interrupt" in end:
            assert len(started) > 2
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # shows where it hangs
                pytest.fail(process.communicate()[1])
            assert "KeyboardInterrupt" in errors
        wait_until(lambda: not any(map(is_running, started)))
        assert "interrupt" in end or not descendants(process.pid)
    finally:
        for pid in started | {process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


NODES = """
import sys, time, numpy as np, ray
from ray.cluster_utils import Cluster
from openmm_lsd.targets import BatchedTarget, RayTarget

class Target(BatchedTarget):
    def evaluate(self, positions, box=None):
        node = int(ray.get_runtime_context().get_node_id()[:6], 16)
        return np.full(len(positions), float(node)), -positions

soon = {"health_check_period_ms": 300, "health_check_initial_delay_ms": 0,
        "health_check_timeout_ms": 5000, "health_check_failure_threshold": 5}
head = {"num_cpus": 1, "_system_config": soon}  # a lost node is noticed within seconds
cluster = Cluster(initialize_head=True, head_node_args=head)
try:
    other = cluster.add_node(num_cpus=1)
    with RayTarget(Target, 2, address=cluster.address) as target:  # a CPU each: one on each node
        energies, forces = target.evaluate(np.ones((4, 2, 3)))
        assert len(set(energies)) == 2 and (forces == -1).all()
        cluster.add_node(num_cpus=1)
        cluster.remove_node(other, allow_graceful=False)
        end = time.monotonic() + 60
        while not target.replaced and time.monotonic() < end:  # it may answer before it dies
            energies, forces = target.evaluate(np.ones((4, 2, 3)))
        assert len(set(energies)) == 2 and (forces == -1).all() and target.replaced == 1
    assert not ray.is_initialized()
finally:
    cluster.shutdown()
print("done")
"""


def test_workers_on_several_nodes():
    """Nodes of one machine, as in Ray's own tests; one is lost, and another takes over.

    A cluster leaves its address in Ray's directory, and whatever starts Ray meanwhile joins it.
    """
    command = [sys.executable, "-c", NODES]
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # tmp_path is too long for sockets
        environment = {**os.environ, "RAY_TMPDIR": folder}
        run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert list(Path(folder).glob("ray/session_*"))  # and not where others look
    assert run.stdout.endswith("done\n"), run.stderr


# A real target


def gfn2_of_water():
    from tblite.ase import TBLite

    from openmm_lsd.targets.ase import ASETarget

    return ASETarget(TBLite(method="GFN2-xTB", verbosity=0), [8, 1, 1])


def test_gfn2_on_two_workers():
    pytest.importorskip("tblite")
    pytest.importorskip("ase")
    water = np.array([[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [-0.024, 0.093, 0.0]])
    positions = water + 0.005 * np.random.default_rng(1).standard_normal((6, 3, 3))
    with ray_target(gfn2_of_water) as target:
        energies, forces = target.evaluate(positions)
        expected = gfn2_of_water().evaluate(positions)
        np.testing.assert_allclose(energies, expected[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(forces, expected[1], rtol=0, atol=1e-4)
        wild = positions.copy()
        wild[1] = water + 0.3 * np.random.default_rng(2).standard_normal((3, 3))
        wild[1, 1] = wild[1, 0]
        result = target.evaluate(wild)
        assert_rows_lost(result, slice(1, 3))
        assert_rows_equal(result, (energies, forces), [0, 3, 4, 5])
        with pytest.raises(Exception, match="Too close") as caught:
            target.evaluate(wild[1:])
        assert type(caught.value).__name__ == "InputError"
