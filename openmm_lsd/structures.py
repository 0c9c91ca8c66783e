"""Structures as users have them: from files of several formats, and from ``ase.Atoms``.

What a structure says (box, masses, velocities) is kept with where it is said, so that a run can be
set up by one rule and say what it took from where.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from openmm import app, unit

from .contexts.periodicity import topology_box
from .drafts.molgraph import graph_of_positions, molecules_of
from .pdbnames import NAME_WIDTH, with_unique_names
from .targets.ase import INSTALL, PARTLY_PERIODIC

if TYPE_CHECKING:
    import ase

Array = NDArray[np.float64]

AMBER_TOPOLOGIES, AMBER_COORDINATES = (
    (".prmtop", ".parm7"),
    (".inpcrd", ".rst7", ".restrt", ".ncrst"),
)
READABLE = (".pdb", ".mmcif", ".pdbx")
OF_ASE = (".cif", ".xyz", ".extxyz", ".vasp", ".poscar", ".traj")
NEUTRAL = {"charge": (0.0,), "spin": (0.0, 1.0)}  # in the info of Atoms; spin: 2 S + 1, or none
FORMATS = ".pdb, .cif (mmCIF or crystals), POSCAR, .xyz, .extxyz or .traj"


@dataclasses.dataclass(frozen=True)
class Structure:
    """What files, or Atoms, say of a structure.

    Parameters
    ----------
    topology : openmm.app.Topology
        With the box of what is periodic; a box of 1 angstrom in a file is none.
    positions : Quantity, (N, 3)
    velocities : Quantity, (N, 3), optional
        Where there are some, and not all zero.
    masses : (N,) amu, optional
        Where they are said; else they are those of the elements. Zero: does not move.
    sources : dict
        Where 'positions', 'box', 'velocities' and 'masses' are from, in words.
    species : ase.Atoms, optional
        What ASE read, without box and constraints: calculators look at its charges, magnetic
        moments and ``info`` too.
    """

    topology: app.Topology
    positions: unit.Quantity
    velocities: unit.Quantity | None = None
    masses: Array | None = None
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    species: ase.Atoms | None = None

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return self.topology.getNumAtoms()

    def particle_masses(self) -> Array:
        """Masses (N,) in amu: what is said, or else those of the elements.

        Raises
        ------
        ValueError
            If an element is unknown and no mass said, or there are extra points of a prmtop.
        """
        if self.masses is None:
            return element_masses(self.topology)
        sites = [
            atom
            for atom in self.topology.atoms()
            if atom.element is None and self.masses[atom.index] == 0
        ]
        if sites:
            raise ValueError(
                f"{_in_words(sites)}: no element and zero mass, as virtual sites have; only a "
                "System knows where these are, so give a System as the target"
            )
        return self.masses


def atomic_numbers(topology: app.Topology) -> NDArray[np.int64]:
    """Atomic numbers (N,).

    Raises
    ------
    ValueError
        Which atoms are of no known element.
    """
    _check_elements(topology)
    return np.array([atom.element.atomic_number for atom in topology.atoms()], dtype=np.int64)


def element_masses(topology: app.Topology) -> Array:
    """Masses (N,) in amu of the elements.

    Raises
    ------
    ValueError
        Which atoms are of no known element: of mass zero they would not move.
    """
    _check_elements(topology)
    return np.array([atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms()])


def _check_elements(topology: app.Topology) -> None:
    unknown = [atom for atom in topology.atoms() if atom.element is None]
    if not unknown:
        return
    raise ValueError(
        f"atoms of unknown element: {_in_words(unknown)}; name the elements (columns 77 and 78 of "
        "a PDB file), or say the masses, in a System or a prmtop"
    )


def _in_words(atoms: list[Any]) -> str:
    named = ", ".join(
        f"{atom.name} of residue {atom.residue.name} {atom.residue.id} (index {atom.index})"
        for atom in atoms[:5]
    )
    return named + (f" and {len(atoms) - 5} more" if len(atoms) > 5 else "")


def formula(topology: app.Topology) -> str:
    """Elements and their numbers in Hill's order, such as 'C6 H10 N2 O2'; '?' is unknown."""
    counts = Counter(
        "?" if atom.element is None else atom.element.symbol for atom in topology.atoms()
    )
    first = ["C", "H"] if "C" in counts else []
    order = [each for each in first if counts[each]] + sorted(set(counts) - set(first))
    return " ".join(f"{each}{counts[each] if counts[each] > 1 else ''}" for each in order)


