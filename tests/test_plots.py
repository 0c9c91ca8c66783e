"""Pictures: what is drawn is what was given. That they read well was checked by eye."""

import sys

import numpy as np
import pytest
from scipy.integrate import trapezoid

pytest.importorskip("matplotlib")

from openmm_lsd import plots
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT
from openmm_lsd.core.statistics import Round
from openmm_lsd.theory import rejection_probability

# drafted 4 each; rejected at the third; all committed; the target failed at the third site;
# rejected at the first, and shortened.
ROUNDS = [
    Round(100, 4, [], 4, 3, True, [0.2, 0.4, 2.0]),
    Round(103, 4, [1], 4, 4, False, [0.1, 0.35, 0.5]),
    Round(107, 4, [], 2, 2, False, [0.2, 0.65]),
    Round(109, 2, [], 2, 1, True, [3.0]),
]


@pytest.fixture(autouse=True)
def no_pyplot(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)


@pytest.fixture
def random():
    return np.random.default_rng(5)


def drawn(figure):
    """The figure is complete: it can be drawn, and its panels come back."""
    figure.canvas.draw()
    return figure.axes


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def cells(axes, word):
    (bars,) = [c for c in axes.containers if c.get_label().startswith(word)]
    return [(round(bar.get_y() + bar.get_height() / 2), bar.get_x() - 0.05) for bar in bars]


def test_timeline_shows_every_site_once():
    figure = plots.timeline(ROUNDS)
    (axes,) = drawn(figure)
    assert cells(axes, "accepted") == [
        *((1, 100), (1, 101)),
        *((2, 103), (2, 104), (2, 105)),
        *((3, 107), (3, 108)),
    ]
    assert cells(axes, "rejected") == [(1, 102), (4, 109)]
    assert cells(axes, "last of the window") == [(2, 106)]
    assert cells(axes, "flushed") == [(1, 103), (4, 110)]
    assert cells(axes, "the target failed") == [(3, 109), (3, 110)]
    own, front = axes.lines
    assert np.array_equal(own.get_xydata(), [[103.5, 2]])
    assert front.get_xdata().tolist() == [100, 100, 103, 103, 107, 107, 109, 109, 110]
    assert [text.get_text() for text in axes.texts] == ["+3 steps", "+4", "+2", "+1"]
    assert len(legend(figure)) == 7


def test_timeline_leaves_out_early_rounds_and_kinds_that_do_not_occur():
    figure = plots.timeline(ROUNDS, first_step=108)
    (axes,) = drawn(figure)
    assert cells(axes, "rejected") == [(1, 109)]
    assert [label.split(":")[0] for label in legend(figure)] == [
        *("rejected", "flushed", "committed so far")
    ]
    (axes,) = drawn(plots.timeline(ROUNDS * 9))
    assert len(axes.texts) == plots.rounds.AT_MOST


def test_steps_per_round():
    (axes,) = drawn(plots.steps_per_round(ROUNDS))
    assert [bar.get_height() for bar in axes.patches] == [25, 25, 25, 25]
    assert axes.lines[0].get_xdata()[0] == 2.5
    assert "mean 2.50 of 4 rounds" in axes.texts[0].get_text()


def test_noise_shifts():
    figure = plots.noise_shifts(ROUNDS)
    left, right, chance = drawn(figure)
    accepted, rejected = (
        {round(bar.get_x(), 6): bar.get_height() for bar in bars if bar.get_height()}
        for bars in left.containers
    )
    assert accepted == {0.0: 1, 0.15: 2, 0.3: 2, 0.45: 1, 0.6: 1}
    assert sum(rejected.values()) == 2 and max(rejected) == pytest.approx(2.85)
    curve = chance.lines[0]
    for shift, probability in ((1.0, 0.3829), (2.0, 0.6827)):
        found = np.interp(shift, curve.get_xdata(), curve.get_ydata())
        assert found == pytest.approx(probability, abs=1e-3)
    medians = right.containers[0].lines[0]
    assert np.allclose(medians.get_xydata(), [[1, 0.2], [2, 0.4], [3, 1.25]])


def test_noise_shifts_beyond_the_edge_are_told_and_the_rejected_share_is_measured(random):
    shifts = random.uniform(0.0, 4.0, 40_000)
    rounds = [
        Round(0, 3, [], 3, 1, bool(rejected), [shift])
        for shift, rejected in zip(
            shifts,
            random.random(len(shifts)) < rejection_probability(shifts),
            strict=True,
        )
    ]
    far = Round(0, 3, [], 3, 1, True, [1e6])
    left, _, chance = drawn(plots.noise_shifts([*rounds, *[far] * 10_000]))
    assert left.texts[0].get_text() == "20 % lie beyond" and left.get_xlim()[1] == 5
    points = chance.containers[0].lines[0].get_xydata()
    assert len(points) == 16
    # Each has a standard error of at most 0.01; 16 points, 5 of these.
    assert np.abs(points[:, 1] - plots.rounds.rejection_probability(points[:, 0])).max() < 0.05


