"""The animated picture of docs/theory.md: rounds of LSD for one particle in one dimension.

    python benchmarks/make_round_animation.py

The real sampler: a particle in an anharmonic well, drafted in a harmonic one, K = 8.
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from openmm_lsd import SpeculativeSampler
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.core.schemes import Middle

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "figures" / "rounds.gif"
WINDOW, ROUNDS, SEED = 8, 6, 13
DRAFTED, ACCEPTED, MOVED, FADED, TEXT = "#0072B2", "#009E73", "#D55E00", "#C8CDD2", "#222222"
STIFFNESS = 3.0e3  # kJ/mol/nm^2
DRAFT_MS, READ_MS = 110, 1300


class Recording(NumpyEngine):
    """Keeps what was drafted and committed."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.rounds = []

    def draft(self, state, *arguments):
        window = super().draft(state, *arguments)
        self.rounds.append({"step": state.step, "at": state.positions[0, 0], "window": window})
        return window

    def commit(self, state, window, target_forces, draws):
        committed = super().commit(state, window, target_forces, draws)
        path = [each.positions[0, 0] for each in committed.states(state.step)]
        self.rounds[-1].update(path=path, accepted=committed.accepted)
        return committed


def run():
    """Rounds of one particle whose first coordinate feels the forces."""

    def draft(positions):
        return -STIFFNESS * positions * [1, 0, 0]

    def target(states):
        x = states * [1, 0, 0]
        return -STIFFNESS * (2.0 * x - 20.0 * np.abs(x) * x)

    engines = []

    def engine(*arguments):
        engines.append(Recording(*arguments))
        return engines[0]

    scheme = Middle(300.0, 2.0, 0.01)
    sampler = SpeculativeSampler.of_forces(
        scheme, [12.0], draft, target, WINDOW, SEED, engine=engine
    )
    sampler.set_state(np.array([[0.02, 0.0, 0.0]]), np.array([[0.4, 0.0, 0.0]]))
    while len(engines[0].rounds) < 30:
        sampler.advance(1)
    return engines[0].rounds


def picture(axes, done, words, drafted=(), ringed=False, committed=(), accepted=True, faded=()):
    """One frame, as a PIL image."""
    axes.clear()
    axes.axis("off")
    axes.set_xlim(done[0][0] - 1.0, done[0][0] + 41)
    axes.set_ylim(-0.05, 0.06)
    axes.plot(*zip(*done, strict=True), "o-", color=ACCEPTED, ms=5, lw=1.5)
    if len(faded):
        axes.plot(*zip(*faded, strict=True), "o--", color=FADED, ms=6, lw=1, mfc="white")
    if len(drafted) > 1:
        path = list(zip(*drafted, strict=True))
        axes.plot(*path, "o--", color=DRAFTED, ms=6, lw=1, mfc="white")
        if ringed:
            axes.plot(*path, "o", color=MOVED, ms=13, mfc="none", mew=1.6)
    if len(committed) > 1:
        path = list(zip(*committed, strict=True))
        axes.plot(*path, "o-", color=ACCEPTED, ms=7, lw=2)
        if not accepted:
            axes.plot(path[0][-1:], path[1][-1:], "o", color=MOVED, ms=9)
    axes.text(0.02, 0.96, words, transform=axes.transAxes, fontsize=12, color=TEXT, va="top")
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def main():
    figure = Figure((7.0, 3.2), dpi=100, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    rounds = run()[4:]
    done = [(rounds[0]["step"], rounds[0]["at"])]
    frames, milliseconds = [], []

    def show(duration, *arguments, **settings):
        frames.append(picture(axes, done, *arguments, **settings))
        milliseconds.append(duration)

    for number, each in enumerate(rounds[:ROUNDS]):
        start = (each["step"], each["at"])
        sites = each["window"].sites[:, 0, 0]
        drafted = [(start[0] + k, x) for k, x in enumerate(sites)]  # the first is the start
        for k in range(2, len(drafted) + 1):
            show(DRAFT_MS, "1. The cheap draft runs 8 steps ahead.", drafted=drafted[:k])
        words = "2. The expensive potential: all 8 states in one batch."
        show(READ_MS, words, drafted=drafted, ringed=True)
        path = [start, *((start[0] + 1 + k, x) for k, x in enumerate(each["path"]))]
        count = len(each["path"])
        words = f"3. {count} exact steps are committed" + (
            ": the whole window." if each["accepted"] else "; the last one is moved."
        )
        show(READ_MS, words, faded=drafted[count:], committed=path, accepted=each["accepted"])
        done += path[1:]
        if number == 0:
            words = "4. What the batch measured at the other steps\n    corrects the next draft."
            show(READ_MS, words, faded=drafted[count:])
    frames[0].save(
        OUTPUT,
        save_all=True,
        append_images=frames[1:],
        duration=milliseconds,
        loop=0,
        optimize=True,
    )
    print(f"{OUTPUT}: {len(frames)} frames, {OUTPUT.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
