from __future__ import annotations

import itertools
import math
import os
import threading
from pathlib import Path

import matplotlib.style
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from nbclient import NotebookClient

from ragkit.errors import InputError
from ragkit.evaluation import plots
from ragkit.evaluation.plots import Figure
from tests.conftest import ROOT

HOSTILE = [
    r"$\frac{$ chunk_size=$128$",
    "a_b^c {x} % & # ~ \\",
    "\x1b[2J\n\tnew line ‮turned",
    "日本語 🎈",
    "découpage à l’œil",
    "RAGEngine(chunker=StructureChunker(max_tokens=200), retriever=Hybrid(dense_weight=0.5)) " + "very " * 60 + "last",
    "<script>alert(1)</script>",
    "x" * 300,
    "",
]


def long_form(**systems: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [(name, f"q{i}", measure, value) for name, values in systems.items() for i, value in enumerate(values)
         for measure, value in (("nDCG@10", value), ("R@100", 1.0))],
        columns=["system", "query_id", "measure", "value"],
    )  # fmt: skip


def many(names: list[str], *, queries: int = 20) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.concat(
        pd.DataFrame({"system": name, "query_id": range(queries), "measure": "nDCG@10", "value": rng.random(queries)})
        for name in names
    )


def costs(names: list[str]) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    n = len(names)
    return pd.DataFrame({"system": names, "nDCG@10": rng.random(n), "latency_ms": rng.lognormal(4, 2, n), "cost": 0.0})


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def assert_readable(figure: Figure) -> None:
    """Check that everything is inside the figure and no names overlap."""
    png, size = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert 300 < size["width"] < 1400
    (axes,) = figure.axes
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    drawn = axes.get_tightbbox(renderer)
    assert drawn is not None
    assert drawn.x0 >= -1
    assert drawn.y0 >= -1
    assert drawn.x1 <= figure.bbox.width + 1
    assert drawn.y1 <= figure.bbox.height + 1
    # Text.get_window_extent excludes the line of an annotation.
    for column in ([*axes.get_yticklabels()], [*axes.texts]):
        boxes = sorted(
            (Text.get_window_extent(text, renderer) for text in column if text.get_text()), key=lambda b: b.y0
        )
        assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))


def test_leaderboard_is_sorted_best_first() -> None:
    queries = long_form(bm25=[0.2, 0.4, 0.6, 0.8], dense=[0.5, 0.7, 0.9, 0.9], broken=[0.1, 0.2, math.nan, math.nan])
    figure = plots.leaderboard(queries, measure="nDCG@10", baseline="bm25")
    (axes,) = figure.axes
    assert axes.yaxis_inverted()
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert ticks == ["dense", "bm25 (baseline)", "broken\n2 of 4 queries"]
    dots = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([0.75, 0.5, 0.15])
    assert [line.get_ydata()[0] for line in dots] == pytest.approx(axes.get_yticks())
    assert [line.get_marker() for line in dots] == ["o", "D", "o"]
    bars = [line.get_xdata() for line in axes.lines if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2]
    assert all(low < x.get_xdata()[0] < high for (low, high), x in zip(bars, dots, strict=True))
    assert axes.texts[0].get_text().startswith("0.750  [0.")


def test_a_system_without_values_is_last_and_has_no_marker() -> None:
    figure = plots.leaderboard(long_form(none=[math.nan, math.nan], one=[0.5, math.nan]), measure="nDCG@10")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.500", "no value"]
    assert_readable(figure)


def test_differences_are_sorted_and_counted() -> None:
    queries = long_form(a=[0.1, 0.9, 0.5, 0.4, math.nan], b=[0.3, 0.2, 0.5, 0.3, 0.5])
    figure = plots.differences(queries, measure="nDCG@10", system="a", baseline="b")
    (axes,) = figure.axes
    wins, losses = (patch.get_data().values for patch in axes.patches[:2])
    assert wins + losses == pytest.approx([0.7, 0.1, 0.0, -0.2])
    title = axes.get_title(loc="left")
    assert title.startswith("a\nagainst b\nmean difference +0.150 [")
    assert title.endswith("; 2 wins, 1 tie, 1 loss, 1 left out")
    assert_readable(figure)


def test_differences_of_one_and_of_thousands_of_queries() -> None:
    one = plots.differences(long_form(a=[0.5], b=[0.2]), measure="nDCG@10", system="a", baseline="b")
    assert one.axes[0].get_title(loc="left").endswith("+0.300; 1 win, 0 ties, 0 losses")
    assert_readable(one)
    assert_readable(plots.differences(many(["a", "b"], queries=5_000), measure="nDCG@10", system="a", baseline="b"))


def test_tradeoff_plots_the_pareto_front() -> None:
    systems = pd.DataFrame(
        {
            "system": ["cheap", "dominated", "good", "equal", "lost"],
            "nDCG@10": [0.3, 0.4, 0.6, 0.6, 0.9],
            "latency_ms": [1.0, 60.0, 50.0, 50.0, math.nan],
        }
    )
    figure = plots.tradeoff(systems, measure="nDCG@10")
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"cheap", "dominated", "good", "equal"}
    assert {text.get_text(): text.xy for text in axes.texts}["cheap"] == (1.0, 0.3)  # type: ignore[attr-defined]
    front, *dots = axes.lines
    assert list(zip(*front.get_data(), strict=True)) == [(1.0, 0.3), (50.0, 0.6), (50.0, 0.6)]
    assert [dot.get_marker() for dot in dots].count("D") == 3
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "retrieval per question (ms)\nnot plotted, because a value is missing: lost"
    assert plots.tradeoff(costs(["a", "b"]), measure="nDCG@10", cost="cost").axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("qualities", [[0.9, 0.5, 0.5, 0.5, 0.1, 0.1], [0.9, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1]])
