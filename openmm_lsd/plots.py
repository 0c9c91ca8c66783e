"""Pictures of how the speculation goes, and of LSD over plain dynamics.

Every function returns a new ``matplotlib.figure.Figure`` and writes no file; pyplot and its global
state are not used. Save a picture with ``figure.savefig("picture.png", dpi=200)``; all are made to
be read at a width of 800 pixels. Needs matplotlib: ``pip install "openmm-lsd[plots]"``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .core.schemes import MOLAR_GAS_CONSTANT
from .core.statistics import Round
from .theory import rejection_probability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

INSTALL = 'pip install "openmm-lsd[plots]"'

# Okabe and Ito's palette, which the colour-blind can tell apart.
LSD, PLAIN, PREDICTION = "#0072B2", "#D55E00", "#222222"
REJECTED, LAST, FLUSHED, FAILED = "#E69F00", "#56B4E9", "#D9D9D9", "#222222"
PARTS = {"target": "#44546A", "draft": "#E69F00", "learning": "#009E73", "overhead": "#BBBBBB"}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"

WIDTH, SMALL = 7.0, 9.0  # inches; points
AT_MOST = 14  # rounds of a timeline
LARGEST_SHIFT = 5.0  # of a histogram; 99 % of such steps are rejected
MOST_DIHEDRALS = 12


def timeline(rounds: Sequence[Round], first_step: int | None = None) -> Figure:
    """What became of each drafted site: rounds as rows, steps as columns.

    Parameters
    ----------
    rounds : sequence of openmm_lsd.Round
        In the order in which one of ``LSDIntegrator.round_callbacks`` got them. The first 14 are
        drawn; 8 to 14 are read best.
    first_step : int, optional
        Rounds that begin before this step are left out.

    Raises
    ------
    ValueError
        If no round is left.
    """
    rounds = _rounds([r for r in rounds if first_step is None or r.step >= first_step][:AT_MOST])
    kinds: dict[str, tuple[str, list[tuple[int, int]]]] = {
        "accepted: committed as drafted": (LSD, []),
        "rejected: committed elsewhere": (REJECTED, []),
        "last of the window: a plain target step": (LAST, []),
        "flushed: only its discrepancy is kept": (FLUSHED, []),
        "the target failed here or before": (FAILED, []),
    }
    accepted, rejected, last, flushed, failed = (cells for _, cells in kinds.values())
    for row, each in enumerate(rounds, 1):
        for site in range(each.drafted):
            if site >= each.verified:
                kind = failed
            elif site >= each.committed:
                kind = flushed
            elif each.rejected and site == each.committed - 1:
                kind = rejected
            else:
                kind = last if site == each.drafted - 1 else accepted
            kind.append((row, each.step + site))
    figure = _figure(1.35 + 0.24 * len(rounds))
    axes = figure.add_subplot()
    handles = []
    for label, (colour, cells) in kinds.items():
        if cells:
            rows, steps = zip(*cells, strict=True)
            left = np.add(steps, 0.05)
            bars = axes.barh(rows, 0.9, left=left, height=0.8, color=colour, label=label)
            handles.append(bars)
    start, stop = rounds[0].step, max(each.step + each.drafted for each in rounds)
    cell = 440.0 / (stop - start)  # points
    own = [(each.step + k, row) for row, each in enumerate(rounds, 1) for k in range(each.kept)]
    if own:
        handles += axes.plot(
            [step + 0.5 for step, _ in own],
            [row for _, row in own],
            **{"marker": "o", "markersize": min(4.0, 0.45 * cell), "linestyle": "none"},
            **{"color": "white", "markeredgecolor": "#222222", "markeredgewidth": 0.8},
            label="drafted with the discrepancy kept for it",
        )
    front = [(x, row + 0.5) for row, r in enumerate(rounds, 1) for x in (r.step, _end(r))]
    handles += axes.plot(
        *zip((rounds[0].step, 0.5), *front, strict=True),
        **{"color": "black", "linewidth": 1.6, "solid_joinstyle": "miter"},
        label="committed so far: all to the left",
    )
    for row, each in enumerate(rounds, 1):
        axes.text(
            each.step + each.drafted + 0.3,
            row,
            f"+{each.committed}" + (" steps" if row == 1 else ""),
            **{"va": "center", "fontsize": SMALL, "fontweight": "bold"},
        )
    axes.set_xlim(start - 0.5, stop + max(2.0, 0.07 * (stop - start)))
    axes.set_ylim(len(rounds) + 0.7, 0.3)
    axes.set_yticks(range(1, len(rounds) + 1))
    axes.set_xlabel("step")
    axes.set_ylabel("round")
    axes.tick_params(left=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend_below(figure, handles)
    _tidy(axes)
    return figure


def steps_per_round(rounds: Sequence[Round]) -> Figure:
    """Histogram of the committed steps of a round, with the mean.

    Raises
    ------
    ValueError
        If there is no round.
    """
    rounds = _rounds(rounds)
    committed = np.array([each.committed for each in rounds])
    longest = max(each.drafted for each in rounds)
    shares = np.bincount(committed, minlength=longest + 1)[1:] / len(committed)
    figure = _figure(2.8)
    axes = figure.add_subplot()
    axes.bar(np.arange(1, longest + 1), 100 * shares, width=0.85, color=LSD)
    mean = committed.mean()
    axes.axvline(mean, color=PREDICTION, linewidth=1.6)
    axes.text(
        mean,
        1.0,
        f"  mean {mean:.2f} of {len(rounds)} rounds  ",
        **{"transform": axes.get_xaxis_transform(), "va": "top"},
        ha="left" if mean < 0.6 * longest else "right",
    )
    axes.set_ylim(0, 115 * shares.max())
    axes.set_xlim(0.4, longest + 0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("committed steps of a round")
    axes.set_ylabel("rounds, %")
    _tidy(axes)
    return figure


def noise_shifts(rounds: Sequence[Round]) -> Figure:
    """Distribution of the noise shift |delta|, and what was rejected.

    Left: histogram over all steps that were accepted or rejected; the measured share of rejections
    in each bin (with its standard error) under the probability of rejection, 2 Phi(|delta|/2) - 1,
    on a second axis. Right: median and quartiles by site, of the sites that were reached.

    Raises
    ------
    ValueError
        If no step was accepted or rejected, as where every window is one step long.
    """
    rounds = _rounds(rounds)
    shifts = np.array([shift for each in rounds for shift in each.noise_shifts])
    sites = np.array([site for each in rounds for site in range(len(each.noise_shifts))])
    if not len(shifts):
        raise ValueError(f"none of the {len(rounds)} rounds has a step with a noise shift")
    rejected = np.concatenate(
        [np.arange(len(r.noise_shifts)) == len(r.noise_shifts) - r.rejected for r in rounds]
    )
    figure = _figure(3.1)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.get_layout_engine().set(wspace=0.06)

    # What lies beyond is rejected anyway, and would flatten the rest.
    largest = min(float(shifts.max()), LARGEST_SHIFT) or 1.0
    beyond = shifts > largest
    if beyond.any():
        text = f"{100 * beyond.mean():.2g} % lie beyond"
        left.text(0.97, 0.35, text, transform=left.transAxes, ha="right", fontsize=SMALL)
    shown, rejected = shifts[~beyond], rejected[~beyond]
    edges = np.linspace(0.0, largest, 21)
    counts = [np.histogram(shown[which], edges)[0] for which in (~rejected, rejected)]
    total = counts[0] + counts[1]
    width, below = edges[1], np.zeros(20)
    for count, colour, label in zip(counts, (LSD, REJECTED), ("accepted", "rejected"), strict=True):
        left.bar(edges[:-1], count, width, bottom=below, align="edge", color=colour, label=label)
        below = below + count
    left.set_xlabel(r"noise shift $|\delta|$")
    left.set_ylabel("steps")
    left.set_xlim(0.0, largest)
    chance = left.twinx()
    curve = np.linspace(0.0, largest, 200)
    chance.plot(
        curve,
        rejection_probability(curve),
        color=PREDICTION,
        label=r"predicted: $2\Phi(|\delta|/2)-1$",
    )
    many = total >= 5
    share = counts[1][many] / total[many]
    # As if one more had gone either way, so that 0 and 1 have an error too.
    smooth = (counts[1][many] + 1) / (total[many] + 2)
    chance.errorbar(
        [shown[(shown >= low) & (shown <= low + width)].mean() for low in edges[:-1][many]],
        share,
        np.sqrt(smooth * (1 - smooth) / total[many]),
        **{"fmt": "o", "markersize": 3.5, "color": PREDICTION, "elinewidth": 1},
        label="share rejected",
    )
    chance.set_ylim(0.0, 1.05)
    chance.set_ylabel("probability of rejection")
    chance.spines["top"].set_visible(False)

    reached = np.unique(sites)
    low, middle, high = np.array(
        [np.quantile(shifts[sites == site], [0.25, 0.5, 0.75]) for site in reached]
    ).T
    right.errorbar(
        reached + 1,
        middle,
        np.array([middle - low, high - middle]),
        **{"fmt": "o", "markersize": 4, "color": LSD, "elinewidth": 1},
    )
    right.set_xlabel("site of the window")
    right.set_ylabel(r"$|\delta|$, median and quartiles")
    right.set_ylim(bottom=0.0)
    right.xaxis.get_major_locator().set_params(integer=True)
    _tidy(left)
    _tidy(right)
    _legend_below(figure, ncols=4)
    return figure


def time_breakdown(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Where the time of a step goes: a bar for each run, stacked of its parts.

    Parameters
    ----------
    rows : mapping, label -> {"target", "draft", "learning", "overhead": milliseconds per step}
        Parts may be missing; plain dynamics has the target alone.

    Raises
    ------
    ValueError
        If there are no rows, a part has another name, or a time is negative or not finite.
    """
    if not rows:
        raise ValueError("there are no rows to draw")
    for label, row in rows.items():
        unknown = set(row) - set(PARTS)
        if unknown:
            raise ValueError(f"row {label!r} has {sorted(unknown)}; parts are {list(PARTS)}")
        if not row or not all(math.isfinite(time) and time >= 0 for time in row.values()):
            raise ValueError(f"row {label!r} is {dict(row)}; times must not be negative")
    figure = _figure(1.0 + 0.42 * len(rows))
    axes = figure.add_subplot()
    totals = np.array([sum(row.values()) for row in rows.values()])
    longest = totals.max() or 1.0
    begin = np.zeros(len(rows))
    for part, colour in PARTS.items():
        times = np.array([row.get(part, 0.0) for row in rows.values()])
        if not times.any():
            continue
        axes.barh(list(rows), times, 0.65, left=begin, color=colour, label=part)
        for y, (start, time) in enumerate(zip(begin, times, strict=True)):
            if time > 0.07 * longest:
                axes.text(
                    start + time / 2,
                    y,
                    f"{time:.3g}",
                    **{"ha": "center", "va": "center", "fontsize": SMALL},
                    color="white" if part == "target" else "black",
                )
        begin = begin + times
    for y, total in enumerate(totals):
        axes.text(total + 0.01 * longest, y, f"{total:.3g} ms", va="center", fontweight="bold")
    axes.set_xlim(0, 1.16 * longest)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step")
    _legend_below(figure, ncols=4)
    _tidy(axes)
    axes.tick_params(left=False)
    return figure


