"""The picture of docs/solution.md: what draft and target of a mixed System share.

python benchmarks/make_shared_figure.py
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "figures" / "shared_forces.png"
SHARED, SLOW, STAND_IN, TEXT = "#DCE3EA", "#0072B2", "#E69F00", "#222222"


def box(axes, left, title, solute, solute_words):
    """A box of water with a molecule in it."""
    axes.add_patch(
        FancyBboxPatch((left, 1.5), 4.0, 3.4, "round,pad=0,rounding_size=0.15", color=SHARED)
    )
    rng = np.random.default_rng(4)
    centre = np.array([left + 2.0, 3.2])
    placed = []
    while len(placed) < 34:
        at = rng.uniform([left + 0.2, 1.7], [left + 3.8, 4.7])
        near = [np.linalg.norm(at - other) < 0.42 for other in placed]
        if np.linalg.norm((at - centre) / [1.45, 0.85]) > 1 and not any(near):
            placed.append(at)
            axes.add_patch(Circle(at, 0.09, color="#9AA8B5"))
    chain = centre + np.array([[-0.8, -0.15], [-0.4, 0.2], [0.0, -0.1], [0.4, 0.2], [0.8, -0.15]])
    axes.plot(*chain.T, color=solute, lw=4, zorder=2)
    for at in chain:
        axes.add_patch(Circle(at, 0.17, color=solute, zorder=3))
    axes.text(left + 2.0, 5.15, title, ha="center", fontsize=11, weight="bold", color=TEXT)
    axes.text(left + 2.0, 3.75, solute_words, ha="center", fontsize=9, color=solute)


def main():
    figure = Figure((7.0, 3.9), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    box(axes, 0.0, "target", SLOW, "network")
    box(axes, 5.0, "draft", STAND_IN, "valence force field")
    rows = [
        (SHARED, "all else: the same forces in both, evaluated once per site"),
        (SLOW, "of the target only: K subsets, one batch per round"),
        (STAND_IN, "of the draft only: microseconds per site"),
    ]
    for row, (color, words) in enumerate(rows):
        y = 1.05 - 0.42 * row
        axes.add_patch(FancyBboxPatch((0.1, y - 0.12), 0.4, 0.24, "square,pad=0", color=color))
        axes.text(0.7, y, words, va="center", fontsize=10, color=TEXT)
    axes.set_xlim(-0.1, 9.1)
    axes.set_ylim(0.0, 5.5)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(OUTPUT, dpi=200)


if __name__ == "__main__":
    main()
