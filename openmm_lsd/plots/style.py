"""Colours, sizes and legends of all pictures, and checks of what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

INSTALL = 'pip install "openmm-lsd[plots]"'

# Okabe and Ito's palette, which the colour-blind can tell apart.
LSD, PLAIN, PREDICTION = "#0072B2", "#D55E00", "#222222"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"

WIDTH, SMALL = 7.0, 9.0  # inches; points


def new_figure(height: float, width: float = WIDTH) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib; install it with: {INSTALL}") from error
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Any, handles: list[Any] | None = None, ncols: int = 2) -> None:
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


def checked(name: str, values: Any, shape: tuple[int | None, ...], finite: bool = True) -> Array:
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
