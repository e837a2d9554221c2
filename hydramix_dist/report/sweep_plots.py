"""A sweep's plots, in the look of the pilot's: accuracy against N, N x K maps, what mixing gains against its cost.

Beside its colour an arm has a marker and a line of its own, since a sweep has more arms than there are colours that
can be told apart.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from hydramix_dist.evaluation.results import ArmInfo, ArmSummary
from hydramix_dist.evaluation.sweep_results import DataPart, Gain, gains
from hydramix_dist.evaluation.verdict import WORTH_HAVING
from hydramix_dist.report import plots

MOST_ARMS = 20  # more lines in one plot cannot be followed
_MOST_LABELS = 40  # points; more numbers beside them cover each other
_MARKERS = "osD^vP*"  # seven, with six colours: 42 arms before both come again together
_LINES: tuple[Any, ...] = ("-", (0, (7, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
_PLAIN_LINE = (0, (3, 2))
_SHADES = ("#f3f7fb", "#6aaed6")  # dark text can be read on both
_LEAST_SHADE = 0.02  # two points: smaller differences are not blown up to full contrast


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: colour, marker, line; arms without mixing hollow and broken as in all plots."""

    colour: str
    marker: str
    line: Any
    hollow: bool

    @property
    def face(self) -> str:
        """Return the colour that fills its marker."""
        return "white" if self.hollow else self.colour


