"""Accuracy of encoding detection, for whole files and small pieces of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ragkit.documents.encoding import clean, decode, lines
from ragkit.errors import DocumentError
from tests.support.reading import ENCODINGS

# The encodings of each language before UTF-8, on Windows, Unix, DOS and the Macintosh.
LEGACY = {
    "arabic": ("cp1256", "iso8859-6"), "bulgarian": ("cp1251", "iso8859-5"), "chinese": ("big5", "gb18030"),
    "french": ("cp1252", "iso8859-15", "cp850", "mac_roman"), "greek": ("cp1253", "iso8859-7"),
    "hebrew": ("cp1255", "iso8859-8"), "korean": ("cp949", "euc_kr"), "polish": ("cp1250", "iso8859-2"),
    "russian": ("cp1251", "koi8-r", "cp866", "mac_cyrillic"), "spanish": ("cp1252", "cp850"),
    "turkish": ("cp1254", "iso8859-9"),
}  # fmt: skip


def original(shared: Path, name: str) -> tuple[bytes, str]:
    data = (shared / "messy" / "encodings" / f"sample-{name}.txt").read_bytes()
    return data, clean(data.decode(ENCODINGS[name]))


def decoded(data: bytes) -> str:
    try:
        return decode(data, where="x")[0]
    except DocumentError:
        return ""


def test_every_real_file_is_decoded(shared: Path) -> None:
    right = [name for name in ENCODINGS if decoded(original(shared, name)[0]) == original(shared, name)[1]]
    print(f"encodings: {len(right)} of {len(ENCODINGS)} files decoded correctly")
    assert right == list(ENCODINGS)


@pytest.mark.parametrize(("size", "least"), [(100, 0.94), (300, 0.96), (1_000, 0.97)])
def test_pieces_in_legacy_encodings(shared: Path, size: int, least: float) -> None:
    """Harder: a few sentences each, in every legacy encoding of their language."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name in ENCODINGS:
        text = original(shared, name)[1]
        for encoding in LEGACY.get(name.split("-")[0].split(".")[0], ()):
            for start in range(0, min(len(text) - size, 20 * size), size):
                data = text[start : start + size].encode(encoding, "ignore")
                if data.isascii():
                    continue
                total[encoding] += 1
                right[encoding] += decoded(data) == clean(data.decode(encoding))
    share = right.total() / total.total()
    worst = ", ".join(f"{e} {right[e]}/{total[e]}" for e in total if right[e] < total[e])
    print(f"encodings: {share:.1%} of {total.total()} pieces of {size} characters; errors in: {worst}")
    assert share >= least


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Son œuvre « Le cœur des marées » coûte 12 € à Brest, l’été.", "iso8859-15"),
        ("Son œuvre « Le cœur des marées » coûte 12 € à Brest, l’été.", "cp1252"),
        ("Où étaient les élèves, déjà prêts à fêter Noël ?", "cp850"),
        ("Où étaient les élèves, déjà prêts à fêter Noël ?", "mac_roman"),
        ("Die Straße führt über die Brücke zum Rathaus, gleich dahinter liegt der Markt.", "cp850"),
        ("Príliš žluťoučký kůň úpěl ďábelské ódy a všichni ho při tom slyšeli.", "iso8859_2"),
        ("Árvíztűrő tükörfúrógép, mondta a kőműves, és hazament a családjához.", "cp1250"),
    ],
)
def test_short_texts(text: str, encoding: str) -> None:
    data = text.encode(encoding, "ignore")
    assert decoded(data) == clean(data.decode(encoding))


@pytest.mark.parametrize(
    "head",
    [
        "<?xml version='1.0' encoding='iso-8859-5'?>",
        "<meta charset=iso-8859-5>",
        "#!/bin/x\n# -*- coding: iso-8859-5 -*-",
    ],
)
def test_declared_encodings(head: str) -> None:
    data = f"{head}\nПривет".encode("iso8859-5")
    assert decode(data, where="x", declares=True)[0].endswith("Привет")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"])
def test_lines(tmp_path: Path, encoding: str) -> None:
    text = "L'été\r\nà la plage\rles élèves\n\nétonnés"
    marked = "\ufeff" + text if encoding == "utf-16-be" else text
    (tmp_path / "a").write_bytes(marked.encode(encoding))
    found = list(lines(tmp_path / "a", where="a", max_characters=100))
    assert found == ["L'été\n", "à la plage\n", "les élèves\n", "\n", "étonnés"]


def test_lines_that_are_too_long(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("short\n" + "x" * 1_000 + "\n" + "y" * 9 + "\nend")
    assert list(lines(tmp_path / "a", where="a", max_characters=10)) == ["short\n", None, "y" * 9 + "\n", "end"]


def test_lines_with_a_late_accent(tmp_path: Path) -> None:
    """The block that is not UTF-8 decides the encoding, wherever it is."""
    (tmp_path / "a").write_bytes(
        b"plain\n" * 1_000_000 + "Puis l'été arriva, et les élèves étaient étonnés.".encode("cp1252")
    )
    assert (
        list(lines(tmp_path / "a", where="a", max_characters=100))[-1]
        == "Puis l'été arriva, et les élèves étaient étonnés."
    )


def test_lines_of_binary_data(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x89PNG\r\n\x00\x00\xff")
    with pytest.raises(DocumentError, match="not text"):
        list(lines(tmp_path / "a", where="a", max_characters=100))
