"""The page's plots, each as one SVG element with real text, drawn with matplotlib on its own canvas.

Colours stay with an arm through all plots and tables of a page. They are Okabe and Ito's set, safe for colour-blind
readers; arms without mixing are also told by hollow points and broken lines.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hydramix_dist.evaluation.results import ArmInfo, PilotResults
from hydramix_dist.evaluation.verdict import WORTH_HAVING

_PLAIN = ("#8a8f98", "#2f3640", "#a6761d", "#c4b27a")
_MIXING = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#332288")
INK, QUIET, LINE = "#1c2430", "#5b6675", "#d5dae1"
WIDTH = 9.25  # inches; the page is about 890 pixels wide


def arm_colours(arms: Sequence[ArmInfo]) -> dict[str, str]:
    """Return "#rrggbb" for each arm, in order: quiet colours without mixing, strong ones with it."""
    plain = [arm.name for arm in arms if not arm.mixing]
    mixing = [arm.name for arm in arms if arm.mixing]
    return {name: _PLAIN[i % len(_PLAIN)] for i, name in enumerate(plain)} | {
        name: _MIXING[i % len(_MIXING)] for i, name in enumerate(mixing)
    }


def accuracy_plot(results: PilotResults) -> str:
    """Return the accuracies as SVG: a row for each arm, a point for each seed, the mean with its 95 % interval."""
    arms = results.arms
    rows = -(-len(results.shots) // 3)
    columns = min(3, len(results.shots))
    values = [run.accuracy for run in results.runs]
    for summary in results.summaries:
        values += [value for value in (summary.interval_low, summary.interval_high) if value is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis, shots in zip(axes, results.shots, strict=False):
            for row in range(len(arms)):
                _accuracy_row(axis, row, shots, results)
            axis.set_title(f"N = {shots} images a class", loc="left", fontsize=10, color=INK)
            axis.set_xlabel("test accuracy, %", color=QUIET)
        for axis in axes[len(results.shots) :]:
            axis.set_visible(False)
        axes[0].set_yticks(range(len(arms)), [arm.name for arm in arms])
        axes[0].set_ylim(len(arms) - 0.4, -0.6)
        axes[0].set_xlim(*limits(values))
        percent_axis(axes[0].xaxis)

    return svg(draw, WIDTH, rows * (0.42 * len(arms) + 0.85), "accuracy")


def difference_plot(results: PilotResults, shots: int) -> str:
    """Return the paired differences at one N as SVG: a row for each comparison, its mean and its 95 % interval."""
    colours, mixing = arm_colours(results.arms), {arm.name: arm.mixing for arm in results.arms}
    shown = [pair for pair in results.pairs if pair.shots == shots]
    values = [0.0, WORTH_HAVING]
    for pair in shown:
        values += [pair.mean_difference, *(v for v in (pair.interval_low, pair.interval_high) if v is not None)]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axvline(0, color=INK, linewidth=1, zorder=1)
        axis.axvspan(0, WORTH_HAVING, color="#eef1f5", zorder=0)
        for row, pair in enumerate(shown):
            colour = colours[pair.arm]
            if pair.interval_low is not None and pair.interval_high is not None:
                axis.plot([pair.interval_low, pair.interval_high], [row, row], color=colour, linewidth=2.2)
            face = colour if mixing[pair.arm] else "white"
            axis.plot(pair.mean_difference, row, "D", color=colour, markerfacecolor=face, markersize=6)
        axis.set_yticks(range(len(shown)), [f"{pair.arm}  vs.  {pair.reference}" for pair in shown])
        axis.set_ylim(len(shown) - 0.4, -0.6)
        low, high = min(values), max(values)
        axis.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axis.set_xlabel(
            "difference of test accuracy, points (right of zero: the first-named method is better)", color=QUIET
        )
        percent_axis(axis.xaxis)

    return svg(draw, WIDTH, 0.32 * len(shown) + 0.7, f"difference-{shots}")


def curves_plot(results: PilotResults) -> str:
    """Return test accuracy and training loss over images seen as SVG: a thin line for each seed, a thick mean."""
    colours = arm_colours(results.arms)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(results.shots), 2, squeeze=False)
        for (left, right), shots in zip(grid, results.shots, strict=True):
            for arm in results.arms:
                runs = [run for run in results.runs if run.arm == arm.name and run.shots == shots]
                style = "-" if arm.mixing else (0, (5, 2))
                _curves(left, [run.test_curve for run in runs], colours[arm.name], style, "o")
                _curves(right, [run.train_loss_curve for run in runs], colours[arm.name], style, "")
            left.set_title(f"test accuracy, %   (N = {shots})", loc="left", fontsize=10, color=INK)
            right.set_title(f"training loss   (N = {shots})", loc="left", fontsize=10, color=INK)
            percent_axis(left.yaxis)
            for axis in (left, right):
                axis.set_xlabel("images seen", color=QUIET)
                axis.xaxis.set_major_locator(MaxNLocator(5))
                axis.xaxis.set_major_formatter(FuncFormatter(_short_count))

    return svg(draw, WIDTH, 2.7 * len(results.shots), "curves")


def confusion_plot(share_LL: Sequence[Sequence[float]], colour: str, name: str) -> str:
    """Return a large confusion matrix as SVG without class names: darker where more of a row's images went."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        shades = mpl.colors.LinearSegmentedColormap.from_list("arm", ["#ffffff", colour])
        axis.imshow(np.asarray(share_LL), cmap=shades, vmin=0, vmax=1, interpolation="nearest")
        axis.set_xlabel("predicted class number", color=QUIET)
        axis.set_ylabel("true class number", color=QUIET)
        axis.grid(visible=False)

    return svg(draw, 4.2, 4.2, name)


