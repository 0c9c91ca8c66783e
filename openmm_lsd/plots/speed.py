"""Pictures of where the time goes, and of the speed-up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .style import (
    LSD,
    MARKERS,
    PLAIN,
    PREDICTION,
    SERIES,
    SMALL,
    Array,
    checked,
    legend_below,
    new_figure,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {"target": "#44546A", "draft": "#E69F00", "learning": "#009E73", "overhead": "#BBBBBB"}


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
    figure = new_figure(1.0 + 0.42 * len(rows))
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
    legend_below(figure, ncols=4)
    tidy(axes)
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
    windows = checked("windows", windows, (None,))
    if (windows < 1).any() or (np.diff(windows) <= 0).any():
        raise ValueError(f"windows are {windows.tolist()}; they must be positive and ascending")
    if measured is None and predicted is None:
        raise ValueError("give the measured or the predicted speed-up, or both")
    if measured is None and measured_range is not None:
        raise ValueError("measured_range needs measured")
    panels = 1 + (steps_per_round is not None or predicted_steps_per_round is not None)
    label = "LSD, measured" + (" (bars: quartiles)" if measured_range is not None else "")
    figure = new_figure(0.6 + 2.3 * panels)
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
        tidy(axes)
    bottom.set_xscale("log", base=2)
    bottom.set_xticks(windows, [f"{window:g}" for window in windows])
    bottom.minorticks_off()
    bottom.set_xlabel("window length K")
    legend_below(figure, ncols=3)
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
        values = checked("what is predicted", predicted, x.shape, finite=False)
        axes.plot(x, values, color=PREDICTION, label="LSD, predicted")
    if measured is None:
        return
    values = checked("what is measured", measured, x.shape, finite=False)
    bars = None
    if measured_range is not None:
        quartiles = checked("measured_range", measured_range, (len(x), 2), finite=False).T
        bars = np.abs(quartiles - values)
    axes.errorbar(x, values, bars, fmt="o", color=LSD, capsize=3, markersize=5.5, label=label)


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
    x = checked("x", x, (None,))
    if not 1 <= len(series) <= len(SERIES):
        raise ValueError(f"{len(series)} series; a picture has 1 to {len(SERIES)}")
    figure = new_figure(3.4)
    axes = figure.add_subplot()
    for (label, values), colour, marker in zip(series.items(), SERIES, MARKERS, strict=False):
        measured, predicted = (
            checked(f"series {label!r}", values[k], x.shape, finite=False) for k in (0, 2)
        )
        error = None
        if values[1] is not None:
            error = checked(f"errors of {label!r}", values[1], x.shape, finite=False)
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
    tidy(axes)
    return figure
