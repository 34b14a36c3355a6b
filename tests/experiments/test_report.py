"""The HTML report: content, escaping of untrusted text, readability."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lxml import html
from playwright.sync_api import Browser

from ragkit.documents.document import Document
from ragkit.errors import RagkitError
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.evaluation.significance import compare, interval
from ragkit.experiments.report import Findings, write_page
from ragkit.runs.provenance import Git, Provenance
from tests.support.browser import open_page, start_browser

RESAMPLES = 2_000
HOSTILE = "<script>alert(1)</script> \"'& \x1b[2J \u202eturned ]]> --> {{ 7*7 }} 日本 🎈"
MADE = Provenance(
    git=Git("c0ffee" * 6, dirty=True, diff="d1ff"),
    python="3.13.1",
    platform="Linux-6.1-x86_64",
    packages=("numpy==2.3.0", "ragkit==0.1.0"),
    seeds={"split": 7},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retriever:
    depth: int = 100


class Model:
    def __repr__(self) -> str:
        return "Model('m')"

    def identity(self) -> dict[str, Any]:
        return {"temperature": 0.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """A stand-in for a system, with fields of all kinds."""

    retriever: Any = dataclasses.field(default_factory=Retriever)
    rewriter: Any = None
    instructions: str = ""
    llm: Any = dataclasses.field(default_factory=Model)
    key: str = dataclasses.field(default="sk-secret", repr=False)
    label: str = ""


def findings(
    values: dict[str, list[float]], *, baseline: str = "BM25()", settings: Any = None, facts: Any = None, **fields: Any
) -> Findings:
    """Return findings for systems with these values of nDCG@10; R@100 is 1 everywhere."""
    n = max(map(len, values.values()), default=1)
    documents = [Document(id="d", text="A text.", source="d", title="", language="en")]
    queries = [
        Query(f"q{i}", f"Où vit l’élan, cas {i} ?" if i % 2 else f"Where do elk live, case {i}?",
              language="fr" if i % 2 else "en") for i in range(n)
    ]  # fmt: skip
    rows = [
        (name, query.id, measure, value)
        for name, of_one in values.items()
        for query, scored in zip(queries, of_one, strict=True)
        for measure, value in (("nDCG@10", scored), ("R@100", 1.0))
    ]
    systems = pd.DataFrame(
        [
            {"system": name, "nDCG@10": np.nanmean(of_one), "R@100": 1.0, "errors": 0, "latency_ms": 12.5 + at}
            | (facts or {})
            for at, (name, of_one) in enumerate(values.items())
        ],
        columns=["system", "nDCG@10", "R@100", "errors", "latency_ms", *(facts or {})],
    )
    given: dict[str, Any] = {
        "dataset": Dataset("elk", documents, queries, spans={query.id: [GoldSpan("d", 0, 6)] for query in queries}),
        "measures": ["nDCG@10", "R@100"],
        "baseline": baseline,
        "interim": False,
        "systems": systems.sort_values("nDCG@10", ascending=False, kind="stable", ignore_index=True),
        "queries": pd.DataFrame(rows, columns=["system", "query_id", "measure", "value"]),
        "errors": None,
        "settings": settings or {name: Setup(label=name) for name in values},
        "provenance": MADE,
    }
    return Findings(**given | fields)


def drawn(*names: str, n: int = 30) -> dict[str, list[float]]:
    """Return values that increase from name to name."""
    chance = np.random.default_rng(0)
    base = chance.random(n) * 0.5
    return {name: [*(base + at * 0.2 + chance.random(n) * 0.1)] for at, name in enumerate(names)}


def words(element: Any) -> str:
    return " ".join(" ".join(element.itertext()).split())


def read(path: Path) -> Any:
    return html.fromstring(path.read_text(encoding="utf-8"))


def section(page: Any, name: str) -> str:
    (found,) = page.xpath(f"//section[@aria-labelledby='{name}']")
    return words(found)


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for function in (compare, interval):
            patch.setattr(function, "__kwdefaults__", {**(function.__kwdefaults__ or {}), "resamples": RESAMPLES})
        yield


@pytest.fixture(scope="module")
def found() -> Findings:
    values = drawn("Worse()", "BM25()", "Better()")
    values["Noise()"] = [*np.random.default_rng(4).permutation(values["BM25()"])]
    return findings(values)


@pytest.fixture(scope="module")
def path(found: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(found, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with errors, and with markup in names, questions and messages."""
    values = drawn(HOSTILE, "BM25()")
    values[HOSTILE][:3] = [math.nan] * 3
    dataset = Dataset(
        HOSTILE,
        [Document(id="d", text="t", source="", title="", language='"><img>')],
        [Query(f"q{i}", f"{HOSTILE} {i}", language='x" onload="y') for i in range(30)],
    )
    settings = {
        HOSTILE: Setup(
            label=HOSTILE, retriever=Retriever(depth=7), rewriter=Retriever(), instructions="One\nsentence."
        ),
        "BM25()": Setup(label="BM25()", instructions=HOSTILE),
    }
    rows = [("BM25()", f"q{i}", "answer", "LLMTimeoutError", f"Too late {i}.") for i in range(600)]
    rows.append((HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE))
    errors = pd.DataFrame(rows, columns=["system", "query_id", "stage", "error", "message"])
    given = findings(
        values, dataset=dataset, settings=settings, errors=errors, facts={"cost": math.nan, "tokens": 1234.5}
    )  # fmt: skip
    return write_page(given, tmp_path_factory.mktemp("hostile") / "page.html", title=HOSTILE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


def test_the_dataset_is_described(path: Path, found: Findings) -> None:
    text = section(read(path), "asked")
    for part in ("name elk", "questions 30 (en 15, fr 15)", "gold spans 30", f"digest {found.dataset.digest()}"):
        assert part in text


def test_the_leaderboard_has_means_and_intervals(path: Path, found: Findings) -> None:
    rows = [words(row) for row in read(path).xpath("(//table)[1]/tbody/tr")]
    assert rows[0].startswith("1 Better()")
    assert rows[3].startswith("4 Worse()")
    assert sum("(baseline)" in row for row in rows) == 1
    values = found.per_query("nDCG@10")["Better()"]
    low, high = interval(values)
    assert f"{values.mean():.3f} [{low:.3f}, {high:.3f}]" in rows[0]
    assert "14.5" in rows[0]  # milliseconds


def test_only_significant_differences_are_claimed(path: Path, found: Findings) -> None:
    page = read(path)
    table = compare(found.per_query("nDCG@10"), baseline="BM25()").set_index("system")
    claims = {claim.split(" ", 1)[0]: claim for claim in map(words, page.xpath("//ul[1]/li")[:3])}
    better, worse, noise = (table.loc[name] for name in ("Better()", "Worse()", "Noise()"))
    end = f"p = {better.p_randomisation_holm:.3f} (randomisation, Holm; 30 questions)."
    assert claims["Better()"] == (
        f"Better() is above BM25() in nDCG@10 by {better.difference:.3f} [{better.low:.3f}, {better.high:.3f}], {end}"
    )
    assert claims["Worse()"] == (
        f"Worse() is below BM25() in nDCG@10 by {-worse.difference:.3f} [{-worse.high:.3f}, {-worse.low:.3f}], {end}"
    )
    assert noise.p_randomisation_holm >= 0.05
    assert claims["No"].startswith(
        f"No difference between Noise() and BM25() in nDCG@10 is shown: {noise.difference:+.3f} [{noise.low:+.3f}, "
    )
    text = section(page, "comparison")
    assert f"{better.effect_size:+.3f} < 0.001 → < 0.001" in text
    assert f"{noise.wins} / {noise.ties} / {noise.losses} 30" in text
    assert "No difference between Better() and BM25() in R@100 is shown: +0.000" in text


def test_the_questions_that_differ_most_come_first(path: Path, found: Findings) -> None:
    rows = read(path).xpath("//table[caption[contains(., 'differ most')]]/tbody/tr")
    wide = found.per_query("nDCG@10")
    apart = (wide.max(axis=1) - wide.min(axis=1)).sort_values(ascending=False, kind="stable")
    assert [row.xpath(".//small")[0].text_content() for row in rows] == list(apart.index[:20])
    first = next(query for query in found.dataset.queries if query.id == apart.index[0])
    assert words(rows[0].xpath(f".//bdi[@lang='{first.language}']")[0]) == first.text
    assert [words(cell) for cell in rows[0].xpath("td")] == [f"{value:.3f}" for value in wide.loc[first.id]]


def test_every_setting_is_shown_once(hostile: Path) -> None:
    page = read(hostile)
    (table,) = page.xpath("//table[caption[contains(., 'Settings that differ')]]")
    assert [th.text_content() for th in table.xpath(".//thead//th")[1:]] == [
        "retriever.depth", "rewriter", "rewriter.depth", "instructions",
    ]  # fmt: skip
    cells = [[cell.text_content() for cell in row.xpath("td")] for row in table.xpath(".//tbody/tr")]
    assert cells[0][:3] == ["100", "None", "–"]
    assert cells[1] == ["7", "Retriever", "100", "One\nsentence."]
    (shared,) = page.xpath("//section[@aria-labelledby='settings']/dl")
    assert words(shared) == "retriever Retriever llm Model('m') llm.temperature 0.5"
    assert "sk-secret" not in words(page)


def test_errors_are_counted_and_shown(hostile: Path, path: Path) -> None:
    page = read(hostile)
    assert "601 errors." in words(page.xpath("//header")[0])
    text = section(page, "errors")
    for part in ("BM25() answer LLMTimeoutError 600", "The first 500 of 601", "Too late 499."):
        assert part in text
    assert "Too late 500." not in text
    assert section(read(path), "errors") == "Errors None."


def test_missing_values_are_left_out_and_counted(hostile: Path) -> None:
    page = read(hostile)
    text = section(page, "systems")
    assert "27 of 30 questions" in text
    assert "tokens" in text
    assert "cost" not in text
    assert "27 3 left out" in section(page, "comparison")


def test_untrusted_text_is_escaped(hostile: Path) -> None:
    source = hostile.read_text(encoding="utf-8")
    page = read(hostile)
    assert not page.xpath("//script | //img | //iframe | //object | //*[local-name()='foreignObject']")
    assert not [name for each in page.iter() for name in each.attrib if name.startswith("on")]
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert page.xpath("//h1")[0].text_content() == HOSTILE.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")


def test_an_interim_result_is_marked(path: Path, tmp_path: Path) -> None:
    page = read(write_page(findings(drawn("Dense()"), interim=True), tmp_path / "page.html"))
    assert "Interim result." in words(page)
    assert "the baseline has not been evaluated" in section(page, "comparison")
    assert "Interim" not in words(read(path))
    page = read(write_page(findings({}, interim=True), tmp_path / "page.html"))
    assert "No system has been evaluated yet." in section(page, "systems")


def test_a_measure_without_values(tmp_path: Path) -> None:
    found = findings(drawn("BM25()", "Dense()", n=4))
    queries = found.queries[found.queries["measure"] == "R@100"]
    systems = found.systems.assign(**{"nDCG@10": math.nan})
    page = read(write_page(dataclasses.replace(found, queries=queries, systems=systems), tmp_path / "page.html"))
    assert "cannot be compared by nDCG@10: fewer than two questions" in section(page, "comparison")


def test_provenance_is_shown(path: Path) -> None:
    text = section(read(path), "provenance")
    for part in ("c0ffee" * 6, "d1ff", "Python 3.13.1", "Linux-6.1", "numpy==2.3.0", "split = 7", "ragkit 0.1.0"):
        assert part in text


def test_the_page_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "page.html"
    found = findings(drawn("BM25()", n=4))
    assert write_page(found, path) == path
    before = path.read_bytes()
    with pytest.raises(KeyError):
        write_page(dataclasses.replace(found, settings={}), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(RagkitError, match="could not be written"):
        write_page(found, path / "page.html")


def test_figures_have_unique_ids(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    page = read(path)
    ids = page.xpath("//@id")
    assert len(ids) == len(set(ids))
    figures = page.xpath("//svg")
    assert len(figures) == 1 + 3 + 1
    assert all(figure.get("role") == "img" and len(figure.get("aria-label")) > 20 for figure in figures)
    wanted = re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', source)
    assert wanted
    assert {a or b for a, b in wanted} <= set(ids)
    assert "#222222" not in source.partition("<main>")[2]  # figures use the colours of the page


def test_the_page_stays_small_with_a_thousand_questions(tmp_path: Path) -> None:
    """Each system adds one figure: ten systems stay below 2 MB."""
    sizes = [
        write_page(findings(drawn(*names, n=1000), measures=["nDCG@10"]), tmp_path / "page.html").stat().st_size
        for names in (["BM25()"], ["BM25()", "Dense()"])
    ]
    assert sizes[0] + 9 * (sizes[1] - sizes[0]) < 2_000_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_in_a_browser(path: Path, browser: Browser, scheme: Any, width: int) -> None:
    """No script, no request, no error, no horizontal overflow; the text contrasts with the background."""
    with open_page(browser) as page:
        events: list[str] = []
        page.on("console", lambda message: events.append(message.text))
        page.on("request", lambda request: events.append(request.url) if not request.is_navigation_request() else None)
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(path.as_uri())
        assert events == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        assert (sum(map(int, re.findall(r"\d+", ink))) > sum(map(int, re.findall(r"\d+", paper)))) == (scheme == "dark")
        # The text of figures has the text colour of the page.
        assert page.evaluate("getComputedStyle(document.querySelector('svg [id*=text] g')).fill") == ink