def test_names_of_equal_systems_do_not_overlap(qualities: list[float]) -> None:
    systems = costs(list("abcdefgh"[: len(qualities)])).assign(**{"nDCG@10": qualities})
    figure = plots.tradeoff(systems, measure="nDCG@10")
    assert_readable(figure)
    assert all(0 < text.xyann[1] < 1 for text in figure.axes[0].texts)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "names", [["alone"], [f"system_{i}" for i in range(30)], HOSTILE], ids=["one", "thirty", "hostile"]
)
def test_names_are_readable(names: list[str]) -> None:
    queries = many(names)
    leaderboard = plots.leaderboard(queries, measure="nDCG@10", baseline=names[-1])
    tradeoff = plots.tradeoff(costs(names), measure="nDCG@10")
    for figure in (leaderboard, tradeoff):
        assert_readable(figure)
    for one, other in itertools.pairwise(names):
        assert_readable(plots.differences(queries, measure="nDCG@10", system=one, baseline=other))


def test_hostile_names_are_shown_literally() -> None:
    shown = texts(plots.leaderboard(many(HOSTILE), measure="nDCG@10"))
    assert r"$\frac{$ chunk_size=$128$" in shown
    assert r"\x1b[2J new line \u202eturned" in shown
    assert r"\u65e5\u672c\u8a9e \U0001f388" in shown
    assert "découpage à l’œil" in shown
    assert any(name.startswith("RAGEngine(chunker=") and name.endswith("very last") for name in shown)


def test_the_users_matplotlib_style_is_neither_used_nor_changed() -> None:
    queries = long_form(a=[0.1, 0.9, 0.5], b=[0.3, 0.2, 0.5])

    def pictures() -> list[bytes]:
        return [
            plots.leaderboard(queries, measure="nDCG@10", baseline="b")._repr_png_()[0],
            plots.differences(queries, measure="nDCG@10", system="a", baseline="b")._repr_png_()[0],
            plots.tradeoff(costs(["a", "b", "c"]), measure="nDCG@10")._repr_png_()[0],
        ]

    expected = pictures()
    with matplotlib.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        assert pictures() == expected
        assert dict(matplotlib.rcParams) == before


def test_plots_work_in_threads() -> None:
    queries = many(["a", "b", "c"])
    expected = plots.leaderboard(queries, measure="nDCG@10")._repr_png_()[0]
    drawn: list[bytes] = []

    def draw() -> None:
        drawn.append(plots.leaderboard(queries, measure="nDCG@10")._repr_png_()[0])

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert drawn == [expected] * 4


def test_a_notebook_shows_the_figure_once_with_and_without_pyplot(tmp_path: Path) -> None:
    make = (
        "import pandas as pd, sys\n"
        "from ragkit.evaluation.plots import leaderboard\n"
        "rows = [(s, q, 'AP', q / 3) for s in 'ab' for q in range(3)]\n"
        "figure = leaderboard(pd.DataFrame(rows, columns=['system', 'query_id', 'measure', 'value']), measure='AP')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "figure"
    )
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(c) for c in (make, "%matplotlib inline", "figure")]
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    NotebookClient(book, kernel_name="python3", timeout=120).execute(env=environment, cwd=str(tmp_path))
    first, _, again = book.cells
    for cell in (first, again):
        (output,) = cell.outputs
        assert output.output_type == "execute_result"
        assert len(output.data["image/png"]) > 5_000
    assert first.outputs[0].metadata["image/png"]["width"] > 300


def test_invalid_arguments_are_refused() -> None:
    queries = long_form(a=[0.1, math.nan], b=[math.nan, 0.2])
    with pytest.raises(InputError, match=r"no measure 'AP'. Available: 'nDCG@10', 'R@100'"):
        plots.leaderboard(queries, measure="AP")
    with pytest.raises(InputError, match=r"no system 'c'. Available: 'a', 'b'"):
        plots.leaderboard(queries, measure="nDCG@10", baseline="c")
    with pytest.raises(InputError, match="no column 'query_id'"):
        plots.leaderboard(queries.drop(columns="query_id"), measure="nDCG@10")
    with pytest.raises(InputError, match="'a' has more than one nDCG@10 for query 'q0'"):
        plots.leaderboard(pd.concat([queries, queries]), measure="nDCG@10")
    with pytest.raises(InputError, match="has no system or no query_id"):
        plots.leaderboard(queries.assign(system=["a", None] * 4), measure="R@100")
    with pytest.raises(InputError, match="'value' are numbers"):
        plots.leaderboard(queries.assign(value="high"), measure="nDCG@10")
    with pytest.raises(InputError, match="No query has a nDCG@10 of both"):
        plots.differences(queries, measure="nDCG@10", system="a", baseline="b")
    with pytest.raises(InputError, match="cannot be compared with itself"):
        plots.differences(queries, measure="nDCG@10", system="a", baseline="a")
    with pytest.raises(InputError, match="No system has both"):
        plots.tradeoff(costs(["a"]).assign(cost=math.nan), measure="nDCG@10", cost="cost")
