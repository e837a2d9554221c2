"""A sweep's tables: what a cell says, which is bold, and names that stand for themselves in every format."""

import csv
import io
import re

import pytest
from markdown_it import MarkdownIt

from hydramix_dist.evaluation.results import ArmInfo, Measured
from hydramix_dist.evaluation.sweep_results import DataPart, GeneratorUse, State, SweepResults, TrialLine, data_part
from hydramix_dist.report import tables
from hydramix_dist.report.tables import BOLD_NOTE, cells, csv_text, latex, markdown, marks

PLAIN = ArmInfo(name="baseline", augmentation="basic")
MIXED = ArmInfo(name="hydramix-count=3", augmentation="basic", generator="g", count=3, mask="segments")
HOSTILE = ("a|b", "x_y & 50%", "<b>", "$x^2$ ~#{}\\", "*star* `code` [link](u)")
GOOD = (0.5, 0.6, 0.52, 0.58, 0.55)


def measured(arm: str, shots: int, seed: int, accuracy: float) -> Measured:
    return Measured(
        arm=arm, shots=shots, seed=seed, accuracy=accuracy, balanced_accuracy=0.4, seconds=40.0, test_images=100
    )


def part_of(values: dict[tuple[str, int], tuple[float, ...]], arms: tuple[ArmInfo, ...] = (PLAIN, MIXED)) -> DataPart:
    """Return a part whose arm has values[arm, N][seed]; every arm is planned at every N and seed that there is."""
    runs = [measured(arm, n, seed, v) for (arm, n), found in values.items() for seed, v in enumerate(found)]
    seeds = range(max(len(found) for found in values.values()))
    return data_part("steel", arms, sorted({n for _, n in values}), seeds, runs)


def sweep(*parts: DataPart, trials: tuple[TrialLine, ...] = ()) -> SweepResults:
    return SweepResults(
        name="first",
        created="2030-01-01T00:00:00+00:00",
        parts=parts,
        trials=trials,
        choices=(),
        generators=GeneratorUse(needed=0, trained=0, reused=0, seconds=0.0),
        settings={},
        versions={},
        machine={},
    )


def trial(seed: int, state: State, data: str = "steel", shots: int = 5) -> TrialLine:
    return TrialLine(
        key=f"{data}-{shots}-{seed}", kind="classifier", data=data, arm=MIXED.name, shots=shots, seed=seed, state=state
    )


def rows(results: SweepResults) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(results))))


@pytest.mark.parametrize(
    ("values", "text", "notes"),
    [
        (GOOD, "55.0 ± 4.1 (5)", ()),
        (GOOD[:4], "55.0 ± 4.8 (4)", ("few seeds",)),
        (GOOD[:2], "55.0 ± 7.1 (2)", ("2 seeds: no interval",)),
        (GOOD[:1], "50.0 (1)", ("1 seed: no interval",)),
        ((0.5,) * 5, "50.0 ± 0.0 (5)", ("all 5 values are equal: their spread cannot be estimated",)),
    ],
)
def test_a_cell_says_mean_spread_and_seeds_and_warns_of_few(values, text, notes):
    cell = cells(part_of({("baseline", 5): values}, (PLAIN,)), [])["baseline", 5]
    assert (cell.text, cell.notes) == (text, notes)


def test_a_cell_without_a_finished_training_says_what_became_of_it():
    part = part_of({("baseline", 5): GOOD[:4], ("baseline", 10): GOOD[:4]})
    others = (trial(0, "pending", data="other"), trial(1, "done", shots=10))
    found = cells(part, [trial(0, "failed"), trial(1, "running"), trial(2, "failed"), *others])
    assert found[MIXED.name, 5].text == "– (0)"
    assert found[MIXED.name, 5].notes == ("1 not begun, 1 running and 2 failed",)
    assert found[MIXED.name, 10].notes == ("3 not begun and 1 finished, not yet collected",)
    text = markdown(sweep(part, trials=(trial(0, "failed"),)))
    assert f"| {MIXED.name} | – (0) <sup>" in text and "1 failed" in text


def test_a_seed_that_failed_is_told_beside_the_finished_ones():
    part = part_of({("baseline", 5): GOOD, (MIXED.name, 5): GOOD[:4]})
    assert cells(part, [trial(4, "failed")])[MIXED.name, 5].notes == ("few seeds", "1 failed")


@pytest.mark.parametrize(
    ("plain", "mixed", "best"),
    [
        (GOOD, tuple(v + 0.1 for v in GOOD), {MIXED.name}),
        (GOOD, GOOD, set()),
        (GOOD, tuple(v + 0.1 for v in GOOD[:2]), set()),
        (tuple(v + 0.1 for v in GOOD), GOOD[:2], {"baseline"}),
        (GOOD, (), set()),
    ],
    ids=["clear", "all equal", "best of two seeds", "other of two seeds", "alone"],
)
def test_the_best_is_bold_only_where_it_rests_on_three_seeds(plain, mixed, best):
    part = part_of({("baseline", 5): plain, (MIXED.name, 5): mixed})
    assert {cell.arm for cell in cells(part, []).values() if cell.best} == best
    assert (BOLD_NOTE in markdown(sweep(part))) == (r"\textbf{" in latex(sweep(part))) == bool(best)