def looks(arms: Sequence[ArmInfo]) -> dict[str, Look]:
    """Return each arm's look, in order; no two are alike among the first 42 arms with mixing."""
    colours = plots.arm_colours(arms)
    found: dict[str, Look] = {}
    seen = {True: 0, False: 0}
    for arm in arms:
        i = seen[arm.mixing]
        seen[arm.mixing] += 1
        line = _LINES[i // 6 % len(_LINES)] if arm.mixing else _PLAIN_LINE
        found[arm.name] = Look(colours[arm.name], _MARKERS[i % len(_MARKERS)], line, hollow=not arm.mixing)
    return found


def shown_arms(part: DataPart) -> tuple[ArmInfo, ...]:
    """Return the arms that the plots show, in order: all; of more than MOST_ARMS those without mixing and the best.

    The best are those that lie highest above the mean of all arms, on average over their N.
    """
    if len(part.arms) <= MOST_ARMS:
        return part.arms
    level = {n: np.mean([s.mean for s in part.summaries if s.shots == n]) for n in {s.shots for s in part.summaries}}
    above: dict[str, list[float]] = {arm.name: [] for arm in part.arms}
    for summary in part.summaries:
        above[summary.arm].append(summary.mean - float(level[summary.shots]))
    mixing = {arm.name: arm.mixing for arm in part.arms}
    ranked = sorted(above, key=lambda name: (mixing[name], -float(np.mean(above[name])) if above[name] else np.inf))
    return tuple(arm for arm in part.arms if arm.name in ranked[:MOST_ARMS])


def accuracy_curves(part: DataPart, name: str = "curves") -> str:
    """Return accuracy against N as SVG: a line of means for each arm, 95 % intervals, a thin point for each seed."""
    return plots.svg(lambda figure: _draw_curves(figure, part), plots.WIDTH, _curves_height(part), name)


def save_png(part: DataPart, path: Path) -> None:
    """Write the plot of `accuracy_curves` as a PNG file, for pages that show no SVG. Raises OSError."""
    path.write_bytes(plots.png(lambda figure: _draw_curves(figure, part), plots.WIDTH, _curves_height(part)))


def count_heat_map(part: DataPart, name: str = "counts") -> str | None:
    """Return mean accuracies over N and K as SVG, a map for each group of arms that differ in K only.

    None where no group has two K or more, or nothing is finished.
    """
    groups = count_groups(part.arms)
    cells = {(summary.arm, summary.shots): summary for summary in part.summaries}
    if not any((arm.name, n) in cells for arms in groups.values() for arm in arms for n in part.shots):
        return None
    columns = max(1, min(len(groups), 6 // max(2, len(part.shots))))
    rows = -(-len(groups) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (title, arms) in zip(grid, groups.items(), strict=False):
            _map(axis, part.shots, arms, cells)
            axis.set_title(title, loc="left", fontsize=10, color=plots.INK)
        for axis in grid[len(groups) :]:
            axis.set_visible(False)

    width = min(plots.WIDTH, columns * (1.1 + 1.15 * len(part.shots)))
    return plots.svg(draw, width, rows * (0.55 * max(map(len, groups.values())) + 0.9), name)


def count_groups(arms: Sequence[ArmInfo]) -> dict[str, list[ArmInfo]]:
    """Return groups of two or more arms that are alike but for K, smallest K first, by the name they share."""
    groups: dict[tuple[Any, ...], list[ArmInfo]] = {}
    for arm in arms:
        if arm.mixing:
            # An axis over K is in the arm's name, as "hydramix-count=3"; what is left of it is the rest of its make-up.
            rest, found = re.subn(rf"[-,\s]*(?<![\w.])(?:\w+\.)*count={arm.count}(?![\w.])", "", arm.name)
            if found:
                alike = (rest, arm.augmentation, arm.generator is None, arm.mask, repr(arm.classifier))
                groups.setdefault(alike, []).append(arm)
    return {key[0]: sorted(group, key=_count) for key, group in groups.items() if len({_count(a) for a in group}) > 1}


def cost_against_gain(part: DataPart, name: str = "cost") -> str | None:
    """Return gain against cost as SVG: a point for each arm with mixing at each N.

    The N stands beside its point unless there are too many for that. Both are relative to the best arm without mixing
    at the same N. None where there is no such pair with times.
    """
    arms = {arm.name for arm in shown_arms(part)}
    found = [(gain, gain.cost_ratio) for gain in gains(part) if gain.arm in arms and gain.cost_ratio]
    if not found:
        return None
    drawn = [arm for arm in part.arms if any(gain.arm == arm.name for gain, _ in found)]
    return plots.svg(lambda figure: _draw_gains(figure, part, found), plots.WIDTH, 3.4 + _legend_height(drawn), name)


def _count(arm: ArmInfo) -> int:
    return arm.count or 0


def _curves_height(part: DataPart) -> float:
    return 4.2 + _legend_height(shown_arms(part))


def _draw_curves(figure: Figure, part: DataPart) -> None:
    axis = figure.subplots()
    arms, every_look = shown_arms(part), looks(part.arms)
    places = np.log(sorted(part.shots))
    # Arms stand side by side at each N, within a third of the way to the next, so that their intervals do not cover.
    room = min([0.25, *(np.diff(places) / 3)])
    asides = np.linspace(-room / 2, room / 2, len(arms)) if len(arms) > 1 else [0.0]
    values: list[float] = [run.accuracy for run in part.runs]
    handles: dict[str, Any] = {}
    for arm, aside in zip(arms, asides, strict=True):
        look = every_look[arm.name]
        at = {n: float(n * np.exp(aside)) for n in part.shots}
        runs = [run for run in part.runs if run.arm == arm.name and run.shots in at]
        axis.plot(
            [at[run.shots] for run in runs],
            [run.accuracy for run in runs],
            ".",
            color=look.colour,
            markersize=4,
            alpha=0.45,
        )
        means = {summary.shots: summary for summary in part.summaries if summary.arm == arm.name}
        for n, summary in means.items():
            if n in at and summary.interval_low is not None and summary.interval_high is not None:
                axis.plot([at[n]] * 2, [summary.interval_low, summary.interval_high], color=look.colour, linewidth=1.2)
                values += [summary.interval_low, summary.interval_high]
        # A gap, not a straight line, where an N is missing.
        line = [(at[n], means[n].mean if n in means else np.nan) for n in sorted(part.shots)]
        (handles[arm.name],) = axis.plot(
            *zip(*line, strict=True),
            color=look.colour,
            linestyle=look.line,
            linewidth=1.7,
            marker=look.marker,
            markerfacecolor=look.face,
            markersize=6,
        )
    axis.set_ylim(*plots.limits(values))
    axis.set_ylabel("test accuracy, %", color=plots.QUIET)
    plots.percent_axis(axis.yaxis)
    axis.set_xscale("log")
    axis.set_xlim(float(np.exp(places[0] - 0.2)), float(np.exp(places[-1] + 0.2)))
    axis.xaxis.set_major_locator(FixedLocator(sorted(part.shots)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    scale = " (logarithmic)" if len(places) > 1 else ""
    axis.set_xlabel(f"N, labelled images a class{scale}", color=plots.QUIET)
    _legend(figure, handles)


def _map(axis: Any, shots: Sequence[int], arms: Sequence[ArmInfo], cells: Mapping[tuple[str, int], ArmSummary]) -> None:
    shades = mpl.colors.LinearSegmentedColormap.from_list("mean", _SHADES)
    # Shades compare K at the same N: those of N, which always is the larger effect, would hide what K does.
    means = np.array([[cells[a.name, n].mean if (a.name, n) in cells else np.nan for n in shots] for a in arms])
    known = ~np.isnan(means)
    levels = np.where(known, means, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    above = np.where(known, means - levels, 0.0)
    shares = 0.5 + above / (2 * max(_LEAST_SHADE, float(np.abs(above).max())))
    for row, arm in enumerate(arms):
        for column, n in enumerate(shots):
            summary = cells.get((arm.name, n))
            face = "white" if summary is None else shades(shares[row, column])
            square = mpl.patches.Rectangle(
                (column - 0.5, row - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=2
            )
            axis.add_patch(square)
            text = "–" if summary is None else f"{100 * summary.mean:.1f}"
            axis.text(column, row - 0.12, text, ha="center", va="center", color=plots.INK, fontsize=10)
            seeds = f"n = {0 if summary is None else summary.n}"
            axis.text(column, row + 0.27, seeds, ha="center", va="center", color=plots.INK, fontsize=7.5)
    axis.set_xlim(-0.5, len(shots) - 0.5)
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_xticks(range(len(shots)), [f"N = {n}" for n in shots])
    axis.set_yticks(range(len(arms)), [f"K = {arm.count}" for arm in arms])
    axis.grid(visible=False)
    axis.spines["bottom"].set_visible(False)


def _draw_gains(figure: Figure, part: DataPart, found: Sequence[tuple[Gain, float]]) -> None:
    axis, every_look = figure.subplots(), looks(part.arms)
    axis.axhspan(0, WORTH_HAVING, color="#eef1f5", zorder=0)
    axis.axhline(0, color=plots.INK, linewidth=1, zorder=1)
    handles: dict[str, Any] = {}
    for gain, ratio in found:
        look = every_look[gain.arm]
        if gain.low is not None and gain.high is not None:
            axis.plot([ratio, ratio], [gain.low, gain.high], color=look.colour, linewidth=1.2, alpha=0.45)
        (handles[gain.arm],) = axis.plot(
            ratio, gain.difference, linestyle="none", color=look.colour, marker=look.marker, markersize=7
        )
    low, high = min(ratio for _, ratio in found), max(ratio for _, ratio in found)
    axis.set_xscale("log")
    axis.set_xlim(low / 1.3, high * 1.3)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if high / low < 10 else (1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.set_xlabel("training time, generator included, against the best method without mixing", color=plots.QUIET)
    axis.set_ylabel("gain over it, points", color=plots.QUIET)
    plots.percent_axis(axis.yaxis)
    _legend(figure, handles)
    if len(found) <= _MOST_LABELS:
        _label(axis, [(ratio, gain.difference, f"{gain.shots}", every_look[gain.arm].colour) for gain, ratio in found])


def _label(axis: Any, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) beside each point, on that side of it where the least is covered."""
    scale = 72 / axis.figure.dpi
    places = axis.transData.transform([(x, y) for x, y, _, _ in points]) * scale
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (x, y), (at, height, text, colour) in zip(places, points, strict=True):
        width = 5.2 * len(text)
        sides = [(6, -3), (-6 - width, -3), (-width / 2, 6), (-width / 2, -13), (5, 4), (5, -10)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + 8) for dx, dy in sides]
        covered = [sum(_overlap(box, other) for other in taken) for box in boxes]
        best = int(np.argmin(covered))
        taken.append(boxes[best])
        axis.annotate(text, (at, height), xytext=sides[best], textcoords="offset points", fontsize=8.5, color=colour)


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the area that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    figure.legend(
        list(handles.values()),
        [f" {name}" for name in handles],  # matplotlib leaves out labels that begin with "_"
        loc="outside lower left",
        ncols=_legend_columns(list(handles)),
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )


def _legend_columns(names: Sequence[str]) -> int:
    longest = max(map(len, names))
    return max(1, min(4, len(names), int(plots.WIDTH * 12 / (longest + 8))))


def _legend_height(arms: Sequence[ArmInfo]) -> float:
    """Return inches."""
    return 0.2 * -(-len(arms) // _legend_columns([arm.name for arm in arms])) + 0.1