def speed_up(
    windows: ArrayLike,
    measured: ArrayLike | None = None,
    measured_range: ArrayLike | None = None,
    predicted: ArrayLike | None = None,
    steps_per_round: ArrayLike | None = None,
    predicted_steps_per_round: ArrayLike | None = None,
) -> Figure:
    """Speed-up over plain dynamics against the window length; if given, steps per round below it.

    Parameters
    ----------
    windows : (n,) int
        K, ascending.
    measured, predicted, steps_per_round, predicted_steps_per_round : (n,), optional
        NaN where there is none. Measured ones are points, predicted ones a line.
    measured_range : (n, 2), optional
        Quartiles of what was measured.

    Raises
    ------
    ValueError
        If neither a measured nor a predicted speed-up is given, shapes do not match, or the windows
        are not positive and ascending.
    """
    windows = _array("windows", windows, (None,))
    if (windows < 1).any() or (np.diff(windows) <= 0).any():
        raise ValueError(f"windows are {windows.tolist()}; they must be positive and ascending")
    if measured is None and predicted is None:
        raise ValueError("give the measured or the predicted speed-up, or both")
    if measured is None and measured_range is not None:
        raise ValueError("measured_range needs measured")
    panels = 1 + (steps_per_round is not None or predicted_steps_per_round is not None)
    label = "LSD, measured" + (" (bars: quartiles)" if measured_range is not None else "")
    figure = _figure(0.6 + 2.3 * panels)
    all_axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
    top, bottom = all_axes[0], all_axes[-1]
    top.axhline(1.0, color=PLAIN, linewidth=1.6, label="plain dynamics")
    _points_and_line(top, windows, measured, measured_range, predicted, label)
    top.set_ylabel("speed-up over plain")
    if panels == 2:
        _points_and_line(bottom, windows, steps_per_round, None, predicted_steps_per_round, label)
        bottom.set_ylabel("steps per round")
    for axes in all_axes:
        axes.set_ylim(0.0, 1.05 * axes.get_ylim()[1])
        _tidy(axes)
    bottom.set_xscale("log", base=2)
    bottom.set_xticks(windows, [f"{window:g}" for window in windows])
    bottom.minorticks_off()
    bottom.set_xlabel("window length K")
    _legend_below(figure, ncols=3)
    return figure


