"""Is the package built as docs/architecture.md says? Prints what is not, and exits with 1.

No import upwards and no circle; core/ imports NumPy and the standard library only; no function
above a complexity of 10 (by ruff); no class with more than 15 attributes; no assignment to an
attribute of another object; no file above 500 lines.

    python scripts/check_structure.py
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "openmm_lsd"
# From below; those of one row may import each other.
LAYERS = (
    ("_native", "version"),
    ("core",),
    ("contexts",),
    ("drafts", "targets"),
    ("integrator",),
    ("structures", "systems", "theory"),
    ("plots",),
    ("commands",),
    ("cli",),
    ("__main__",),
    ("__init__",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MOST_LINES, MOST_ATTRIBUTES, COMPLEXITY = 500, 15, 10
# How OpenMM, NumPy, ASE and Python themselves are used.
FOREIGN = {
    "_called.last",  # threading.local
    "inner._openmm_lsd_outer",  # a Context of OpenMM
    "openmm.Context.loadCheckpoint",
    "parent[0].tag",
    "refuse.__doc__",
    "refuse.__name__",
    "self._calculator.atoms",
    "self._calculator.results",
    "self._context.thisown",
    "self._integrator.thisown",
    "self._philox.state",
    "simulation.currentStep",
}


def module_of(file):
    parts = list(file.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def imports_of(file, tree):
    """Modules of the package that are imported, as tuples; and names of others."""
    own = list(file.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["openmm_lsd", *own[: len(own) - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            inside = base[0] == "openmm_lsd"
            folder = PACKAGE.joinpath(*base[1:])
            for alias in node.names:
                named = folder / f"{alias.name}.py"
                is_module = alias.name == "_native" or (
                    inside and (named.exists() or (folder / alias.name).is_dir())
                )
                yield [*base, alias.name] if is_module else base


def check_imports(files):
    graph = {}
    for file, tree in files.items():
        own = module_of(file)
        for name in imports_of(file, tree):
            if name[0] != "openmm_lsd":
                is_pure = name[0] in sys.stdlib_module_names | {"numpy"}
                if own[0] == "core" and not is_pure:
                    yield f"{'.'.join(own)} imports {name[0]}"
                continue
            other = name[1:] or ["__init__"]
            if other[0] not in RANKS:
                continue  # a name of __init__.py
            if RANKS[other[0]] > RANKS[own[0]]:
                yield f"{'.'.join(own)} imports {'.'.join(other)}, which is above it"
            graph.setdefault(".".join(own), set()).add(".".join(other))
    yield from find_circles(graph)


def find_circles(graph):
    done, path = set(), []

    def visit(module):
        if module in path:
            yield "a circle: " + " -> ".join([*path[path.index(module) :], module])
        elif module not in done:
            path.append(module)
            for other in sorted(graph.get(module, ())):
                yield from visit(other)
            path.pop()
            done.add(module)

    for module in sorted(graph):
        yield from visit(module)


def check_classes(files):
    for file, tree in files.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            attributes = {
                target.attr
                for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
                for target in [inner]
                if isinstance(target.value, ast.Name) and target.value.id == "self"
            }
            if len(attributes) > MOST_ATTRIBUTES:
                yield f"{file.name}: class {node.name} has {len(attributes)} attributes"


def makes_an_object(node):
    """Whether it is a call of a class, as far as its name tells."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).rpartition(".")[2].lstrip("_")
    return name in {"cls", "copy", "deepcopy"} or name[:1].isupper()


def check_assignments(files):
    """Of attributes of what is neither ``self`` nor made in the same function."""
    for file, tree in files.items():
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            made = {
                target.id
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and makes_an_object(node.value)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(function):
                if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)):
                    continue
                owner = ast.unparse(node.value)
                if owner in {"self", "cls"} | made or f"{owner}.{node.attr}" in FOREIGN:
                    continue
                yield f"{file.name}:{node.lineno}: {owner}.{node.attr} is assigned"


def check_lengths(files):
    native = [*PACKAGE.glob("native/**/*.cpp"), *PACKAGE.glob("native/**/*.h")]
    for file in [*files, *native]:
        lines = len(file.read_text().splitlines())
        if lines > MOST_LINES:
            yield f"{file.relative_to(PACKAGE)} has {lines} lines"


def check_complexity():
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "C901",
        "--output-format",
        "concise",
    ]
    command += ["--config", f"lint.mccabe.max-complexity={COMPLEXITY}", str(PACKAGE)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode > 1 or "No module" in result.stderr:
        raise RuntimeError(result.stderr)
    yield from (line for line in result.stdout.splitlines() if "C901" in line)


def problems():
    """One line each."""
    files = {file: ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}
    yield from check_imports(files)
    yield from check_classes(files)
    yield from check_assignments(files)
    yield from check_lengths(files)
    yield from check_complexity()


if __name__ == "__main__":
    found = list(problems())
    print("\n".join(found) or "the package is built as it should be")
    sys.exit(bool(found))