def _accuracy_row(axis: Any, row: int, shots: int, results: PilotResults) -> None:
    arm = results.arms[row]
    colour = arm_colours(results.arms)[arm.name]
    face = colour if arm.mixing else "white"
    # Seeds lie below the mean, each at its own height in every arm, so that points and interval never cover each other.
    spread = np.linspace(0.14, 0.32, len(results.seeds)) if len(results.seeds) > 1 else np.array([0.2])
    for run in results.runs:
        if (run.arm, run.shots) != (arm.name, shots):
            continue
        height = row + spread[results.seeds.index(run.seed)]
        axis.plot(run.accuracy, height, "o", color=colour, markerfacecolor=face, markersize=4, alpha=0.75)
    for summary in results.summaries:
        if (summary.arm, summary.shots) == (arm.name, shots):
            if summary.interval_low is not None and summary.interval_high is not None:
                axis.plot([summary.interval_low, summary.interval_high], [row - 0.1] * 2, color=colour, linewidth=2.2)
            axis.plot(summary.mean, row - 0.1, "D", color=colour, markerfacecolor=face, markersize=7, zorder=3)


def _curves(axis: Any, curves: Sequence[Sequence[tuple[int, float]]], colour: str, style: Any, marker: str) -> None:
    curves = [curve for curve in curves if curve]
    for curve in curves:
        axis.plot(*zip(*curve, strict=True), color=colour, linewidth=0.7, alpha=0.35)
    # Records are made by the clock, each training's at places of its own: the mean is taken over the stretch that all
    # have, between their points.
    first, last = max((c[0][0] for c in curves), default=0), min((c[-1][0] for c in curves), default=-1)
    places = sorted({seen for curve in curves for seen, _ in curve if first <= seen <= last})
    if places:
        mean = np.mean([np.interp(places, *np.transpose(curve)) for curve in curves], axis=0)
        marker = marker or ("o" if len(places) == 1 else "")  # a line needs two points to be seen
        axis.plot(places, mean, color=colour, linewidth=2, linestyle=style, marker=marker, markersize=4)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Return axis limits around accuracies in [0, 1]; intervals may reach beyond, and are cut there."""
    low, high = max(0.0, min(values, default=0.0)), min(1.0, max(values, default=1.0))
    room = max(0.02, 0.06 * (high - low))
    return low - room, high + room


def percent_axis(axis: Any) -> None:
    """Give an axis of shares about six round ticks, written in per cent without the sign."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}".replace("-", "−")))


def _short_count(value: float, _: int) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def svg(draw: Callable[[Figure], None], width: float, height: float, name: str) -> str:
    """Return as one <svg> element what `draw` puts on a figure of that size (inches of 100 pixels).

    `name` makes the ids of its elements unique within a page.
    """
    # No date and no program's name: the same results give the same bytes.
    options = {"format": "svg", "transparent": True, "metadata": {"Date": None, "Creator": None}}
    document = _drawn(draw, width, height, options).decode()
    # Prolog, document type and metadata belong to a file of its own, not to an element of a page.
    element = re.sub(r"<metadata>.*?</metadata>", "", document[document.index("<svg") :], flags=re.DOTALL)
    # Element ids are made unique within the page; matplotlib numbers them anew in each plot.
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", element)


def png(draw: Callable[[Figure], None], width: float, height: float) -> bytes:
    """Return as a PNG file on white what `draw` puts on a figure of that size (inches of 200 pixels)."""
    return _drawn(draw, width, height, {"format": "png", "dpi": 200, "facecolor": "white"})


def _drawn(draw: Callable[[Figure], None], width: float, height: float, options: Mapping[str, Any]) -> bytes:
    settings: Any = {
        "svg.fonttype": "none",  # real text: sharp, selectable, in the page's own font
        "svg.hashsalt": "hydramix",  # the same results give the same bytes
        "text.parse_math": False,  # a class or arm may be called "$x$"
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.edgecolor": LINE,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e9ecf1",
        "grid.linewidth": 0.8,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "ytick.labelcolor": INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "font.size": 9.5,
    }
    buffer = io.BytesIO()
    with mpl.rc_context(settings), warnings.catch_warnings():
        # SVG's text is drawn by the browser, which has other fonts for names that matplotlib's own cannot show.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, **options)
    return buffer.getvalue()