def _points_and_line(
    axes: Any,
    x: Array,
    measured: ArrayLike | None,
    measured_range: ArrayLike | None,
    predicted: ArrayLike | None,
    label: str,
) -> None:
    if predicted is not None:
        values = _array("what is predicted", predicted, x.shape, finite=False)
        axes.plot(x, values, color=PREDICTION, label="LSD, predicted")
    if measured is None:
        return
    values = _array("what is measured", measured, x.shape, finite=False)
    bars = None
    if measured_range is not None:
        quartiles = _array("measured_range", measured_range, (len(x), 2), finite=False).T
        bars = np.abs(quartiles - values)
    axes.errorbar(x, values, bars, fmt="o", color=LSD, capsize=3, markersize=5.5, label=label)


def ramachandran(
    lsd_angles: ArrayLike,
    plain_angles: ArrayLike,
    names: tuple[str, str] = ("phi", "psi"),
) -> Figure:
    """Two dihedrals against each other: contours of LSD over the filled density of plain dynamics.

    Both are smoothed by a Gaussian of 10 degrees and drawn as free energies, in kT above the lowest
    of each.

    Parameters
    ----------
    lsd_angles, plain_angles : (T, 2) radians
        The two may have different lengths.
    names : of the two angles

    Raises
    ------
    ValueError
        If the shapes are others, there are no frames, or an angle is not finite.
    """
    energies = []
    for name, angles in (("plain_angles", plain_angles), ("lsd_angles", lsd_angles)):
        density = _periodic_density(_array(name, angles, (None, 2)))
        energies.append(-np.log(np.maximum(density / density.max(), 1e-300)))
    figure = _figure(4.6, width=5.6)
    axes = figure.add_subplot()
    degrees = np.linspace(-180, 180, len(energies[0]))
    levels = np.arange(0.0, 6.5, 1.0)
    filled = axes.contourf(degrees, degrees, energies[0].T, levels, cmap="Oranges_r", vmin=-3)
    lines = axes.contour(degrees, degrees, energies[1].T, levels[1:], colors=LSD, linewidths=1.3)
    axes.plot([], [], color=LSD, linewidth=1.3, label="LSD (contours)")
    axes.fill([], [], color=PLAIN, label="plain dynamics (filled)")
    figure.colorbar(filled, ax=axes, label="free energy, kT").add_lines(lines, erase=False)
    for limits in (axes.set_xlim, axes.set_ylim):
        limits(-180, 180)
    axes.set_xticks(range(-180, 181, 60))
    axes.set_yticks(range(-180, 181, 60))
    axes.set_aspect("equal")
    axes.set_xlabel(f"{_greek(names[0])}, degrees")
    axes.set_ylabel(f"{_greek(names[1])}, degrees")
    _legend_below(figure)
    return figure


