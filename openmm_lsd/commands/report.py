"""What ``validate`` found, as one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import html
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .. import plots
from ..plots import INSTALL
from .case import Array
from .machine import machine
from .validation.longruns import BLOCKS, LongRun
from .validation.result import Validation

STYLE = """
:root{color-scheme:light dark;--line:#ccc;--bad:#a00}
body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
.wide{overflow-x:auto}
table{border-collapse:collapse;min-width:40em}
td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
img{max-width:100%;height:auto;background:#fff;border-radius:4px}
.failed{color:var(--bad);font-weight:bold}
.verdict{font-size:1.2em}
@media (prefers-color-scheme:dark){:root{--line:#555;--bad:#f77}}
@media (max-width:40em){body{margin:1em auto}h1{font-size:1.4em}h2{font-size:1.1em}}
"""
WORDS = {True: "passed", False: "FAILED", None: "not judged"}


def figures(result: Validation) -> dict[str, Any]:
    """Pictures by their captions; those of the long runs only if there were any."""
    lsd, plain = result.lsd, result.plain
    if lsd is None or plain is None:
        return {}
    drawn: dict[str, Any] = {}
    if result.dihedral_names:
        drawn["Dihedral angles, LSD over plain dynamics"] = plots.dihedrals(
            _in_a_row(lsd), _in_a_row(plain), result.dihedral_names, blocks=BLOCKS
        )
    pair = _phi_and_psi(result.dihedral_names)
    if pair is not None:
        columns = [pair[name] for name in ("phi", "psi")]
        drawn["Ramachandran plot, LSD over plain dynamics"] = plots.ramachandran(
            _in_a_row(lsd)[:, columns], _in_a_row(plain)[:, columns]
        )
    means, errors = zip(*map(_mean_and_error, (lsd, plain)), strict=True)
    known = np.isfinite(means).all(axis=0)
    drawn["Velocity autocorrelation function, mass-weighted, over its value at zero"] = (
        plots.autocorrelation(
            1e3 * result.times[known], *(part[known] for part in (*means, *errors))
        )
    )
    drawn["Kinetic energy against its exact distribution"] = plots.kinetic_energy(
        lsd.kinetic_energies.ravel(),
        plain.kinetic_energies.ravel(),
        result.case.degrees_of_freedom,
        result.case.temperature,
        blocks=BLOCKS,
    )
    drawn["Committed steps per round"] = plots.steps_per_round(result.rounds)
    drawn["Noise shifts and rejections"] = plots.noise_shifts(result.rounds)
    return drawn


def _in_a_row(run: LongRun) -> Array:
    """Dihedral angles (T, n) of all blocks."""
    return run.dihedrals.reshape(-1, run.dihedrals.shape[-1])


def _mean_and_error(run: LongRun) -> tuple[Array, Array]:
    blocks = run.autocorrelation
    return blocks.mean(axis=0), blocks.std(axis=0, ddof=1) / np.sqrt(BLOCKS)


def _phi_and_psi(names: list[str]) -> dict[str, int] | None:
    """Columns of the first backbone dihedrals, if there are both."""
    backbone = {"phi": ("C-N-CA-C", "C-CA-N-C"), "psi": ("N-CA-C-N", "N-C-CA-N")}
    found = {
        angle: next((names.index(name) for name in spelled if name in names), None)
        for angle, spelled in backbone.items()
    }
    if None in found.values():
        return None
    return {angle: column for angle, column in found.items() if column is not None}


def write_report(result: Validation, file: Path) -> None:
    """The report as HTML."""
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    rows = "".join(
        f"<tr><td class='{WORDS[check.passed].lower()}'>{WORDS[check.passed]}</td>"
        f"<td>{html.escape(check.name)}</td><td>{check.tests}</td><td>{check.p:.2g}</td>"
        f"<td>{check.threshold:.2g}</td><td>{html.escape(check.worst)}"
        f"{'<br>' + html.escape(check.note) if check.note else ''}</td></tr>"
        for check in result.checks
    )
    can_draw = find_spec("matplotlib") is not None
    drawn = figures(result) if can_draw else {}
    missing = "" if can_draw else f"<p>Pictures need matplotlib: {html.escape(INSTALL)}</p>"
    pictures = "".join(
        f"<h2>{html.escape(caption)}</h2><img alt='{html.escape(caption)}' "
        f"src='data:image/png;base64,{_png(figure)}'>"
        for caption, figure in drawn.items()
    )
    name = html.escape(result.case.name or "system")
    file.write_text(
        f"<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>LSD on {name}</title>"
        f"<style>{STYLE}</style><h1>Is the right distribution sampled? {name}</h1>"
        f"<p class='verdict'>{html.escape(result.verdict())}</p>"
        f"<p>{html.escape(result.case.conditions())}</p>"
        "<div class='wide'><table><tr><th></th><th>family of tests</th><th>tests</th>"
        f"<th>smallest p</th><th>must exceed</th><th>where</th></tr>{rows}</table></div>"
        f"{pictures}{missing}"
        f"<p><small>{html.escape(about)}</small></p></html>\n"
    )


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
