"""What the check of the documentation's English finds, and what it leaves alone."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import check_prose

PLANTED = "# Title\n\nIt goes\non, `beside` it.\n\n    anew\n\n```text\nso many\n```\nAll told 2.\n"


def test_unwanted_words_are_found_outside_code():
    found = list(check_prose.unwanted_words(check_prose.prose(PLANTED)))
    assert [(line, words) for line, words, _ in found] == [(3, "goes on"), (11, "All told")]


def test_a_law_is_a_law_in_theory_only():
    assert list(check_prose.unwanted_words("the law"))
    assert not list(check_prose.unwanted_words("the law", "theory.md"))


def test_proselint_finds_what_it_should():
    pytest.importorskip("proselint")
    assert check_prose.proselint({"page.md": "A short text.\n"}) == []
    (found,) = check_prose.proselint({"page.md": "A text.\n\nThis is very short.\n"})
    assert found.startswith("page.md:3:")


@pytest.mark.parametrize("page", check_prose.PAGES, ids=lambda page: page.name)
def test_pages_have_no_unwanted_words(page):
    text = check_prose.prose(page.read_text())
    assert list(check_prose.unwanted_words(text, page.name)) == []
