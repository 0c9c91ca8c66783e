"""Pictures of LSD over plain dynamics: their distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..core.schemes import MOLAR_GAS_CONSTANT
from .style import (
    LSD,
    PLAIN,
    PREDICTION,
    SMALL,
    Array,
    checked,
    legend_below,
    new_figure,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DIHEDRALS = 12


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
        density = _periodic_density(checked(name, angles, (None, 2)))
        energies.append(-np.log(np.maximum(density / density.max(), 1e-300)))
    figure = new_figure(4.6, width=5.6)
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
    legend_below(figure)
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
        (np.degrees(checked(name, angles, (None, None))) + 180) % 360 - 180
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
    figure = new_figure(0.9 + 1.65 * lines)
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
        tidy(axes)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("degrees")
    if count < len(names):
        figure.suptitle(f"the first {count} of {len(names)}", fontsize=10)
    figure.supylabel("density, % per degree", fontsize=10)
    legend_below(figure)
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
    times = checked("times", times, (None,))
    figure = new_figure(3.0)
    axes = figure.add_subplot()
    axes.axhline(0.0, color="#999999", linewidth=0.8)
    for name, values, error, colour, style in (
        ("plain", plain, plain_error, PLAIN, "-"),
        ("LSD", lsd, lsd_error, LSD, (0, (4, 2))),
    ):
        curve = checked(name.lower(), values, times.shape)
        axes.plot(times, curve, color=colour, linestyle=style, linewidth=1.8, label=name)
        if error is not None:
            band = checked(f"{name.lower()}_error", error, times.shape)
            axes.fill_between(
                times, curve - band, curve + band, color=colour, alpha=0.25, linewidth=0
            )
    axes.set_xlim(times[0], times[-1])
    axes.set_xlabel("time, fs")
    axes.set_ylabel(label)
    axes.legend(frameon=False)
    tidy(axes)
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
    lsd, plain = checked("lsd", lsd, (None,)), checked("plain", plain, (None,))
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
    figure = new_figure(3.0)
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
    tidy(axes)
    return figure


def _greek(name: str) -> str:
    return {"phi": "φ", "psi": "ψ", "omega": "ω", "chi": "χ"}.get(name, name)