def _periodic_density(angles: Array, bins: int = 72, width: float = math.radians(10)) -> Array:
    """Density at ``bins`` + 1 points per angle from -pi to pi; the last are the first again."""
    shifted = angles + math.pi / bins  # so that the centres of cells lie on the corners
    wrapped = (shifted + math.pi) % (2 * math.pi) - math.pi
    edges = np.linspace(-math.pi, math.pi, bins + 1)
    counts = np.histogram2d(wrapped[:, 0], wrapped[:, 1], bins=(edges, edges))[0]
    frequencies = np.fft.fftfreq(bins, 1 / bins)
    gauss = np.exp(-0.5 * (width * frequencies) ** 2)
    smooth = np.fft.ifft2(np.fft.fft2(counts) * np.outer(gauss, gauss)).real
    return np.pad(smooth, ((0, 1), (0, 1)), mode="wrap")


def dihedrals(
    lsd: ArrayLike, plain: ArrayLike, names: Sequence[str], bins: int = 36, blocks: int = 10
) -> Figure:
    """Histograms of dihedrals, LSD over plain dynamics, one panel each.

    Error bars are standard errors from ``blocks`` blocks of consecutive frames.

    Parameters
    ----------
    lsd, plain : (T, n) radians
        The two may have different lengths, at least ``blocks``.
    names : n names
        The first 12 are drawn; if there are more, the picture says so.

    Raises
    ------
    ValueError
        If the shapes are others, there are too few frames, or an angle is not finite.
    """
    lsd, plain = (
        (np.degrees(_array(name, angles, (None, None))) + 180) % 360 - 180
        for name, angles in (("lsd", lsd), ("plain", plain))
    )
    for name, angles in zip(("lsd", "plain"), (lsd, plain), strict=True):
        if angles.shape[1] != len(names):
            raise ValueError(
                f"{name} has {angles.shape[1]} dihedrals, and there are {len(names)} names"
            )
    count = min(len(names), MOST_DIHEDRALS)
    columns = min(count, 3)
    lines = -(-count // columns)
    figure = _figure(0.9 + 1.65 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    edges = np.linspace(-180, 180, bins + 1)
    for n, (axes, name) in enumerate(zip(panels, names[:count], strict=False)):
        for degrees, colour, label, shift in (
            (plain, PLAIN, "plain", -0.12),
            (lsd, LSD, "LSD", 0.12),
        ):
            density, error = _block_histogram(degrees[:, n], edges, blocks)
            axes.stairs(
                1e2 * density, edges, baseline=None, color=colour, linewidth=1.3, label=label
            )
            # Beside each other, so that both error bars are seen.
            centres = 0.5 * (edges[1:] + edges[:-1]) + shift * (edges[1] - edges[0])
            axes.errorbar(centres, 1e2 * density, 1e2 * error, fmt="none", ecolor=colour)
        axes.set_title(_greek(name), fontsize=10)
        axes.set_xlim(-180, 180)
        axes.set_xticks([-180, -90, 0, 90, 180])
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=SMALL)
        _tidy(axes)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("degrees")
    if count < len(names):
        figure.suptitle(f"the first {count} of {len(names)}", fontsize=10)
    figure.supylabel("density, % per degree", fontsize=10)
    _legend_below(figure)
    return figure


def _block_histogram(values: Array, edges: Array, blocks: int) -> tuple[Array, Array]:
    """Density, and its standard error from blocks of consecutive values."""
    if not 2 <= blocks <= len(values):
        raise ValueError(f"{len(values)} frames cannot make {blocks} blocks (at least two)")
    width = edges[1] - edges[0]
    parts = [np.histogram(b, edges)[0] / (len(b) * width) for b in np.array_split(values, blocks)]
    density = np.histogram(values, edges)[0] / (len(values) * width)
    return density, np.std(parts, axis=0, ddof=1) / math.sqrt(blocks)


def autocorrelation(
    times: ArrayLike,
    lsd: ArrayLike,
    plain: ArrayLike,
    lsd_error: ArrayLike | None = None,
    plain_error: ArrayLike | None = None,
    label: str = "velocity autocorrelation",
) -> Figure:
    """An autocorrelation function, LSD over plain dynamics, with bands of one standard error.

    Parameters
    ----------
    times : (n,) fs
    lsd, plain : (n,), of any one unit
    lsd_error, plain_error : (n,), optional
        Standard errors.
    label : of the vertical axis

    Raises
    ------
    ValueError
        If there are no times, shapes do not match or a number is not finite.
    """
    times = _array("times", times, (None,))
    figure = _figure(3.0)
    axes = figure.add_subplot()
    axes.axhline(0.0, color="#999999", linewidth=0.8)
    for name, values, error, colour, style in (
        ("plain", plain, plain_error, PLAIN, "-"),
        ("LSD", lsd, lsd_error, LSD, (0, (4, 2))),
    ):
        curve = _array(name.lower(), values, times.shape)
        axes.plot(times, curve, color=colour, linestyle=style, linewidth=1.8, label=name)
        if error is not None:
            band = _array(f"{name.lower()}_error", error, times.shape)
            axes.fill_between(
                times, curve - band, curve + band, color=colour, alpha=0.25, linewidth=0
            )
    axes.set_xlim(times[0], times[-1])
    axes.set_xlabel("time, fs")
    axes.set_ylabel(label)
    axes.legend(frameon=False)
    _tidy(axes)
    return figure


def kinetic_energy(
    lsd: ArrayLike, plain: ArrayLike, dof: int, temperature: float, blocks: int = 10
) -> Figure:
    """Histograms of the kinetic energy over its exact distribution, Gamma(dof / 2) times kT.

    Error bars are standard errors from ``blocks`` blocks of consecutive frames.

    Parameters
    ----------
    lsd, plain : (T,) kJ/mol
        The two may have different lengths, at least ``blocks``.
    dof : int
        Degrees of freedom: three for each particle with mass, less three where the motion of the
        centre of mass is removed.
    temperature : float, K

    Raises
    ------
    ValueError
        If there are too few energies, one is not finite, or ``dof`` or temperature are not
        positive.
    """
    lsd, plain = _array("lsd", lsd, (None,)), _array("plain", plain, (None,))
    if dof < 1 or not temperature > 0:
        raise ValueError(f"dof is {dof} and temperature {temperature}; both must be positive")
    thermal, shape = MOLAR_GAS_CONSTANT * temperature, 0.5 * dof
    both = np.concatenate([lsd, plain])
    edges = (
        np.linspace(both.min(), both.max(), 31)
        if np.ptp(both) > 0
        else both[0] + np.array([-0.5, 0.5])
    )
    spread = 4 * thermal * math.sqrt(shape)
    low = min(both.min(), max(0.0, shape * thermal - spread))
    curve = np.linspace(max(low, 1e-9), max(both.max(), shape * thermal + spread), 400)
    law = np.exp((shape - 1) * np.log(curve / thermal) - curve / thermal - math.lgamma(shape))
    figure = _figure(3.0)
    axes = figure.add_subplot()
    centres = 0.5 * (edges[1:] + edges[:-1])
    for energies, colour, shift, style in (
        (lsd, LSD, 0.12, {"label": "LSD", "fill": True, "alpha": 0.35}),
        (plain, PLAIN, -0.12, {"label": "plain", "linewidth": 1.6}),
    ):
        density, error = _block_histogram(energies, edges, blocks)
        axes.stairs(density, edges, color=colour, **style)
        beside = centres + shift * (edges[1] - edges[0])
        axes.errorbar(beside, density, error, fmt="none", ecolor=colour)
    axes.plot(curve, law / thermal, color=PREDICTION, label="exact distribution")
    axes.set_xlabel("kinetic energy, kJ/mol")
    axes.set_ylabel("density, mol/kJ")
    axes.legend(frameon=False)
    _tidy(axes)
    return figure


def sweep(
    x: ArrayLike,
    series: Mapping[str, tuple[ArrayLike, ArrayLike | None, ArrayLike]],
    xlabel: str,
    ylabel: str,
    xscale: str = "log",
    yscale: str = "linear",
) -> Figure:
    """Predictions as lines over measured points, against one quantity: theory over measurement.

    Such as the mean noise shift, or the steps per round, of the constant-offset rule against the
    friction, with a series for every time step.

    Parameters
    ----------
    x : (n,), ascending
    series : mapping, label -> (measured (n,), standard error (n,) or None, predicted (n,))
        NaN where there is none. At most six.
    xlabel, ylabel : with their units
    xscale, yscale : "log" or "linear"

    Raises
    ------
    ValueError
        If there is no series or more than six, or shapes do not match.
    """
    x = _array("x", x, (None,))
    if not 1 <= len(series) <= len(SERIES):
        raise ValueError(f"{len(series)} series; a picture has 1 to {len(SERIES)}")
    figure = _figure(3.4)
    axes = figure.add_subplot()
    for (label, values), colour, marker in zip(series.items(), SERIES, MARKERS, strict=False):
        measured, predicted = (
            _array(f"series {label!r}", values[k], x.shape, finite=False) for k in (0, 2)
        )
        error = None
        if values[1] is not None:
            error = _array(f"errors of {label!r}", values[1], x.shape, finite=False)
        axes.plot(x, predicted, color=colour, linewidth=1.5)
        axes.errorbar(
            x,
            measured,
            error,
            **{"fmt": marker, "color": colour, "markersize": 5, "capsize": 3},
            label=label,
        )
    axes.plot([], [], color=PREDICTION, label="lines: predicted")
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False)
    _tidy(axes)
    return figure


