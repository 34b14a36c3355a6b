"""Plots of an experiment: leaderboard, differences per query, and quality against cost.

Each function returns a `Figure`, which a notebook displays as the last value of a cell and which
`figure.savefig("leaderboard.pdf")` saves. No global state of matplotlib is used (pyplot, current figure, style), so
that plots look the same in a notebook, a headless script and a thread, whatever the user's matplotlib settings are. The
colours are those of Okabe and Ito (2008), which colour-blind people can distinguish.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ragkit.errors import InputError, needs
from ragkit.evaluation.significance import as_floats, compare, interval, paired_differences
from ragkit.terminal import one_line

with needs("matplotlib", extra="eval"):
    import matplotlib.figure
    from matplotlib import font_manager
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

BLUE, VERMILION, INK, GREY, PALE = "#0072B2", "#D55E00", "#222222", "#8a8a8a", "#e6e6e6"
FONT = "DejaVu Sans"  # included in matplotlib
TEXT: dict[str, Any] = {
    "color": INK, "fontfamily": FONT, "fontsize": 9, "parse_math": False, "usetex": False,
}  # fmt: skip
_DPI = 200
_PIXELS_PER_INCH = 96  # of a notebook page
_LINE_INCHES = 0.165
_NAME_WIDTH = 44
_NAME_CHARACTERS = 88
_LOG_RATIO = 20.0  # a cost axis with a larger ratio of maximum to minimum is logarithmic
_UNITS = {
    "latency_ms": "retrieval per question (ms)",
    "answer_ms": "answering per question (ms)",
    "tokens": "tokens per question",
    "cost": "cost of all answers",
}


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that notebooks display even if pyplot was not imported."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=_DPI, facecolor="white", transparent=False)
        width, height = (round(inches * _PIXELS_PER_INCH) for inches in self.get_size_inches())
        return png.getvalue(), {"width": width, "height": height}


def leaderboard(queries: pd.DataFrame, *, measure: str, baseline: str | None = None) -> Figure:
    """Plot the mean of each system with its 95% bootstrap interval, best on top.

    Args:
        queries: Long form, with columns ``system``, ``query_id``, ``measure`` and ``value``. NaN is ignored.
        measure: The measure to plot, for example ``"nDCG@10"``.
        baseline: The system to highlight, with a vertical line at its mean.

    Raises:
        InputError: A column, the measure or the baseline does not exist, or a system has two values for a query.
    """
    wide = _wide(queries, measure)
    if baseline is not None:
        _require(baseline, wide.columns, "system")
    means = wide.mean().sort_values(ascending=False, kind="stable", na_position="last")
    counts = wide[means.index].count()
    names = [
        label_of(system)
        + (" (baseline)" if system == baseline else "")
        + (f"\n{count} of {len(wide)} queries" if count < len(wide) else "")
        for system, count in counts.items()
    ]
    rows, height = row_positions(names)
    figure, axes = canvas(height + 1.0, names)
    for row, (system, mean) in zip(rows, means.items(), strict=True):
        low, high = interval(wide[system])
        marked = system == baseline
        colour = VERMILION if marked else BLUE
        axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round", zorder=2)
        axes.plot([mean], [row], "D" if marked else "o", color=colour, markerfacecolor="white" if marked else colour,
                  markersize=6, zorder=3)  # fmt: skip
        label = "no value" if np.isnan(mean) else _number(mean)
        if not np.isnan(low):
            label += f"  [{_number(low)}, {_number(high)}]"
        axes.text(1.03, row, label, transform=axes.get_yaxis_transform(), va="center", **TEXT)
        if marked:
            axes.axvline(mean, color=colour, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_ylim(height, 0)
    axes.set_yticks(rows, labels=names, **TEXT)
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"mean {label_of(measure)} over {len(wide)} queries, with 95% intervals", **TEXT)
    return figure


def differences(queries: pd.DataFrame, *, measure: str, system: str, baseline: str) -> Figure:
    """Plot the difference between a system and the baseline on each query.

    Queries are sorted by difference. The line is the mean difference, the band its 95% bootstrap interval.

    Args:
        queries: See `leaderboard`.
        measure: The measure to plot.
        system: The system; the difference is positive where it is better.
        baseline: The system to compare with.

    Raises:
        InputError: A column, the measure or a system does not exist, a system has two values for a query, or no query
            has values of both.
    """
    wide = _wide(queries, measure)
    for name in (system, baseline):
        _require(name, wide.columns, "system")
    if system == baseline:
        raise InputError(f"{system!r} cannot be compared with itself. Name two systems.")
    (row,) = compare(wide[[baseline, system]], baseline=baseline).to_dict("records")
    if not row["n"]:
        raise InputError(f"No query has a {measure} of both {system!r} and {baseline!r}, so there is nothing to plot.")
    found = paired_differences(wide[system], wide[baseline])
    found = np.sort(found[~np.isnan(found)])[::-1]

    figure, axes = canvas(3.8)
    edges = np.arange(len(found) + 1) + 0.5
    for colour, part in ((BLUE, found.clip(min=0)), (VERMILION, found.clip(max=0))):
        axes.stairs(part, edges, fill=True, color=colour, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    ends = ""
    if not np.isnan(row["low"]):
        axes.axhspan(row["low"], row["high"], color=INK, alpha=0.15, linewidth=0)
        ends = f" [{_number(row['low'], sign=True)}, {_number(row['high'], sign=True)}]"
    axes.axhline(row["difference"], color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlim(0.5, len(found) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.set_xlabel("queries with values of both, sorted by difference", **TEXT)
    axes.set_ylabel(f"difference in {label_of(measure)}", **TEXT)
    left_out = f", {row['left_out']} left out" if row["left_out"] else ""
    axes.set_title(
        f"{label_of(system)}\nagainst {label_of(baseline)}\n"
        f"mean difference {_number(row['difference'], sign=True)}{ends}; "
        f"{_count(row['wins'], 'win')}, {_count(row['ties'], 'tie')}, {_count(row['losses'], 'loss')}{left_out}",
        loc="left",
        **TEXT,
    )
    return figure


def tradeoff(systems: pd.DataFrame, *, measure: str, cost: str = "latency_ms") -> Figure:
    """Plot quality against cost, with the Pareto front: the systems that no other system dominates.

    Args:
        systems: One row per system: a column ``system``, one column per measure, and columns of costs.
        measure: The column with the quality; higher is better.
        cost: The column with the cost, for example ``latency_ms``, ``tokens`` or ``cost``; lower is better.

    Raises:
        InputError: A column does not exist, or no system has both values.
    """
    for column in ("system", measure, cost):
        _require(column, systems.columns, "column")
    names = [label_of(name) for name in systems["system"]]
    x, y = (as_floats(systems[column], f"the column {column!r}") for column in (cost, measure))
    drawn = np.flatnonzero(~np.isnan(x) & ~np.isnan(y))
    if not len(drawn):
        raise InputError(f"No system has both {measure!r} and {cost!r}, so there is nothing to plot.")
    not_drawn = [name.replace("\n", " ") for i, name in enumerate(names) if i not in drawn]
    drawn = drawn[np.lexsort((x[drawn], -y[drawn]))]  # best first
    front = [i for i in drawn if not any(_dominates(x[j], y[j], x[i], y[i]) for j in drawn)]

    labels = [names[i] for i in drawn]
    rows, height = row_positions(labels)
    figure, axes = canvas(max(height, 2.4) + 1.0, labels)
    axes.step(x[front][::-1], y[front][::-1], where="post", color=VERMILION, linewidth=1.2, zorder=2)
    for i in drawn:
        colour = VERMILION if i in front else BLUE
        axes.plot([x[i]], [y[i]], "D" if i in front else "o", color=colour, markersize=6, zorder=3)
    if x[drawn].min() > 0 and x[drawn].max() / x[drawn].min() > _LOG_RATIO:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.margins(0.06, 0.08)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    beside = _spread((high - y[drawn]) / (high - low), np.asarray(rows) / max(height, 2.4))
    for i, label, at in zip(drawn, labels, beside, strict=True):
        axes.annotate(
            label, (x[i], y[i]), xytext=(1.05, 1 - at), textcoords="axes fraction", va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4},
            **TEXT | {"color": VERMILION if i in front else INK},
        )  # fmt: skip
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    note = textwrap.wrap(f"not plotted, because a value is missing: {', '.join(not_drawn)}", 90) if not_drawn else []
    axes.set_xlabel("\n".join([label_of(_UNITS.get(cost, cost)), *note]), **TEXT)
    axes.set_ylabel(label_of(measure), **TEXT)
    axes.set_title("Pareto front in orange: no other system is both better and cheaper", loc="left", **TEXT)
    return figure


# ------------------------------------------------------------------------------------------ data


def _wide(queries: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return one row per query and one column per system, in order of first occurrence."""
    for column in ("system", "query_id", "measure", "value"):
        _require(column, queries.columns, "column")
    _require(measure, queries["measure"].unique(), "measure")
    chosen = queries[queries["measure"] == measure]
    if chosen[["system", "query_id"]].isna().any(axis=None):
        raise InputError(f"A row of {measure} has no system or no query_id. Fill in the value or remove the row.")
    twice = chosen.duplicated(["system", "query_id"])
    if twice.any():
        first = chosen[twice].iloc[0]
        raise InputError(f"{first['system']!r} has more than one {measure} for query {first['query_id']!r}. Keep one.")
    chosen = chosen.assign(value=as_floats(chosen["value"], "the column 'value'"))
    return chosen.pivot(index="query_id", columns="system", values="value")[chosen["system"].unique()]


