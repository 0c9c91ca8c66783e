"""Do an sdist and a wheel hold what they should? Prints what is wrong, and exits with 1.

What they should hold are the files of the clone that they were made from. Used by check_wheel.sh:

    python scripts/check_contents.py CLONE SDIST WHEEL
"""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

NOT_IN_SDIST = (".ci/*",)
MOST_MEGABYTES = {"sdist": 6, "wheel": 2}
METADATA = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")


def names_in_sdist(file):
    with tarfile.open(file) as archive:
        return {name.partition("/")[2] for name in archive.getnames()} - {""}


def names_in_wheel(file):
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def files_of(clone):
    output = subprocess.check_output(["git", "ls-files", "-z"], cwd=clone, text=True)
    return {name for name in output.split("\0") if name}


def expected_in_sdist(files):
    kept = {name for name in files if not any(fnmatch(name, each) for each in NOT_IN_SDIST)}
    return kept | {"PKG-INFO"}


def expected_in_wheel(files, wheel):
    """The native module is for the Python that runs this."""
    name, version, *_ = wheel.stem.split("-")
    package = {each for each in files if each.startswith(f"{name}/")}
    python = {each for each in package if not each.startswith(f"{name}/native/")}
    native = f"{name}/_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    return python | {native} | {f"{name}-{version}.dist-info/{each}" for each in METADATA}


def problems(clone, sdist, wheel):
    files = files_of(clone)
    for kind, file, names, expected in (
        ("sdist", sdist, names_in_sdist(sdist), expected_in_sdist(files)),
        ("wheel", wheel, names_in_wheel(wheel), expected_in_wheel(files, wheel)),
    ):
        yield from (f"the {kind} has no {name}" for name in sorted(expected - names))
        yield from (f"the {kind} has {name}" for name in sorted(names - expected))
        size = file.stat().st_size / 2**20
        if size > MOST_MEGABYTES[kind]:
            yield f"the {kind} has {size:.1f} MB"
        print(f"{file.name}: {len(names)} files, {size:.1f} MB")


def main():
    found = [*problems(*map(Path, sys.argv[1:]))]
    for line in found:
        print(line)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
