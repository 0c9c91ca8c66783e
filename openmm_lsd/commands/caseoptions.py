"""What all commands are told: the molecule, its two potentials, and the conditions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from openmm import unit

from .. import systems
from ..contexts.checks import check_scheme, check_system
from ..structures import read_structure
from .case import Case
from .forms import FORMS
from .mlatoms import MLAtoms
from .options import Options, positive_number, seed_number
from .potentials import cutoff_of, is_potential, named_draft, target_system
from .rigidity import CONSTRAINTS, Rigidity

SHORTHAND = "a directory such as systems/ibuprofen, instead of --topology, --coordinates, --target"


def add_case_options(options: Options) -> None:
    """To the parser of a command."""
    add = options.group("molecule and potentials")
    add("--system", type=Path, metavar="DIRECTORY", help=SHORTHAND)
    add("--topology", type=Path, metavar="FILE", help=".prmtop, .parm7, .pdb, .cif, .xyz, POSCAR")
    add(
        "--coordinates",
        type=Path,
        metavar="FILE",
        help=".inpcrd, .rst7, or a format of --topology; default: those of the topology",
    )
    usages = "; ".join(form.usage for form in FORMS.values())
    add(
        "--target",
        metavar="SPEC",
        help=f"model.pt; force field or System .xml; {usages} (MODULE may be a .py file)",
    )
    add(
        "--draft",
        nargs="+",
        metavar="NAME",
        help="auto, a .prmtop, a System .xml, OpenMM force field files, or a potential as for "
        "--target; default auto, and with --system its force field",
    )
    add(
        "--ml-atoms",
        metavar="SELECTION",
        help="the target is that of these atoms only, such as 'resname LIG' (MDTraj's language)",
    )
    add(
        "--environment",
        nargs="+",
        metavar="NAME",
        help="with --ml-atoms, the force field of all other atoms: a .prmtop or OpenMM force field "
        "files; default that of --draft",
    )
    add("--no-box", action="store_true", help="ignore the box in the files: an isolated molecule")
    add(
        "--cutoff",
        type=positive_number,
        default=0.9,
        metavar="NM",
        help="of PME in a box; default 0.9 nm",
    )
    add(
        "--constraints",
        choices=list(CONSTRAINTS),
        help="what is rigid; default none, or what the directory of --system says",
    )
    add(
        "--rigid-water",
        action=argparse.BooleanOptionalAction,
        help="default yes with a force field as the target, no with a potential of all atoms",
    )
    add(
        "--hydrogen-mass",
        type=positive_number,
        metavar="AMU",
        help="of hydrogens; the atoms they are bonded to lose the difference; default: unchanged",
    )
    add = options.group("conditions")
    add(
        "--temperature",
        type=positive_number,
        default=300.0,
        metavar="KELVIN",
        help="default 300 K",
    )
    add(
        "--friction",
        type=positive_number,
        default=1.0,
        metavar="PER_PS",
        help="collision rate; default 1/ps",
    )
    add("--timestep", type=positive_number, default=1.0, metavar="FS", help="default 1 fs")
    add(
        "--scheme",
        choices=["middle", "aboba"],
        default="middle",
        help="of Langevin dynamics; middle is that of LangevinMiddleIntegrator; default middle",
    )
    add(
        "--engine",
        choices=["auto", "host", "context"],
        default="auto",
        help="where windows are drafted if draft and target share forces; default auto",
    )
    add("--platform", metavar="NAME", help="of the target's Context; default OpenMM's choice")
    add(
        "--minimize",
        action=argparse.BooleanOptionalAction,
        help="minimize the energy first; default: unless the coordinates come with velocities",
    )
    add(
        "--seed",
        type=seed_number,
        default=0,
        metavar="NUMBER",
        help="of the random numbers; default 0: a fresh one",
    )
    add = options.group()
    add("--verbose", action="store_true", help="log what is chosen and why")
    add("--debug", action="store_true", help="show tracebacks")


def case_of(args: argparse.Namespace) -> Case:
    """The Case that the options describe.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        If they or their files contradict each other, or there is no such thing.
    """
    conditions = {
        "temperature": args.temperature,
        "friction": args.friction,
        "step_size": 1e-3 * args.timestep,
        "scheme": args.scheme,
        "platform": args.platform,
        "seed": args.seed,
        "minimize": args.minimize,
        "engine": args.engine,
    }
    if args.system is not None:
        case = _shipped(args, conditions)
    elif args.topology is None or args.target is None:
        raise ValueError("give --topology and --target, or --system")
    else:
        case = _from_files(args, conditions)
    check_system(case.target, "target")
    check_scheme(case.target, case.scheme)
    return case


def _shipped(args: argparse.Namespace, conditions: dict[str, Any]) -> Case:
    """Of --system."""
    names = ("topology", "coordinates", "target", "ml_atoms", "environment")
    given = [name for name in names if getattr(args, name)]
    if given:
        raise ValueError(f"--system cannot be combined with --{given[0].replace('_', '-')}")
    if args.no_box:
        raise ValueError("--system cannot be combined with --no-box")
    rigidity = rigidity_of(args)
    molecule = systems.load(args.system, **_as_options(rigidity))
    if args.draft is not None:
        cutoff = args.cutoff if "cutoff" in args.given else cutoff_of(molecule.draft, args.cutoff)
        draft = named_draft(args.draft, molecule.topology, cutoff, molecule.target)
        conditions = {**conditions, "draft": draft}
    return Case.of(molecule, name=args.system.resolve().name, **conditions)


def rigidity_of(args: argparse.Namespace) -> Rigidity:
    """What the options say of it."""
    return Rigidity(args.constraints, args.rigid_water, args.hydrogen_mass)


def ml_atoms_of(args: argparse.Namespace, draft: list[str]) -> MLAtoms | None:
    """What --ml-atoms and --environment say; None if the target is that of all atoms."""
    if args.ml_atoms is None:
        if args.environment is not None:
            raise ValueError("--environment goes with --ml-atoms")
        return None
    environment = args.environment or draft
    if environment == ["auto"] or is_potential(environment):
        raise ValueError(
            "--ml-atoms: give the force field of all other atoms as --environment, such as "
            "--environment amber14-all.xml amber14/tip3p.xml"
        )
    return MLAtoms(args.ml_atoms, environment)


def _as_options(rigidity: Rigidity) -> dict[str, Any]:
    """Of ``systems.load``: those that were given."""
    options: dict[str, Any] = {}
    if rigidity.constraints is not None:
        options["constraints"] = CONSTRAINTS[rigidity.constraints]
    if rigidity.rigid_water is not None:
        options["rigidWater"] = rigidity.rigid_water
    if rigidity.hydrogen_mass is not None:
        options["hydrogenMass"] = rigidity.hydrogen_mass * unit.dalton
    return options


def _from_files(args: argparse.Namespace, conditions: dict[str, Any]) -> Case:
    structure = read_structure(args.topology, args.coordinates)
    if args.no_box:
        structure.topology.setPeriodicBoxVectors(None)
        structure.sources.pop("box", None)
    names = args.draft or ["auto"]
    rigidity, ml_atoms = rigidity_of(args), ml_atoms_of(args, names)
    target = target_system(args.target, structure, args.cutoff, rigidity, names, ml_atoms)
    if args.no_box and target.usesPeriodicBoundaryConditions():
        raise ValueError(f"--no-box, and the System in {args.target} is periodic")
    draft = named_draft(
        names, structure.topology, args.cutoff, target, rigidity, ml_atoms, structure.species
    )
    return Case(
        structure.topology,
        structure.positions,
        draft,
        target,
        name=args.topology.stem or args.topology.name,
        velocities=structure.velocities,
        sources=structure.sources,
        **conditions,
    )
