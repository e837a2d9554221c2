"""What the pages point at is there, and the figures they take from the settings are the settings'."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hydramix_dist.config.load import build, configs_root, read_yaml
from hydramix_dist.config.schema import PilotSettings

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
