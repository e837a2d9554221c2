"""The look at mixes compares what it says it compares, and leaves the run as it was."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from fixtures import FinishedPilot
from PIL import Image

from hydramix_dist.data.shots import ShotSet
from hydramix_dist.errors import UserError
from hydramix_dist.mixing.compose import Composer, Composition
from hydramix_dist.models.trained import TrainedGenerator

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from mix_figures import Seen, distances, mask_figures, nearest_figures, reconstruction_row, render
from mixes import main


def composed(count: int, **mix: object) -> tuple[ShotSet, TrainedGenerator, Composition]:
    """Return a shot set, a generator, and eight compositions anchored at its images in turn."""
    shots = tiny.shot_set((4, 3))
    generator = tiny.trained_generator(tiny.generator_settings(mix={"count": count} | mix))
    composer = Composer(shots, generator.settings.mix, generator.network.feature_side, 3, "test")
    return shots, generator, composer.compose(torch.arange(8) % 7, np.arange(8), 0)


def test_distance_is_that_to_an_image_or_its_mirror() -> None:
    a_HW = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    away = distances(a_HW[None], torch.stack((a_HW + 10, a_HW.flip(-1))))
    assert away.tolist() == [[pytest.approx(10.0), pytest.approx(0.0, abs=1e-5)]]


@torch.no_grad()
def test_mix_of_one_image_is_its_reconstruction_and_the_pixel_mix_the_image() -> None:
    shots, generator, made = composed(1)
    seen = render(made, shots, generator.network)
    torch.testing.assert_close(seen.mixed, seen.reconstructed)
    assert torch.equal(seen.pasted, seen.real)
    assert seen.labels_B.tolist() == [shots.labels_N[i % 7] for i in range(8)]
    figures = reconstruction_row(seen, seen)
    assert figures["colour rec."] == figures["colour mix"] != 0


@torch.no_grad()
def test_pixel_mix_takes_each_cell_from_the_source_that_the_mask_names() -> None:
    shots, generator, made = composed(3)
    seen = render(made, shots, generator.network)
    cell = tiny.SIDE // made.mask_BKhw.shape[-1]
    for i in range(8):
        source_HW = made.mask_BKhw[i].argmax(0).repeat_interleave(cell, 0).repeat_interleave(cell, 1)
        pixels_KCHW = made.images_NCHW[made.sources_BK[i]]
        wanted_CHW = pixels_KCHW.gather(0, source_HW.expand(1, 3, -1, -1))[0]
        torch.testing.assert_close((seen.pasted[i] + 1) * 127.5, wanted_CHW.float(), atol=1e-3, rtol=0)


def test_mask_of_two_halves() -> None:
    shots, generator, made = composed(3)
    halves_BKhw = torch.zeros(8, 3, 4, 4)
    halves_BKhw[:, 0, :, :2] = 1
    halves_BKhw[:, 2, :, 2:] = 1
    figures = mask_figures(replace(made, mask_BKhw=halves_BKhw), shots, generator.settings.mix)
    assert figures["share of the largest source"].tolist() == [0.5] * 8
    assert figures["sources in the mask"].tolist() == [2.0] * 8
    # One of three borders between columns, none of three between rows.
    torch.testing.assert_close(figures["neighbouring cells of two sources"], torch.full((8,), 1 / 6))
    assert figures["segments of the layout view"].min() >= 2


def test_next_of_the_class_is_neither_the_image_itself_nor_of_another_class() -> None:
    shots, generator, made = composed(2)
    images_NCHW = shots.images_NCHW.clone()
    rows_0, rows_1 = ((shots.labels_N == c).nonzero().flatten() for c in (0, 1))
    images_NCHW[rows_0[1]] = images_NCHW[rows_0[0]].flip(-1)  # two of class 0 alike
    images_NCHW[rows_1[0]] = images_NCHW[rows_0[0]]  # and one of class 1
    twins = replace(shots, images_NCHW=images_NCHW)
    with torch.no_grad():
        seen: Seen = render(made, twins, generator.network)
    apart_N = nearest_figures(made, seen, twins, twins)["training images, to the next of their class"]
    assert apart_N[rows_0[:2]].tolist() == pytest.approx([0, 0], abs=1e-5)
    assert apart_N[rows_1].min() > 5


def test_run_is_looked_at_and_left_alone(
    finished_pilot: FinishedPilot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished_pilot.run.rglob("*")}

    before, sheet = files(), tmp_path / "sheet.png"
    main([str(finished_pilot.run), "--count", "6", "--limit", "9", "--sheet", str(sheet)])
    assert files() == before
    found = json.loads(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{")))
    kept = list(finished_pilot.run.glob("generators/*/checkpoints/*/manifest.json"))
    assert {row["images seen"] for row in found["reconstruction"]} == {int(path.parent.name) for path in kept}
    arms = json.loads((finished_pilot.run / "run.json").read_text())["identity"]["settings"]["arms"]
    assert found["classifiers"].keys() == arms.keys()
    with Image.open(sheet) as image:
        assert image.width > image.height / 6 * (3 + 2 + len(found["reconstruction"]))
    with pytest.raises(UserError, match="--seed 77: the run has the seeds"):
        main([str(finished_pilot.run), "--seed", "77"])