# --- files --------------------------------------------------------------------------------------


def read_structure(topology: str | Path, coordinates: str | Path | None = None) -> Structure:
    """The structure in one file, or in a topology and a file of coordinates.

    Positions, velocities and box are those of the coordinates, the box of the topology if they have
    none. Masses are those of a prmtop (or of Atoms that have their own), else they are not said.

    Parameters
    ----------
    topology : path
        .prmtop, .parm7, or one of ``FORMATS``; what OpenMM does not read ASE does.
    coordinates : path, optional
        .inpcrd, .rst7, or one of ``FORMATS``. Default: the topology's own.

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no such file, or it cannot be read, or the two are not of the same atoms.
    ImportError
        If it takes ASE, which is not installed.
    """
    topology = Path(topology)
    for file in (topology, coordinates):
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {file}")
    if topology.suffix in AMBER_TOPOLOGIES:
        if coordinates is None:
            raise ValueError(f"{topology} holds no positions; give --coordinates too")
        base = _read_prmtop(topology)
    elif _is_readable(topology):
        base = _read_alone(topology)
    else:
        raise ValueError(f"{topology}: the topology must be a .prmtop, .parm7, {FORMATS} file")
    if coordinates is None:
        return base
    return _with_coordinates(base, topology, Path(coordinates))


def _with_coordinates(base: Structure, topology: Path, file: Path) -> Structure:
    other = _read_alone(file) if _is_readable(file) else _read_inpcrd(file)
    count = len(other.positions)
    if count != base.atoms:
        raise ValueError(f"{topology} has {base.atoms} atoms and {file} has {count}")
    for a, b in zip(base.topology.atoms(), other.topology.atoms(), strict=False):
        if a.element is not None and b.element is not None and a.element is not b.element:
            raise ValueError(
                f"atom {a.index} is {a.element.name} in {topology} and {b.element.name} in {file}; "
                "the two must have the same atoms in the same order"
            )
    sources = {**base.sources, **other.sources}
    if other.topology.getPeriodicBoxVectors() is not None:
        base.topology.setPeriodicBoxVectors(other.topology.getPeriodicBoxVectors())
    if base.masses is not None and "masses" in base.sources:
        sources["masses"] = base.sources["masses"]
    masses = other.masses if base.masses is None else base.masses
    if base.masses is not None and other.masses is not None:  # fixed atoms
        masses = np.where(other.masses == 0, 0.0, base.masses)
    species = other.species if charges_in_words(other.species) else base.species or other.species
    return Structure(base.topology, other.positions, other.velocities, masses, sources, species)


def _is_readable(file: Path) -> bool:
    return file.suffix.lower() in (*READABLE, *OF_ASE) or file.name.startswith(
        ("POSCAR", "CONTCAR")
    )


def _read(read: Callable[[Any], Any], file: Path, *arguments: Any) -> Any:
    try:
        return read(*(arguments or (str(file),)))
    except ImportError:
        raise
    except Exception as error:  # whatever a parser may raise
        raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error})") from error


def _read_alone(file: Path) -> Structure:
    """A structure of a format that needs no other file."""
    if file.suffix.lower() == ".pdb":
        return _read_pdb(file)
    if file.suffix.lower() in (".mmcif", ".pdbx") or (
        file.suffix.lower() == ".cif" and "_atom_site.Cartn_x" in file.read_text(errors="replace")
    ):
        return _read_mmcif(file)
    return _read_by_ase(file)


def _read_prmtop(file: Path) -> Structure:
    prmtop = _read(app.AmberPrmtopFile, file)
    masses = np.array(prmtop._prmtop.getMasses(), dtype=np.float64)
    return Structure(
        prmtop.topology, None, masses=masses, sources=_sources(file, prmtop.topology, masses=True)
    )


def _read_inpcrd(file: Path) -> Structure:
    """Its Topology has a box, but no atoms."""
    inpcrd = _read(app.AmberInpcrdFile, file)
    topology = app.Topology()
    if isinstance(inpcrd.boxVectors, unit.Quantity | list | tuple):  # or None, or False
        topology.setPeriodicBoxVectors(inpcrd.boxVectors)
        _drop_dummy_box(topology)
    velocities = inpcrd.velocities
    if not isinstance(velocities, unit.Quantity) or not np.any(np.array(velocities._value)):
        velocities = None
    sources = _sources(file, topology, positions=True, velocities=velocities is not None)
    return Structure(topology, inpcrd.positions, velocities, None, sources)


