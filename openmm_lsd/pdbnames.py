"""PDB files in which atoms of a residue have the same name, of which OpenMM keeps one only."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from openmm import app

logger = logging.getLogger(__name__)

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ATOM_RECORDS = ("ATOM  ", "HETATM")
NAME_WIDTH = 4  # of an atom's name in a PDB file
SYMBOLS = {app.Element.getByAtomicNumber(number).symbol for number in range(1, 117)}


def with_unique_names(file: Path) -> tuple[str, int]:
    """The first model of a PDB file, and its number of atoms; alternate locations count once.

    OpenMM drops all atoms but one that have the same name in a residue, as ASE and Open Babel write
    them. They are renamed, by element and number.
    """
    lines = file.read_text(errors="replace").splitlines()
    models = [number for number, line in enumerate(lines) if line.startswith("ENDMDL")]
    if models and any(line.startswith(ATOM_RECORDS) for line in lines[models[0] :]):
        logger.warning("%s holds several models; the first is used", file)
        lines = [
            line
            for number, line in enumerate(lines)
            if number <= models[0] or line.startswith("CONECT")
        ]
    residues: list[list[int]] = []
    last: tuple[str, ...] | None = None
    for number, line in enumerate(lines):
        if line.startswith("TER"):
            last = None
        if not line.startswith(ATOM_RECORDS):
            continue
        alternate = line[16:17].strip()
        key = (line[21:22], line[22:27], last[2] if alternate and last else line[17:20])
        if key != last:
            residues.append([])
            last = key
        residues[-1].append(number)
    count = 0
    for residue in residues:
        names = [(lines[number][12:16], lines[number][16:17]) for number in residue]
        location_of = dict(reversed(names))  # the first of each name
        count += sum(location_of[name] == location for name, location in names)
        if len(set(names)) < len(names):
            _rename(file, lines, residue)
    return "\n".join(lines) + "\n", count


def _rename(file: Path, lines: list[str], residue: list[int]) -> None:
    """Give the atoms in these lines names of their own."""
    used: Counter[str] = Counter()
    part = 0
    for number in residue:
        line = f"{lines[number]:<80}"
        symbol = line[76:78].strip().capitalize()
        if symbol not in SYMBOLS:
            raise ValueError(
                f"{file}: residue {line[17:20].strip()} {line[22:27].strip()} has several atoms "
                f"named {line[12:16].strip()}, and columns 77 and 78 do not name the element; give "
                "the atoms different names"
            )
        width = NAME_WIDTH - len(symbol)
        if used[symbol] == len(DIGITS) ** width:  # the rest goes into another residue
            used.clear()
            part += 1
        name = symbol + _in_base_36(used[symbol], width)
        used[symbol] += 1
        insertion = line[26:27] if part == 0 else DIGITS[9 + part]
        lines[number] = f"{line[:12]}{name} {line[17:26]}{insertion}{line[27:]}"


def _in_base_36(number: int, width: int) -> str:
    result = ""
    for _ in range(width):
        number, digit = divmod(number, len(DIGITS))
        result = DIGITS[digit] + result
    return result
