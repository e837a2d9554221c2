"""A sweep's page and plots: whole, self-contained, the answer first, every cell and failure on it."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report import checked

from hydramix_dist.evaluation.results import ArmInfo, Measured
from hydramix_dist.evaluation.sweep_results import Choice, DataPart, GeneratorUse, SweepResults, TrialLine, data_part
from hydramix_dist.report import sweep_plots
from hydramix_dist.report.sweep_page import render_sweep, write_sweep_page
from hydramix_dist.store import Store

PLAIN = (ArmInfo(name="baseline", augmentation="basic"), ArmInfo(name="trivialaugment", augmentation="trivial"))
HOSTILE = ("a|b", "x_y & 50%", "<b>", "_hidden", "$x$ 金")


def mixing(name: str, count: int = 3, augmentation: str = "basic") -> ArmInfo:
    return ArmInfo(name=name, augmentation=augmentation, generator="g", count=count, mask="segments")


COUNTS = tuple(mixing(f"hydramix-count={k}", k) for k in (2, 3, 5))
ARMS = (*PLAIN, mixing("chimeramix", 2), *COUNTS)


def part(
    arms: tuple[ArmInfo, ...] = ARMS,
    shots: tuple[int, ...] = (5, 10, 20),
    seeds: int = 3,
    name: str = "steel",
    leave: tuple[tuple[str, int], ...] = (),
    equal: bool = False,
    gain: float = 0.02,
) -> DataPart:
    """Return a part whose mixing arms gain `gain` each over the arm before; `leave` names cells without a run."""
    draws = np.random.default_rng(1)
    runs = [
        Measured(
            arm=arm.name,
            shots=n,
            seed=seed,
            accuracy=0.5 if equal else float(0.3 + 0.05 * np.log(n) + gain * i + draws.normal(0, 0.002)),
            balanced_accuracy=0.5,
            seconds=40.0,
            generator_seconds=60.0 * (arm.count or 0),
            test_images=300,
        )
        for n in shots
        for seed in range(seeds)
        for i, arm in enumerate(arms)
        if (arm.name, n) not in leave
    ]
    return data_part(name, arms, shots, range(seeds), runs)


def failed(data: str = "steel", arm: str = "hydramix-count=5", shots: int = 20) -> TrialLine:
    return TrialLine(
        key="t",
        kind="classifier",
        data=data,
        arm=arm,
        shots=shots,
        seed=0,
        state="failed",
        attempts=3,
        error="out of <memory>",
    )


def sweep(*parts: DataPart, trials: tuple[TrialLine, ...] = (), choices: tuple[Choice, ...] = ()) -> SweepResults:
    return SweepResults(
        name="first",
        created="2030-01-01T00:00:00+00:00",
        parts=parts,
        trials=trials,
        choices=choices,
        generators=GeneratorUse(needed=12, trained=7, reused=5, seconds=700.0),
        warnings=("2 near duplicates",),
        settings={"shots": [5, 10]},
        versions={"hydramix_dist": "0.1.0"},
        machine={"device": "cpu"},
    )


def situations():
    yield "usual", sweep(part())
    yield "one seed", sweep(part(seeds=1))
    yield "two seeds", sweep(part(seeds=2))
    yield "missing cell", sweep(part(leave=(("hydramix-count=5", 20), ("baseline", 10))), trials=(failed(),))
    yield "nothing yet", sweep(part(leave=tuple((arm.name, n) for arm in ARMS for n in (5, 10, 20))))
    yield "all equal", sweep(part(equal=True))
    yield "one N", sweep(part(shots=(5,)))
    yield "no mixing", sweep(part(arms=PLAIN))
    yield "only mixing", sweep(part(arms=COUNTS))
    yield "hostile names", sweep(part(arms=(*PLAIN, *map(mixing, HOSTILE)), name="<b>"), trials=(failed("<b>", "<b>"),))
    yield "many arms", sweep(part(arms=(*PLAIN, *(mixing(f"m{i}") for i in range(45))), gain=0.008))
    yield "two data sets", sweep(part(), part(name="photos", gain=-0.02))


@pytest.mark.parametrize("results", [pytest.param(r, id=name) for name, r in situations()])
def test_page_is_whole_and_loads_nothing(results):
    html = render_sweep(results, "sweeps/first")
    page = checked(html)
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert "http:" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html) and "https:" not in html
    assert len(page.ids) == len(set(page.ids))
    text = " ".join(page.text)
    assert all(sentence in text for p in results.parts for sentence in p.verdict.sentences)
    assert "nan" not in text.lower().split() and "None" not in text.split()
    assert "<b>_" not in html and "<script" not in html


def test_answers_come_first_and_the_bad_news_before_the_good():
    good, bad = part(name="good", seeds=5), part(name="bad", gain=-0.02, seeds=5)
    assert (good.verdict.outcome, bad.verdict.outcome) == ("helped", "did not help")
    html = render_sweep(sweep(good, bad), "x")
    assert "Mixing did not help on bad; it helped on good." in html
    places = [html.index(p) for p in ("<b>on bad</b>", "<b>on good</b>", 'id="data-1"', 'id="trials"', 'id="settings"')]
    assert places == sorted(places)


def test_a_failed_cell_and_its_error_are_on_the_page():
    results = sweep(part(leave=(("hydramix-count=5", 20),)), trials=(failed(),))
    text = " ".join(checked(render_sweep(results, "x")).text)
    assert "– (0)" in text and "2 not begun and 1 failed" in text
    assert "out of <memory>" in text and "Failed: 1" in text


def test_choices_and_generators_are_on_the_page():
    choice = Choice(
        data="steel", arm="chimeramix", shots=10, values={"lr": 0.03}, score=0.612, candidates=17, for_shots=(5, 10)
    )
    text = " ".join(checked(render_sweep(sweep(part(), choices=(choice,)), "x")).text)
    assert "lr = 0.03" in text and "61.2 %" in text and "17" in text
    assert "12 finished classifiers drew mixes of 7 generators" in " ".join(text.split())


def test_many_comparisons_are_folded_away():
    assert " comparisons</summary>" not in render_sweep(sweep(part()), "x")
    many = part(arms=(*PLAIN, *(mixing(f"m{i}") for i in range(12))))
    assert f"All {len(many.pairs)} comparisons</summary>" in render_sweep(sweep(many), "x")


def test_page_and_tables_lie_beside_each_other_and_are_the_same_each_time(tmp_path):
    results = sweep(part())
    write_sweep_page(Store(tmp_path), results)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"results.html", "results.md", "results.csv", "results.tex"}
    write_sweep_page(Store(tmp_path), results)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_arms_beyond_the_colours_are_told_apart_by_marker_or_line():
    found = sweep_plots.looks([*PLAIN, *(mixing(f"m{i}") for i in range(42))])
    mixed = [look for look in found.values() if not look.hollow]
    assert len({(look.colour, look.marker) for look in mixed}) == 42
    assert all(look.face == "white" for look in found.values() if look.hollow)


def test_of_too_many_arms_the_plain_and_the_best_are_drawn():
    many = part(arms=(*PLAIN, *(mixing(f"m{i}") for i in range(30))), gain=0.01)
    names = [arm.name for arm in sweep_plots.shown_arms(many)]
    assert names == ["baseline", "trivialaugment", *(f"m{i}" for i in range(12, 30))]
    assert "Shown are 20 of 32 methods" in render_sweep(sweep(many), "x")


def test_map_has_every_mean_of_arms_that_differ_in_k_only():
    shown = part(leave=(("hydramix-count=5", 20),))
    svg = sweep_plots.count_heat_map(shown)
    assert svg is not None
    texts = re.findall(r">([^<>\n]+)</text>", svg)
    for summary in shown.summaries:
        assert (f"{100 * summary.mean:.1f}" in texts) or not summary.arm.startswith("hydramix")
    assert texts.count("n = 3") == 8 and texts.count("n = 0") == 1
    assert [t for t in texts if t.startswith("K = ")] == ["K = 2", "K = 3", "K = 5"]


@pytest.mark.parametrize(
    ("arms", "groups"),
    [
        (COUNTS, {"hydramix": [2, 3, 5]}),
        (tuple(mixing(f"hydramix, count={k}", k) for k in (3, 2)), {"hydramix": [2, 3]}),
        (
            (mixing("a-lr=0.1-mix.count=2-kind=grid", 2), mixing("a-lr=0.1-mix.count=3-kind=grid", 3)),
            {"a-lr=0.1-kind=grid": [2, 3]},
        ),
        ((mixing("a-count=2", 2), mixing("a-count=3", 3, "trivial")), {}),
        ((mixing("a-discount=2", 2), mixing("a-discount=3", 3)), {}),
        ((mixing("chimeramix", 2), mixing("hydramix", 3)), {}),
        (PLAIN, {}),
    ],
)
def test_groups_of_k(arms, groups):
    found = sweep_plots.count_groups(arms)
    assert {name: [arm.count for arm in group] for name, group in found.items()} == groups
    if not groups:
        assert sweep_plots.count_heat_map(part(arms=(*PLAIN, *arms))) is None


def test_cost_plot_names_each_n_and_needs_both_kinds():
    svg = sweep_plots.cost_against_gain(part(arms=(*PLAIN, COUNTS[1]), shots=(5, 17)))
    assert svg is not None and all(f">{n}</text>" in svg for n in (5, 17))
    crowded = sweep_plots.cost_against_gain(
        part(arms=(*PLAIN, *(mixing(f"m{i}") for i in range(18))), shots=(5, 17, 33))
    )
    assert crowded is not None and ">33</text>" not in crowded
    assert sweep_plots.cost_against_gain(part(arms=PLAIN)) is None
    assert sweep_plots.cost_against_gain(part(arms=COUNTS)) is None


def test_curves_have_a_tick_at_each_n_and_no_other():
    svg = sweep_plots.accuracy_curves(part(shots=(1, 7, 30)))
    ticks = re.search(r'id="curves-matplotlib\.axis_1".*?id="curves-matplotlib\.axis_2"', svg, flags=re.DOTALL)
    assert ticks is not None
    assert re.findall(r">(\d+)</text>", ticks[0]) == ["1", "7", "30"]


def test_picture_of_the_curves_is_a_png(tmp_path: Path):
    sweep_plots.save_png(part(), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width == 1850
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