def _figure(height: float, width: float = WIDTH) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib; install it with: {INSTALL}") from error
    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(figure: Any, handles: list[Any] | None = None, ncols: int = 2) -> None:
    """One legend for all panels, every label once."""
    if handles is None:
        handles = [h for axes in figure.axes for h in axes.get_legend_handles_labels()[0]]
    entries: dict[str, Any] = {}
    for handle in handles:
        entries.setdefault(handle.get_label(), handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        **{"loc": "outside lower center", "ncols": ncols, "frameon": False, "fontsize": SMALL},
        **{"handlelength": 1.5, "columnspacing": 1.5},
    )


def _greek(name: str) -> str:
    return {"phi": "φ", "psi": "ψ", "omega": "ω", "chi": "χ"}.get(name, name)


def _end(each: Round) -> int:
    return each.step + each.committed


def _rounds(rounds: Sequence[Round]) -> Sequence[Round]:
    if not len(rounds):
        raise ValueError("there are no rounds to draw")
    return rounds


def _array(name: str, values: Any, shape: tuple[int | None, ...], finite: bool = True) -> Array:
    """As float64; an error unless of that shape (None: any length), not empty and finite."""
    array = np.asarray(values, dtype=np.float64)
    fits = array.ndim == len(shape) and all(
        expected in (None, got) for got, expected in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = str(shape).replace("None", "any")
        raise ValueError(f"{name} has shape {array.shape}; expected {wanted}")
    if not array.size:
        raise ValueError(f"{name} is empty")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"{name} has {np.sum(~np.isfinite(array))} numbers that are not finite")
    return array
