"""What is installed here: for bug reports, and to see which targets can be used."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import openmm

from ..targets.torchplugin import import_openmmtorch
from .forms import FORMS
from .machine import machine
from .options import Options

PACKAGES = (
    *("numpy", "scipy", "mdtraj", "openmmtorch", "openmmml", "mace-torch", "torchani", "ase"),
    *("torch-sim-atomistic", "chgnet", "sevenn", "ray", "matplotlib"),
)


EXAMPLES = """examples:
  openmm-lsd info
  openmm-lsd info --json"""


def add_options(options: Options) -> None:
    """Those of ``main``."""
    add = options.group()
    add("--json", action="store_true", help="print it as JSON")
    add("--verbose", action="store_true", help=argparse.SUPPRESS)
    add("--debug", action="store_true", help="show tracebacks")


def describe_installation() -> dict[str, Any]:
    """Machine and versions, platforms of OpenMM, and for each form of target what is missing."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    platforms = [
        openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())
    ]
    targets = {
        "PythonForce, AMOEBA and any other System": None,
        "torch module": None if _is_there("torch") else "pip install torch",
        "TorchForce": _install("torchforce", ("torch", "openmmtorch")),
        "RayTarget": _install("ray", ("ray",)),
    }
    targets |= {f"{each.prefix}:": _install(each.extra, each.modules) for each in FORMS.values()}
    return {
        "machine": machine(),
        "packages": versions,
        "platforms": platforms,
        "plugins that did not load": _failures(),
        "targets": targets,
    }


def _failures() -> list[str]:
    """Of OpenMM's plugins; that of TorchForce fails at first, and is loaded after torch."""
    failures = map(str.strip, openmm.Platform.getPluginLoadFailures())
    try:
        import_openmmtorch()
    except ImportError:
        return list(failures)
    return [failure for failure in failures if "OpenMMTorch" not in failure]


def _install(extra: str | None, modules: tuple[str, ...]) -> str | None:
    """The command that installs these modules, or None if all are there."""
    return None if all(map(_is_there, modules)) else f'pip install "openmm-lsd[{extra}]"'


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # it is, and broken
        return False


def main(args: argparse.Namespace) -> int:
    """``openmm-lsd info``."""
    found = describe_installation()
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    for title in ("machine", "packages"):
        print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in found[title].items()))
    print("OpenMM's platforms: " + ", ".join(found["platforms"]))
    for failure in found["plugins that did not load"]:
        print(f"plugin that did not load: {failure}")
    print("targets:")
    for name, install in found["targets"].items():
        print(f"  {name:42s}" + ("available" if install is None else f"missing: {install}"))
    return 0