def _sources(file: Path | str, topology: app.Topology, **said: bool) -> dict[str, str]:
    name = file.name if isinstance(file, Path) else file
    said["box"] = topology.getPeriodicBoxVectors() is not None
    return {key: name for key, value in said.items() if value}


def _drop_dummy_box(topology: app.Topology) -> None:
    if topology_box(topology) is None:
        topology.setPeriodicBoxVectors(None)


def _read_pdb(file: Path) -> Structure:
    text, count = with_unique_names(file)
    with warnings.catch_warnings():  # of duplicate atoms, whose number is checked instead
        warnings.simplefilter("ignore", UserWarning)
        pdb = _read(app.PDBFile, file, io.StringIO(text))
    if pdb.topology.getNumAtoms() != count:
        raise ValueError(
            f"{file} has {count} atoms and is read as {pdb.topology.getNumAtoms()}: atoms of one "
            "residue with the same name? Give each a name of its own, or another format"
        )
    _drop_dummy_box(pdb.topology)
    return Structure(
        pdb.topology, pdb.positions, sources=_sources(file, pdb.topology, positions=True)
    )


def _read_mmcif(file: Path) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cif = _read(app.PDBxFile, file)
    _drop_dummy_box(cif.topology)
    return Structure(
        cif.topology, cif.positions, sources=_sources(file, cif.topology, positions=True)
    )


# --- ASE ----------------------------------------------------------------------------------------


def structure_of_atoms(atoms: ase.Atoms, source: str = "the Atoms") -> Structure:
    """The structure of ``ase.Atoms``: elements, positions, cell, masses, velocities, fixed atoms.

    OpenMM wants the first vector of a box along x and the second in the xy plane, and all of them
    reduced: where the cell is not so, the whole structure is turned, velocities too. Atoms under
    FixAtoms get mass zero, with which they do not move.

    Parameters
    ----------
    atoms : ase.Atoms
    source : str
        What to say of where it is from.

    Raises
    ------
    ValueError
        If the Atoms are periodic in one or two directions, or in a cell without volume; have sites
        that are occupied in part, or constraints other than FixAtoms.
    """
    from ase import units
    from ase.constraints import FixAtoms

    if not len(atoms):
        raise ValueError(f"{source}: there are no atoms")
    if atoms.pbc.any() and not atoms.pbc.all():
        raise ValueError(f"{source}: {PARTLY_PERIODIC.format(atoms.pbc.tolist())}")
    others = [each for each in atoms.constraints if not isinstance(each, FixAtoms)]
    if others:
        raise ValueError(
            f"{source}: the constraint {type(others[0]).__name__} of ASE has no counterpart here; "
            "only FixAtoms has"
        )
    for sites in atoms.info.get("occupancy", {}).values():
        if any(share < 1 for share in sites.values()):
            raise ValueError(f"{source}: some sites are occupied in part; choose one of the atoms")
    box, turn = None, np.eye(3)
    if atoms.pbc.all():
        if not abs(atoms.cell.volume) > 0:
            raise ValueError(f"{source}: periodic in a cell without volume, {atoms.cell.tolist()}")
        box, turn = _reduced_box(np.array(atoms.cell.array) / units.nm)
    positions = atoms.get_positions() @ turn / units.nm
    topology = _topology_of(atoms.numbers, positions, box)
    masses, velocities = _masses_of(atoms), _velocities_of(atoms, turn)
    said = {"masses": masses is not None, "velocities": velocities is not None, "positions": True}
    return Structure(
        topology,
        unit.Quantity(positions, unit.nanometer),
        velocities,
        masses,
        _sources(source, topology, **said),
        _species_of(atoms, turn),
    )


def _species_of(atoms: ase.Atoms, turn: Array) -> ase.Atoms:
    """A copy without box, constraints and momenta; vectors of magnetic moments are turned."""
    species = atoms.copy()
    species.set_constraint()
    species.set_pbc(False)
    species.set_cell(None)
    species.set_momenta(None)
    moments = species.get_initial_magnetic_moments()
    if moments.ndim == 2:
        species.set_initial_magnetic_moments(moments @ turn)
    return species


