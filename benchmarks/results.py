"""Results of benchmarks: JSON files in docs/benchmarks, and where the pages show them."""

import fcntl
import json
import re
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from openmm_lsd.commands.machine import machine

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "docs/benchmarks"
SHOWN = ("processor", "cores", "GPU", "python", "openmm", "torch", "openmm-lsd")  # of a machine


def today():
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")


@contextmanager
def changing(outfile, empty="{}"):
    """The JSON document of a file, written at the end; other runs wait meanwhile.

    A list gets a line for each entry.
    """
    with outfile.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        document = json.loads(file.read() or empty)
        yield document
        file.truncate(0)
        text = json.dumps(document, indent=1)
        if isinstance(document, list):
            text = "[\n " + ",\n ".join(map(json.dumps, document)) + "\n]"
        file.write(text + "\n")


def save(outfile, result, name=None):
    """Write a dictionary, with date and machine; under a name beside what the file has already."""
    result = {"date": today(), "machine": machine(), **result}
    with changing(outfile) as document:
        if name is None:
            document.clear()
            document.update(result)
        else:
            document[name] = result


def origin(*documents):
    """In a sentence when, where and with which versions they were measured."""
    found = []
    for document in documents:
        if "machine" not in document:  # counts of earlier versions
            continue
        about = {name: document["machine"][name] for name in SHOWN if name in document["machine"]}
        count = about.pop("cores")
        cores = f"{count} core{'s' * (count > 1)} of an {about.pop('processor')}"
        card = f" and an {about.pop('GPU')}" if "GPU" in about else ""
        versions = ", ".join(f"{name} {version}" for name, version in about.items())
        when = f"{document['date']}: " if "date" in document else ""
        found.append(f"{when}{cores}{card}; {versions}.")
    return " ".join(dict.fromkeys(found))


def markdown(lines):
    """A table; the first line has the headings."""
    head, *rows = lines
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def put(page, source, result, check):
    """Where the page says that this comes from ``source``; with check, is it there already?"""
    begin, end = f"<!-- results: {source} -->", "<!-- end of results -->"
    text = page.read_text()
    new, count = re.subn(
        f"{re.escape(begin)}.*?{end}",
        lambda match: f"{begin}\n\n{result}\n\n{end}",
        text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{page.name} holds {count} places for the results of {source}")
    if check:
        if new != text:
            raise SystemExit(f"{page.name} is not up to date")
        return
    page.write_text(new)