def test_every_mark_in_a_cell_is_explained_under_its_table():
    part = part_of({("baseline", 5): GOOD[:1], (MIXED.name, 5): GOOD[:4], ("baseline", 10): GOOD})
    letters = marks(cells(part, []))
    assert list(letters.values()) == ["a", "b", "c", "d", "e"][: len(letters)]
    for text, pattern in (
        (markdown(sweep(part)), r"- <sup>(\w+)</sup>"),
        (latex(sweep(part)), r"\\textsuperscript\{(\w+)\} "),
    ):
        used = {mark for group in re.findall(r"(?:<sup>|superscript\{)([\w,]+)", text) for mark in group.split(",")}
        assert used == set(re.findall(pattern, text)) == set(letters.values())


def test_letters_go_on_after_z():
    assert [tables._letters(i) for i in (0, 25, 26, 51, 52, 701, 702)] == ["a", "z", "aa", "az", "ba", "zz", "aaa"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_stand_for_themselves_in_markdown(name):
    arm = MIXED.model_copy(update={"name": name})
    part = part_of({("baseline", 5): GOOD, (name, 5): GOOD}, (PLAIN, arm)).model_copy(update={"name": name})
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(sweep(part)))
    texts = ["".join(c.content for c in t.children or () if c.type.startswith("text")) for t in tokens if t.children]
    kinds = [c.type for t in tokens for c in t.children or () if t.type == "inline"]
    assert texts.count(name) == 2  # the heading and the row
    assert sum(token.type == "td_open" for token in tokens) == 4
    assert not {"code_inline", "em_open", "link_open"} & set(kinds)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_stand_for_themselves_in_latex(name):
    arm = MIXED.model_copy(update={"name": name})
    text = latex(sweep(part_of({("baseline", 5): GOOD, (name, 5): GOOD}, (PLAIN, arm))))
    row = next(
        line for line in text.splitlines() if line.endswith(r"\\") and "baseline" not in line and "method" not in line
    )
    bare = re.sub(r"\\(?:text\w+\{\}|[&%$#_{}])", "", row.split(" & ")[0] if name.count("&") == 0 else row)
    assert not re.search(r"[%#_~^<>|{}\\]", bare.removesuffix(r" \\").replace(r"$\pm$", ""))
    assert len(re.findall(r"(?<!\\)&", row)) == 1  # one column, whatever the name


@pytest.mark.parametrize("name", HOSTILE)
def test_names_come_back_from_csv(name):
    arm = MIXED.model_copy(update={"name": name})
    part = part_of({("baseline", 5): GOOD, (name, 5): GOOD}, (PLAIN, arm))
    assert [row["arm"] for row in rows(sweep(part))] == ["baseline", name]


def test_csv_has_every_cell_once_with_shares_and_the_difference_to_the_baseline():
    better = tuple(v + 0.01 * i for i, v in enumerate(GOOD))
    part = part_of({("baseline", 5): GOOD, (MIXED.name, 5): better, ("baseline", 10): GOOD[:2]})
    table = {(row["arm"], row["N"]): row for row in rows(sweep(part))}
    assert len(table) == 4
    row, pair = table[MIXED.name, "5"], next(p for p in part.pairs if p.shots == 5)
    assert float(row["mean"]) == pytest.approx(sum(better) / 5)
    assert (row["baseline"], float(row["difference"])) == ("baseline", pytest.approx(0.02))
    assert (float(row["difference_low"]), float(row["p_holm"])) == (pair.interval_low, pair.p_holm)
    assert table["baseline", "5"]["difference"] == ""
    empty = table[MIXED.name, "10"]
    assert (empty["n"], empty["mean"], empty["note"]) == ("0", "", "5 not begun")


def test_csv_differences_point_from_the_baseline_also_where_it_mixes():
    mixing_baseline = MIXED.model_copy(update={"name": "baseline"})
    plain = PLAIN.model_copy(update={"name": "plain"})
    values = {("baseline", 5): tuple(v + 0.01 * i for i, v in enumerate(GOOD)), ("plain", 5): GOOD}
    part = part_of(values, (mixing_baseline, plain))
    (pair,) = part.pairs
    row = next(row for row in rows(sweep(part)) if row["arm"] == "plain")
    assert pair.arm == "baseline" and pair.interval_high is not None
    assert float(row["difference"]) == -pair.mean_difference == pytest.approx(-0.02)
    assert float(row["difference_low"]) == -pair.interval_high


def test_answers_stand_above_the_tables_of_each_data_set():
    first = part_of({("baseline", 5): GOOD, (MIXED.name, 5): GOOD})
    second = first.model_copy(update={"name": "photos"})
    text = markdown(sweep(first, second))
    assert text.index("## steel") < text.index("Nothing yet says") < text.index("| method") < text.index("## photos")
