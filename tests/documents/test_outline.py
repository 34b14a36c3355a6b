from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.reading import headings, one

PYTHON = '''"""What it is."""
import x
# class NotOne: pass

@decorated
class Wave(Base):
    """class Inner: no"""

    class Crest:
        def height(self): ...

    @property
    async def length(self):
        def inner(): ...


def tide(
    when,
):
    return "\\d"
'''


def test_a_program(tmp_path: Path) -> None:
    document = one(tmp_path, "waves.py", PYTHON)
    assert document.text == PYTHON
    assert document.title == "waves.py"
    assert headings(document) == [
        ("Wave", 1, "@decorated"),
        ("Crest", 2, "    class Crest:"),
        ("height", 3, "        def height(self): ..."),
        ("length", 2, "    @property"),
        ("tide", 1, "def tide("),
    ]
    assert document.headings_at(PYTHON.index("inner()")) == ("Wave", "length")


@pytest.mark.parametrize(
    "code", ["def f(:\n", "print 'python 2'\n", "x" + "(" * 5_000, "-" * 100_000 + "1", "a.b" * 200_000]
)
def test_invalid_programs(tmp_path: Path, code: str) -> None:
    started = time.monotonic()
    assert headings(one(tmp_path, "a.py", code)) == []
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "name", ["a.js", "b.rs", "c.go", "d.sql", "e.json", "f.yaml", "g.xml", "h.R", "i.cpp", "j.sh", "Makefile"]
)
def test_other_code_is_text(tmp_path: Path, name: str) -> None:
    document = one(tmp_path, name, "# class x {}\n\tété\n")
    assert document.text == "# class x {}\n\tété\n"
    assert document.marks == ()
    assert document.title == name


def test_restructured_text(tmp_path: Path) -> None:
    text = """==========
The manual
==========

Les marées
==========

text::

    not one
    =======

The moon
--------
More
~~~~
Short
--
===  ===
a    b
===  ===

Next part
=========

----

After a transition
"""
    document = one(tmp_path, "a.rst", text)
    assert headings(document) == [
        ("The manual", 1, "=========="),
        ("Les marées", 2, "Les marées"),
        ("The moon", 3, "The moon"),
        ("More", 4, "More"),
        ("Next part", 2, "Next part"),
    ]
    assert document.title == "The manual"


def test_tex_and_org(tmp_path: Path) -> None:
    tex = "\\chapter{Les marées}\n\\section*{La lune}\ntext \\section{not this}\n\\subsection[short]{Long}\n"
    assert headings(one(tmp_path, "a.tex", tex)) == [
        ("Les marées", 1, "\\chapter{Les marées}"),
        ("La lune", 2, "\\section*{La lune}"),
        ("Long", 3, "\\subsection[short]{Long}"),
    ]
    assert headings(one(tmp_path, "a.org", "* TODO Tides\ntext\n** The moon\n - * no\n")) == [
        ("Tides", 1, "* TODO Tides"),
        ("The moon", 2, "** The moon"),
    ]


@pytest.mark.parametrize("name", ["a.rst", "a.tex", "a.org"])
@pytest.mark.parametrize("line", ["=" * 80, "\\section{" * 100, "* " * 40, "a\n="])
def test_hostile_outlines(tmp_path: Path, name: str, line: str) -> None:
    started = time.monotonic()
    one(tmp_path, name, (line + "\n") * 20_000)
    assert time.monotonic() - started < 20