def charges_in_words(species: ase.Atoms | None) -> str:
    """What is said of charges and magnetic moments, in a few words; empty if nothing is."""
    if species is None:
        return ""
    charges, moments = species.get_initial_charges(), species.get_initial_magnetic_moments()
    words = [f"charges that sum to {charges.sum():.4g}"] * bool(np.any(charges))
    words += ["magnetic moments"] * bool(np.any(moments))
    words += [
        f"{key} {value:g}" for key, value in totals_of(species).items() if value not in NEUTRAL[key]
    ]
    return ", ".join(words)


def totals_of(species: ase.Atoms | None) -> dict[str, float]:
    """Charge and spin in the ``info``, as far as they are said.

    Raises
    ------
    ValueError
        If one of them is not a number.
    """
    if species is None:
        return {}
    found = {}
    for key in NEUTRAL:
        said = species.info.get(key)
        if said is None:
            continue
        try:
            found[key] = float(np.asarray(said, dtype=np.float64).item())
        except ValueError:
            raise ValueError(f"the structure's file says {key} = {said!r}, not a number") from None
    return found


def _masses_of(atoms: ase.Atoms) -> Array | None:
    """In amu, zero of those that are fixed; None if they are those of the elements."""
    if "masses" not in atoms.arrays and not atoms.constraints:
        return None
    masses = np.array(atoms.get_masses(), dtype=np.float64)
    for each in atoms.constraints:
        masses[each.index] = 0.0
    return masses


def _velocities_of(atoms: ase.Atoms, turn: Array) -> unit.Quantity | None:
    """After the rotation; None if the atoms are at rest."""
    from ase import units

    if not np.any(atoms.get_momenta()):
        return None
    speeds = atoms.get_velocities() @ turn / (units.nm / (1000.0 * units.fs))
    return unit.Quantity(speeds, unit.nanometer / unit.picosecond)


def _reduced_box(cell: Array) -> tuple[Array, Array]:
    """OpenMM's form of a cell (3, 3), and the rotation by which positions come into it."""
    if np.linalg.det(cell) < 0:  # the same lattice, right-handed
        cell = -cell
    # cell = L Q^T with L lower triangular, by the QR decomposition of the transpose
    q, r = np.linalg.qr(cell.T)
    signs = np.where(np.diag(r) < 0, -1.0, 1.0)
    turn = q * signs
    box = np.tril(cell @ turn)
    box[2] -= box[1] * np.round(box[2, 1] / box[1, 1])
    box[2] -= box[0] * np.round(box[2, 0] / box[0, 0])
    box[1] -= box[0] * np.round(box[1, 0] / box[0, 0])
    return box, np.eye(3) if np.allclose(turn, np.eye(3), rtol=0, atol=1e-12) else turn


def _topology_of(numbers: NDArray[np.int64], positions: Array, box: Array | None) -> app.Topology:
    """A Topology with a residue for every molecule, in which all atoms have different names."""
    topology = app.Topology()
    if box is not None:
        topology.setPeriodicBoxVectors(unit.Quantity(box, unit.nanometer))
    chain = topology.addChain()
    molecules = molecules_of(graph_of_positions(numbers, positions, box))
    molecule_of = np.zeros(len(numbers), dtype=int)
    for index, members in enumerate(molecules):
        molecule_of[members] = index
    if (np.diff(molecule_of) < 0).any():  # residues are of consecutive atoms
        molecule_of = np.arange(len(numbers))
    residue, last = None, -1
    used: Counter[str] = Counter()
    for number, molecule in zip(numbers, molecule_of, strict=True):
        try:
            element = app.Element.getByAtomicNumber(int(number))
        except KeyError:  # no atom, or one of those that OpenMM does not know
            element = None
        symbol = "X" if element is None else element.symbol
        if molecule != last or used[symbol] + 1 >= 10 ** (NAME_WIDTH - len(symbol)):
            residue, last = topology.addResidue("MOL", chain), molecule
            used.clear()
        used[symbol] += 1
        topology.addAtom(f"{symbol}{used[symbol]}", element, residue)
    return topology


def _read_by_ase(file: Path) -> Structure:
    try:
        import ase.io
    except ImportError as error:
        raise ImportError(
            f"to read {file} takes ASE, which cannot be imported here ({error}); install it with: "
            f"{INSTALL}"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        atoms = _read(ase.io.read, file)
    return structure_of_atoms(atoms, file.name)