def test_time_breakdown():
    rows = {
        "plain": {"target": 5.0},
        "LSD": {"target": 2.0, "draft": 0.5, "learning": 0.25, "overhead": 0.25},
    }
    figure = plots.time_breakdown(rows)
    (axes,) = drawn(figure)
    widths = {c.get_label(): [bar.get_width() for bar in c] for c in axes.containers}
    assert widths == {"target": [5, 2], "draft": [0, 0.5], "learning": [0, 0.25]} | {
        "overhead": [0, 0.25]
    }
    last = axes.containers[-1][1]
    assert last.get_x() + last.get_width() == pytest.approx(3.0)
    assert [text.get_text() for text in axes.texts] == ["5", "2", "0.5", "5 ms", "3 ms"]
    assert legend(plots.time_breakdown({"plain": {"target": 5.0}})) == ["target"]


def test_speed_up():
    figure = plots.speed_up(
        [1, 4, 8],
        [np.nan, 1.5, 1.25],
        [[np.nan, np.nan], [1.25, 1.75], [1.0, 1.5]],
        [1.0, 1.5, 1.0],
        [np.nan, 3.0, 4.0],
        [1.0, 2.5, 4.5],
    )
    top, bottom = drawn(figure)
    predicted = {axes: axes.lines[k].get_ydata().tolist() for axes, k in ((top, 1), (bottom, 0))}
    assert predicted == {top: [1.0, 1.5, 1.0], bottom: [1.0, 2.5, 4.5]}
    assert top.lines[0].get_ydata()[0] == 1.0
    (bars,) = top.containers[0].lines[2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments() if len(segment)]
    assert ends[-2:] == [[1.25, 1.75], [1.0, 1.5]]
    assert bottom.containers[0].lines[0].get_ydata()[1:].tolist() == [3.0, 4.0]
    assert len(legend(figure)) == 3
    assert len(drawn(plots.speed_up([4, 8], predicted=[1.0, 1.5]))) == 1


def test_ramachandran_is_periodic_and_tells_two_basins_apart(random):
    density = plots.ensembles._periodic_density(np.full((10, 2), np.pi), 36)
    assert density.shape == (37, 37)
    assert np.allclose([density[0, 0], density[0, -1], density[-1, 0]], density.max())
    assert density[18, 18] < 1e-6 * density.max()
    off_centre = plots.ensembles._periodic_density(np.tile([-np.pi / 2, 0.0], (10, 1)), 36)
    assert np.unravel_index(off_centre.argmax(), off_centre.shape) == (9, 18)
    here, there = random.normal(0, 0.3, (500, 2)), random.normal(2, 0.3, (400, 2))
    figure = plots.ramachandran(here, there, ("chi", "theta"))
    axes = drawn(figure)[0]
    assert axes.get_xlabel() == "χ, degrees" and axes.get_ylabel() == "theta, degrees"
    filled, contours = axes.collections
    for collection, centre in ((filled, 115), (contours, 0)):
        points = np.concatenate([path.vertices for path in collection.get_paths()])
        assert np.abs(points.mean(axis=0) - centre).max() < 20


def test_dihedrals(random):
    lsd, plain = random.uniform(-np.pi, np.pi, (4000, 4)), random.uniform(0, 2 * np.pi, (3000, 4))
    figure = plots.dihedrals(lsd, plain, ["phi", "psi", "three", "four"], bins=18)
    panels = [axes for axes in drawn(figure) if axes.axison]
    assert [axes.get_title() for axes in panels] == ["φ", "ψ", "three", "four"]
    for axes in panels:
        for stairs in axes.patches:
            # Uniform: 1/360 per degree, drawn in per cent, with 6 standard errors at 1/18.
            assert np.abs(stairs.get_data().values - 100 / 360).max() < 0.14
            assert stairs.get_data().values.sum() * 20 == pytest.approx(100)
        assert len(axes.collections) == 2  # error bars
    _, error = plots.ensembles._block_histogram(lsd[:, 0], np.linspace(-np.pi, np.pi, 19), 40)
    expected = np.sqrt(18 / 4000 * (1 - 1 / 18)) / (2 * np.pi)
    assert np.sqrt(np.mean(error**2)) == pytest.approx(expected, rel=0.2)


def test_of_many_dihedrals_the_first_are_drawn():
    figure = plots.dihedrals(*np.zeros((2, 20, 14)), [str(n) for n in range(14)])
    assert [axes.get_title() for axes in drawn(figure)] == [str(n) for n in range(12)]
    assert figure.get_suptitle() == "the first 12 of 14"


