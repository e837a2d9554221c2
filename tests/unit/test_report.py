import io
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from results_factory import ARMS, pilot

from hydramix_dist.errors import UserError
from hydramix_dist.report import plots
from hydramix_dist.report.page import compare_runs, render_report, write_report
from hydramix_dist.report.sheets import (
    SOURCE_COLOURS,
    Sheet,
    load_sheets,
    save_sheets,
    segment_picture,
    sheet_png,
    source_picture,
    tiles,
)
from hydramix_dist.store import Store

FIVE = {name: (0.5 + 0.02 * i, 0.53 + 0.025 * i, 0.49 + 0.02 * i) for i, name in enumerate(ARMS)}
VOID = {"meta", "br", "img", "link", "input", "hr"}


def sheet(count: int = 3, side: int = 32, with_segments: bool = True, arm: str = "hydramix") -> Sheet:
    grid = np.arange(side * side * 3, dtype=np.uint32).reshape(side, side, 3)
    sources = np.stack([(grid * (k + 3) // 7 % 256).astype(np.uint8) for k in range(count)])
    owner = np.arange(64).reshape(8, 8) % count
    return Sheet(
        arm=arm,
        caption="class <patches> & co",
        sources_KHWC=sources,
        segments_HW=(np.arange(side * side).reshape(side, side) // 100) if with_segments else None,
        source_map_Khw=np.stack([owner == k for k in range(count)]).astype(np.float32),
        mix_HWC=sources[0],
        nearest_HWC=sources[1],
        distance=12.6,
    )


class Checker(HTMLParser):
    """Collects what a page would load, and that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        self.loads += [names[key] for key in ("src", "href", "xlink:href", "data") if key in names]
        self.ids += [names["id"]] if "id" in names else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def situations():
    yield "three seeds", pilot(FIVE)
    yield "one seed", pilot({name: values[:1] for name, values in FIVE.items()})
    yield "smoke", pilot({name: values[:1] for name, values in FIVE.items()}, verdict=False)
    yield "several N", pilot(FIVE, shots=(5, 10, 20, 50))
    yield "partial", pilot({"baseline": (0.5, 0.6), "chimeramix": (0.5,), "hydramix": ()}, seeds=3)
    yield "nothing yet", pilot({"baseline": (), "hydramix": ()}, seeds=3)
    yield "100 classes", pilot(FIVE, classes=tuple(f"class {i} $x_{i}$ 金" for i in range(100)), each=10)


@pytest.mark.parametrize("results", [pytest.param(r, id=name) for name, r in situations()])
def test_page_is_whole_and_loads_nothing(results):
    html = render_report(results, [sheet(2, arm="chimeramix"), sheet(5)], "runs/one")
    page = checked(html)
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert "http:" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html) and "https:" not in html
    assert len(page.ids) == len(set(page.ids))
    text = " ".join(page.text)
    assert all(sentence in text for sentence in results.verdict.sentences)
    assert "nan" not in text.lower().split() and "None" not in text.split()


def test_answer_stands_before_every_number():
    html = render_report(pilot(FIVE), [], "runs/one")
    places = [html.index(f'id="{name}"') for name in ("answer", "accuracy", "comparisons", "cost", "settings")]
    assert places == sorted(places)


def test_every_accuracy_and_every_missing_run_is_on_the_page():
    results = pilot({"baseline": (0.512, 0.613), "hydramix": (0.657,)}, seeds=3)
    text = " ".join(checked(render_report(results, [], "runs/one")).text)
    for value in ("51.2", "61.3", "65.7"):
        assert value in text
    assert "hydramix with N = 5: seeds 1 and 2" in text
    assert "baseline with N = 5: seed 2" in text
    assert "3 of 6 trainings are missing" in text


def test_names_from_the_users_folders_cannot_become_markup():
    evil = ("<script>alert(1)</script>", 'a"b', "c&d")
    html = render_report(pilot(FIVE, classes=evil), [sheet()], "runs/<b>")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    checked(html)


def test_same_results_give_the_same_page():
    results = pilot(FIVE)
    assert render_report(results, [sheet()], "x") == render_report(results, [sheet()], "x")


def test_written_run_can_be_rendered_again_from_what_was_stored(tmp_path):
    store, results = Store(tmp_path), pilot(FIVE)
    write_report(store, results, [sheet(), sheet(2, with_segments=False)])
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "mixes.png", "mixes.npz"}
    again = render_report(results, load_sheets(store), store.path())
    assert again == (tmp_path / "report.html").read_text()


def test_a_run_without_mixes_has_none_and_none_are_loaded(tmp_path):
    write_report(Store(tmp_path), pilot(FIVE), [])
    assert load_sheets(Store(tmp_path)) == []
    assert 'id="mixes"' not in (tmp_path / "report.html").read_text()


def test_sheets_come_back_as_they_were_saved(tmp_path):
    # Twelve of them: numbers must not be ordered as text.
    sheets = [sheet(2 + i % 3, with_segments=i % 2 == 0, arm=f"arm{i}") for i in range(12)]
    save_sheets(Store(tmp_path), sheets)
    for before, after in zip(sheets, load_sheets(Store(tmp_path)), strict=True):
        assert (before.arm, before.caption, before.distance) == (after.arm, after.caption, after.distance)
        assert (before.segments_HW is None) == (after.segments_HW is None)
        np.testing.assert_array_equal(before.sources_KHWC, after.sources_KHWC)
        np.testing.assert_array_equal(before.source_map_Khw, after.source_map_Khw)


@pytest.mark.parametrize("damage", [b"", b"text", b"PK\x03\x04 cut", None])
def test_damaged_sheets_are_an_answer(tmp_path, damage):
    save_sheets(Store(tmp_path), [sheet()])
    path = tmp_path / "mixes.npz"
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    with pytest.raises(UserError, match=r"mixes\.npz is damaged .*; delete it"):
        load_sheets(Store(tmp_path))


@pytest.mark.parametrize(
    ("curves", "thick"),
    [
        ([[(10, 1.0), (20, 3.0)], [(10, 3.0), (20, 5.0)]], [(10, 2.0), (20, 4.0)]),
        ([[(0, 0.0), (20, 2.0)], [(10, 3.0), (30, 5.0)]], [(10, 2.0), (20, 3.0)]),  # recorded at other places
        ([[(10, 1.0)]], [(10, 1.0)]),
        ([[(10, 1.0)], [(20, 1.0)]], None),  # nothing in common
        ([[]], None),
    ],
)
def test_thick_curve_is_the_mean_over_the_stretch_that_all_trainings_have(curves, thick):
    axis = Figure().subplots()
    plots._curves(axis, curves, "#000000", "-", "")
    means = [line for line in axis.lines if line.get_linewidth() == 2]
    assert [list(zip(*line.get_data(), strict=True)) for line in means] == ([] if thick is None else [thick])
    assert all(line.get_marker() not in ("", "None") for line in means if len(line.get_xdata()) == 1)


def test_hard_mask_shows_each_cell_in_its_sources_colour_and_a_shared_cell_in_between():
    weights_Khw = np.array([[[1.0, 0.5]], [[0.0, 0.5]]])
    first, second = ([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in SOURCE_COLOURS[:2])
    picture = source_picture(weights_Khw)
    assert picture[0, 0].tolist() == first
    assert picture[0, 1].tolist() == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)], abs=1)


def test_neighbouring_segments_look_different():
    picture = segment_picture(np.repeat(np.arange(40), 4)[None].repeat(3, axis=0))
    colours = picture[2, 2::4]  # inside each segment, clear of the white borders
    assert len({tuple(colour) for colour in colours.tolist()}) == 40


def test_row_holds_all_sources_and_the_sheet_keeps_their_pixels():
    one = sheet(4)
    labels = [tile.label for tile in tiles(one)]
    assert labels == [
        "source 1",
        "source 2",
        "source 3",
        "source 4",
        "segments",
        "taken from",
        "mix",
        "nearest real, off by 13",
    ]
    picture = np.asarray(Image.open(io.BytesIO(sheet_png([one, sheet(2)]))))
    sample = one.sources_KHWC[3, 4:28:9, 4:28:9].reshape(-1, 3)
    assert all((picture == pixel).all(axis=-1).any() for pixel in sample)


def test_colours_stay_with_an_arm_and_differ():
    colours = plots.arm_colours(pilot(FIVE).arms)
    assert len(set(colours.values())) == len(FIVE)
    fewer = plots.arm_colours(pilot({k: FIVE[k] for k in ("baseline", "trivialaugment", "chimeramix")}).arms)
    assert fewer == {name: colours[name] for name in fewer}


def test_plots_leave_matplotlibs_settings_as_they_were():
    before = dict(mpl.rcParams)
    plots.accuracy_plot(pilot(FIVE))
    assert dict(mpl.rcParams) == before


def test_runs_side_by_side_show_each_answer():
    first, second = pilot(FIVE), pilot({"baseline": (0.5,), "hydramix": (0.9,)})
    html = compare_runs([first, second])
    text = " ".join(checked(html).text)
    assert first.verdict.sentences[0] in text and second.verdict.sentences[0] in text
    assert "90.0 %" in text
