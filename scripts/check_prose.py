"""Is what users read plain English? Prints what is not, and exits with 1.

README.md, CONTRIBUTING.md, CHANGELOG.md and docs/*.md, without code and formulas, by proselint (its
settings are in .proselintrc.json) and by our own list, WORDS.

    pip install proselint
    python scripts/check_prose.py
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

# What we do not write (a regular expression, of whole words): what we write.
WORDS = {
    "laws?": "the distribution",
    "(go|goes|going|went|gone) on": "continue, resume",
    "so (many|much|often|long)": "the number, the time",
    "all told": "in total",
    "anew": "again, rebuilt",
    "beside": "next to, as well as, compared with",
    "likewise": "too, in the same way",
    "as ever": "as always",
    "in place of": "instead of",
    "but for": "except for",
    "be had": "get, compute",
    "mends?": "fixes, corrects",
    "whoever": "if you",
    "of one's own": "of your own",
    "slow potentials?": "expensive potential",
    "(committed )?steps per (batched )?(target )?evaluation": "accepted steps per batch",
}
EXCEPTIONS = {"theory.md": {"laws?"}}

CODE = re.compile(r"^```.*?^```$|^    .*?$|<!--.*?-->", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]+\$|`[^`]+`", re.DOTALL)


def prose(text):
    """The text without code, and with X for each formula or name; line by line as before."""
    text = CODE.sub(lambda match: "\n" * match[0].count("\n"), text)
    text = FORMULA.sub(lambda match: "X" + ".\n" * match[0].count("\n"), text)
    text = re.sub(r"\]\([^)]*\)", "]", text)  # addresses of links
    text = re.sub(r"(?<=\d) (?=\d{3})", "", text)  # 20 000
    return re.sub(r"^(#+ .*)$", r"\1.", text, flags=re.MULTILINE)


def unwanted_words(text, page=""):
    """Yields (line from 1, words, what to write)."""
    for words, better in WORDS.items():
        if words in EXCEPTIONS.get(page, ()):
            continue
        pattern = r"\b" + words.replace(" ", r"\s+") + r"\b"
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), better


def proselint(texts):
    """What proselint finds in texts {path: text}, as lines."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for path, text in texts.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
        command = [sys.executable, "-m", "proselint", "check", *(folder / path for path in texts)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.returncode not in (0, 1):
            sys.exit(result.stdout + result.stderr)
        return result.stdout.replace(f"{folder}/", "").splitlines()


def main():
    texts = {str(page.relative_to(ROOT)): prose(page.read_text()) for page in PAGES}
    found = [
        f"{path}:{line}: {words!r}; say: {better}"
        for path, text in texts.items()
        for line, words, better in sorted(unwanted_words(text, Path(path).name))
    ]
    found += proselint(texts)
    print("\n".join(found) or "nothing found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
