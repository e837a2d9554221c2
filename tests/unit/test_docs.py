"""What the pages point at is there, and the figures they take from the settings are the settings'."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hydramix_dist.config.axes import expanded
from hydramix_dist.config.load import build, configs_root, read_yaml
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.orchestration.sweep.design import cells_of, groups_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PRESETS = ("smoke", "quick", "standard", "paper")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the names by which a page's headings are linked to on the web."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    return (link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_words_are_there(page: Path) -> None:
    folders = [ROOT, ROOT / "hydramix_dist", ROOT / "tests", *(ROOT / "tests").iterdir()]
    for name in re.findall(r"`((?:[\w]+/)*(?:test_\w+|[\w]+/\w+)\.(?:py|yaml))`", prose(page)):
        assert any((folder / name).exists() for folder in folders), f"{page.name} names {name}"


def test_the_table_of_presets_is_the_presets() -> None:
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:-1]]
        for line in (ROOT / "docs" / "pilot.md").read_text(encoding="utf-8").splitlines()
        if len(cells := line.removeprefix("|").split("|")) == len(PRESETS) + 2
    }
    for column, name in enumerate(PRESETS):
        preset = build(PilotSettings, read_yaml(configs_root() / "pilot" / f"{name}.yaml"), name)
        generator, classifier = preset.generators["hydramix"], preset.classifier
        runs = len(preset.shots) * len(preset.seeds)
        drops = " / ".join(f"{milestone:.0%}" for milestone in generator.milestones)
        augmented = ", augmented" if generator.discriminator.augment else ""
        assert {title: cells[column] for title, cells in rows.items() if title.strip("-")} == {
            "N": ", ".join(map(str, preset.shots)),
            "seeds": str(len(preset.seeds)),
            "trainings: generators + classifiers": f"{runs * len(preset.generators)} + {runs * len(preset.arms)}",
            "generator: side, width": f"{generator.network.side} px, {generator.network.width}",
            "generator: mixes seen, steps": length(generator.images, generator.batch),
            "generator of `hydramix`: mixes that share sources": str(generator.group or "none"),
            "generator: rate, drops at": f"{generator.optimizer.lr:g}, {drops}",
            "discriminator of `hydramix`": generator.discriminator.score + augmented,
            "segments of `hydramix`: scale, least size": f"{generator.segments.scale:g}, {generator.segments.min_size}",
            "classifier, side": f"{classifier.network}, {classifier.side} px",
            "classifier: images seen, steps": length(classifier.images, classifier.batch),
            "classifier of `hydramix`: mixes until": f"{preset.classifier_of('hydramix').mix_until:.0%}",
            "classifier: rate, weight decay, dropout": (
                f"{classifier.optimizer.lr:g}, {classifier.optimizer.weight_decay:g}, {classifier.dropout:g}"
            ),
            "test images at most": f"{preset.test_limit:,}" if preset.test_limit else "all",
        }


def length(images: int, batch: int) -> str:
    return f"{images:,}, {-(-images // batch):,}"


def test_the_table_of_ready_sweeps_counts_their_trainings() -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w-]+)` \| .* \| (\d+: [^|]*) \|$", page, flags=re.MULTILINE))
    files = (configs_root() / "sweep").glob("*.yaml")
    assert told == {path.stem: trainings(build(SweepSettings, read_yaml(path), path.name)) for path in files}


def trainings(settings: SweepSettings) -> str:
    """Return how many trainings a sweep of one data set has, by kind, each generator of an arm and subset once."""
    whole = expanded(settings, "a sweep")
    cells, groups = cells_of(settings, whole, ["data"]), groups_of(settings, whole, ["data"])
    # A search's generators see less of the subset than those of the comparison.
    uses = [(cell.arm, cell.shots, cell.seed, "whole") for cell in cells]
    seeds = settings.search.seeds if settings.search else ()
    uses += [(group.arm, group.shots, seed, "part") for group in groups for seed in seeds]
    counts = {
        "generators": len({(whole.arms[arm].generator, *rest) for arm, *rest in uses if whole.arms[arm].generator}),
        "candidates": len(groups) * len(seeds) * (settings.search.trials if settings.search else 0),
        "classifiers": len(cells),
    }
    return f"{sum(counts.values())}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def test_the_first_sweep_has_the_arms_that_the_page_names() -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:yaml)?\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    text = next(block for block in blocks if block.startswith("data: photos"))
    names = next(block for block in blocks if block.startswith("baseline, trivialaugment, "))
    tree = yaml.safe_load(text)
    settings = build(SweepSettings, tree | {"data": [tree["data"]]}, "first.yaml")
    assert list(expanded(settings, "first.yaml").arms) == re.split(r",\s+", names.strip())
    assert trainings(settings) == "100: 20 generators, 80 classifiers"
    assert "80 classifiers and 20 generators" in page