def _require(name: object, names: Iterable[object], what: str) -> None:
    names = list(names)
    if name not in names:
        raise InputError(f"There is no {what} {name!r}. Available: {', '.join(map(repr, names))}.")


def _dominates(cost: float, quality: float, other_cost: float, other_quality: float) -> bool:
    return cost <= other_cost and quality >= other_quality and (cost < other_cost or quality > other_quality)


# ---------------------------------------------------------------------------------------- layout


def canvas(height: float, names: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """Return an empty figure and its axes; long names make the figure wider."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    figure = Figure(figsize=(6.4 + 0.07 * longest, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot(facecolor="white")
    axes.tick_params(which="both", colors=INK, labelsize=9, labelfontfamily=FONT, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GREY)
    return figure, axes


def row_positions(names: Sequence[str]) -> tuple[list[float], float]:
    """Return the vertical centre of each name's row and the total height, in inches from the top."""
    rows, top = [], 0.0
    for name in names:
        height = _LINE_INCHES * (name.count("\n") + 1) + 0.1
        rows.append(top + height / 2)
        top += height
    return rows, top


def _spread(wanted: npt.NDArray[np.float64], packed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return positions in 0..1, in order, close to ``wanted`` and at least as far apart as those in ``packed``."""
    from scipy import optimize

    least = packed - packed[0]
    free = optimize.isotonic_regression(wanted - least).x
    placed: npt.NDArray[np.float64] = np.clip(free, packed[0], 1 - packed[0] - least[-1]) + least
    return placed


@functools.cache
def _drawable() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())


def label_of(name: object) -> str:
    """Return a user-supplied name, wrapped and shortened, with characters that the font lacks as escapes."""
    text = "".join(c if ord(c) in _drawable() else ascii(c)[1:-1] for c in one_line(str(name)) or "''")
    if len(text) > _NAME_CHARACTERS:
        half = _NAME_CHARACTERS // 2
        text = f"{text[: half - 1]}…{text[-half:]}"  # names of systems often differ at the end
    return textwrap.fill(text, _NAME_WIDTH)


def _number(value: float, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{value:{plus}.3f}" if abs(value) < 100 else f"{value:{plus},.0f}"


def _count(count: int, what: str) -> str:
    plural = "losses" if what == "loss" else f"{what}s"
    return f"{count} {what if count == 1 else plural}"
