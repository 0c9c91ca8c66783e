"""Pictures of single rounds and their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.statistics import Round
from ..theory import rejection_probability
from .style import (
    LSD,
    PREDICTION,
    SMALL,
    legend_below,
    new_figure,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REJECTED, LAST, FLUSHED, FAILED = "#E69F00", "#56B4E9", "#D9D9D9", "#222222"
AT_MOST = 14  # rounds of a timeline
LARGEST_SHIFT = 5.0  # of a histogram; 99 % of such steps are rejected


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
    figure = new_figure(1.35 + 0.24 * len(rounds))
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
    legend_below(figure, handles)
    tidy(axes)
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
    figure = new_figure(2.8)
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
    tidy(axes)
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
    figure = new_figure(3.1)
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
    tidy(left)
    tidy(right)
    legend_below(figure, ncols=4)
    return figure


def _end(each: Round) -> int:
    return each.step + each.committed


def _rounds(rounds: Sequence[Round]) -> Sequence[Round]:
    if not len(rounds):
        raise ValueError("there are no rounds to draw")
    return rounds