def test_autocorrelation():
    times = np.array([0.0, 1.0, 2.0])
    (axes,) = drawn(plots.autocorrelation(times, [1, 0.5, 0], [1, 0.4, 0], None, [0.1] * 3, "C"))
    _, plain, lsd = axes.lines
    assert np.allclose(lsd.get_xydata(), [[0, 1], [1, 0.5], [2, 0]])
    assert np.allclose(plain.get_ydata(), [1, 0.4, 0]) and plain.get_color() == plots.style.PLAIN
    assert len(axes.collections) == 1 and axes.get_ylabel() == "C"


def test_kinetic_energy_over_its_law(random):
    thermal = MOLAR_GAS_CONSTANT * 300
    energies = random.gamma(15.0, thermal, (2, 20_000))
    (axes,) = drawn(plots.kinetic_energy(*energies, 30, 300.0))
    law = axes.lines[0].get_xydata()
    assert trapezoid(law[:, 1], law[:, 0]) == pytest.approx(1.0, abs=1e-3)
    mean = trapezoid(law[:, 0] * law[:, 1], law[:, 0])
    assert mean == pytest.approx(15 * thermal, rel=1e-3)
    for stairs in axes.patches:
        values, edges, _ = stairs.get_data()
        centres = 0.5 * (edges[1:] + edges[:-1])
        assert np.abs(values - np.interp(centres, *law.T)).max() < 0.05 * law[:, 1].max()
    assert len(drawn(plots.kinetic_energy(np.ones(10), np.ones(10), 3, 300.0))) == 1


def test_sweep():
    series = {"1 fs": ([1.0, 2.0], [0.1, 0.2], [1.1, 1.9]), "2 fs": ([3, np.nan], None, [3, 4])}
    (axes,) = drawn(plots.sweep([1, 10], series, "friction, 1/ps", "steps per round"))
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "friction, 1/ps"
    assert axes.lines[0].get_ydata().tolist() == [1.1, 1.9]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["lines: predicted", "1 fs", "2 fs"]


ANGLES = np.zeros((20, 2))


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: plots.timeline([]), "no rounds"),
        (lambda: plots.timeline(ROUNDS, first_step=200), "no rounds"),
        (lambda: plots.steps_per_round([]), "no rounds"),
        (lambda: plots.noise_shifts([]), "no rounds"),
        (lambda: plots.noise_shifts([Round(0, 1, [], 1, 1, False, [])]), "none of the 1 rounds"),
        (lambda: plots.time_breakdown({}), "no rows"),
        (lambda: plots.time_breakdown({"a": {"targets": 1.0}}), "parts are"),
        (lambda: plots.time_breakdown({"a": {"target": -1.0}}), "must not be negative"),
        (lambda: plots.speed_up([4, 8]), "give the measured or the predicted"),
        (lambda: plots.speed_up([8, 4], [1, 2]), "positive and ascending"),
        (lambda: plots.speed_up([], []), "windows is empty"),
        (lambda: plots.speed_up([4, 8], [1, 2, 3]), r"shape \(3,\); expected \(2,\)"),
        (lambda: plots.speed_up([4, 8], [1, 2], [[1, 2]]), r"expected \(2, 2\)"),
        (lambda: plots.speed_up([4], None, [[1, 2]], [1]), "needs measured"),
        (lambda: plots.ramachandran(ANGLES, ANGLES[:, 0]), r"plain_angles has shape \(20,\)"),
        (lambda: plots.ramachandran(ANGLES, ANGLES * np.nan), "40 numbers that are not finite"),
        (lambda: plots.dihedrals(ANGLES, ANGLES, ["phi"]), "2 dihedrals, and there are 1 names"),
        (lambda: plots.dihedrals(ANGLES[:5], ANGLES, ["a", "b"]), "5 frames cannot make 10 blocks"),
        (lambda: plots.dihedrals(*np.zeros((2, 20, 0)), []), "lsd is empty"),
        (lambda: plots.autocorrelation([0, 1], [1, 0], [1, 0, 0]), "plain has shape"),
        (lambda: plots.autocorrelation([], [], []), "times is empty"),
        (lambda: plots.kinetic_energy(np.ones(20), [], 3, 300), "plain is empty"),
        (lambda: plots.kinetic_energy(np.ones(20), np.ones(20), 0, 300), "must be positive"),
        (lambda: plots.sweep([1], {}, "x", "y"), "0 series"),
        (lambda: plots.sweep([1], {"a": ([1], [1, 2], [1])}, "x", "y"), "errors of 'a'"),
    ],
)
def test_bad_input_is_named(draw, words):
    with pytest.raises(ValueError, match=words):
        draw()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "openmm-lsd\[plots\]"'):
        plots.steps_per_round(ROUNDS)
