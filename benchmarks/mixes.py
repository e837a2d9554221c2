"""What mixes are like: how sharp, how far from their sources, what D and the classifiers make of them.

    python benchmarks/mixes.py [RUN] [--arm NAME] [--seed 0] [--classifiers NAME ...] [--sheet PNG]

RUN is the folder of a finished pilot, which is only read; with runtime.keep above 1 its generator is looked at step by
step. Without RUN a short pilot on the built-in images is run first, in a temporary folder (about a minute and a half).
Looked at is the generator of one arm and subset, with the masks of that arm, in 32 bits; held-out images are the
validation part where the run has one (settings are chosen by it), else test images.

Five tables and a JSON line:
- reconstruction by images seen: mean square error (pixels in [-1, 1]) and Laplacian L1 of training and of held-out
  images; the detail (Laplacian L1 against nothing) of reconstructions and mixes of training images as a share of that
  of the real ones, false detail counted too; and the colour error (means of 8 x 8 areas, 0..255) of reconstructions,
  and of mixes against the same mix of pixels;
- discriminator by images seen: mean score, as it sees images in training, of real training and held-out images,
  of reconstructions and of mixes; shares of the patches that it is sure of (real above 0.9, mixed below 0.1), and how
  often a real training patch scores above a mixed one (0.5: it cannot tell);
- masks: mean and 5 to 95 %;
- nearest: root mean square difference (pixels 0..255) to the nearest training image, mirrored or not, not shifted;
- classifiers: accuracy on views of held-out images, on their reconstructions, on mixes of their pixels under the same
  masks, on their mixes; and the same of training images. Real images named right and their reconstructions not: the
  generator leaves the distribution. Reconstructions named right and mixes not: mixing does.

The sheet shows six mixes, one a row: sources, mask, mix of pixels, the mix at each checkpoint, and the last
checkpoint's reconstruction of the first source, which tells blur of the generator from blur of the mixing.

Legend: B batch, K images in a mix, N images, C channels, H W pixels, h w feature cells.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from common import record, show
from mix_figures import (
    Row,
    Seen,
    classifier_row,
    discriminator_row,
    mask_figures,
    nearest_figures,
    reconstruction_row,
    render,
    spread,
)
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hydramix_dist.cli.console import LiveDisplay, error_console
from hydramix_dist.config.load import build, configs_root, override, read_yaml
from hydramix_dist.config.schema import GeneratorSettings, MixSettings, PilotSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.segmentation import segment
from hydramix_dist.data.shots import ShotSet, load_shots
from hydramix_dist.errors import UserError
from hydramix_dist.mixing.compose import Composer, Composition
from hydramix_dist.models.discriminator import Discriminator
from hydramix_dist.models.generator import Generator
from hydramix_dist.models.pixels import to_uint8
from hydramix_dist.orchestration.pilot import read_stored, run_pilot
from hydramix_dist.orchestration.plan import choose_test_rows, make_plan
from hydramix_dist.report.sheets import Tile, source_colour, source_picture
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_run, read_status

ROWS = 6  # mixes on the sheet
SHORT = (  # what the pilot without RUN changes of the preset `quick`
    "seeds=[0]",
    "classifier.images=8000",
    "runtime.checkpoints=6",
    "runtime.keep=6",
    "arms={trivialaugment: {augmentation: trivial}, "
    "hydramix+trivialaugment: {augmentation: trivial, generator: hydramix}}",
)


@dataclass(frozen=True)
class Subject:
    """What is looked at: one generator's folder and settings, how its arm mixes, and the images on both sides."""

    arm: str
    store: Store
    settings: GeneratorSettings
    mix: MixSettings
    train: ShotSet
    held_out: ShotSet
    part: str
    classifiers: dict[str, Store]


@dataclass(frozen=True)
class Networks:
    """Generator and discriminator at one checkpoint."""

    generator: Generator
    discriminator: Discriminator


# ---- what is looked at


def subject(out: Store, options: argparse.Namespace) -> Subject:
    """Return what the options name in a finished pilot. UserError where it is not there or not finished."""
    tree, _, source = read_stored(out)
    settings = build(PilotSettings, tree, out.path("run.json"))
    dataset = Dataset.open(out.path("data") if out.exists("data/manifest.json") else source or out.path("data"))
    plan = make_plan(settings, dataset, out)
    subset = next((s for s in plan.subsets if s.seed == options.seed), None)
    if subset is None:
        raise UserError(f"--seed {options.seed}: the run has the seeds {', '.join(map(str, settings.seeds))}")
    able = [name for name, arm in settings.arms.items() if arm.generator]
    arm = options.arm or next(iter(able), None)
    if arm not in able:
        raise UserError(f"--arm {arm}: arms with a generator are {', '.join(able) or 'none in this run'}")
    generator = settings.generators[str(settings.arms[arm].generator)]
    # By the key on record: one that is computed anew differs where the settings have gained a key since the run.
    key = read_run(out.child(f"classifiers/{arm}-{subset.name}"))["identity"]["generator"]
    side, segments = generator.network.side, generator.segments
    train = load_shots(dataset, subset.train, side, segments)
    if subset.validation:
        labels = dataset.labels("train")[list(subset.validation)]
        rows = [subset.validation[i] for i in choose_test_rows(labels, len(dataset.classes), options.limit)]
        held_out = load_shots(dataset, rows, side, segments)
    else:
        held_out = _test_images(dataset, options.limit, generator)
    folders = {name: out.child(f"classifiers/{name}-{subset.name}") for name in options.classifiers or settings.arms}
    finished = {name: store for name, store in folders.items() if read_status(store).get("state") == "succeeded"}
    return Subject(
        arm=arm,
        store=out.child(f"generators/{key}"),
        settings=generator,
        mix=generator.mix,
        train=train,
        held_out=held_out,
        part="validation" if subset.validation else "test",
        classifiers=finished,
    )


def _test_images(dataset: Dataset, limit: int, settings: GeneratorSettings) -> ShotSet:
    """Return test images as a shot set, segmented here: a data set stores maps of training images alone."""
    labels, side = dataset.labels("test"), settings.network.side
    rows = choose_test_rows(labels, len(dataset.classes), limit)
    stored_NHWC = dataset.images("test", rows, dataset.side).permute(0, 2, 3, 1).numpy()
    maps = [segment(pixels, side, settings.segments).astype(np.int32) for pixels in stored_NHWC]
    ids = dataset.ids("test")
    return ShotSet(
        images_NCHW=dataset.images("test", rows, side),
        labels_N=torch.from_numpy(labels[list(rows)]),
        ids=tuple(ids[row] for row in rows),
        segments_NHW=torch.from_numpy(np.stack(maps)),
        classes=dataset.classes,
    )


def checkpoints(looked: Subject) -> Iterator[tuple[int, Networks]]:
    """Yield (images seen, networks) of each checkpoint that is left, oldest first. UserError where there is none."""
    folders = [path.rpartition("/")[0] for path in looked.store.list() if path.endswith("/manifest.json")]
    if not folders:
        raise UserError(
            f"{looked.store.url} has no checkpoint: the generator of arm {looked.arm} is not trained so far"
        )
    for folder in sorted(folders):
        generator = Generator(looked.settings.network)
        discriminator = Discriminator(looked.settings.discriminator)
        for name, network in (("generator", generator), ("discriminator", discriminator)):
            network.load_state_dict(safetensors.torch.load(looked.store.read(f"{folder}/{name}.safetensors")))
            network.eval().requires_grad_(False)
        yield int(folder.rpartition("/")[2]), Networks(generator, discriminator)


def compose(shots: ShotSet, looked: Subject, count: int, stage: str) -> Composition:
    """Return `count` compositions with plain views, anchored at the images of a shot set in turn."""
    feature_side = Generator(looked.settings.network).feature_side
    composer = Composer(shots, looked.mix, feature_side, 0, stage)
    return composer.compose(torch.arange(count) % len(shots.ids), np.arange(count), 0)


# ---- the sheet


def draw_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Return a picture with a row of tiles for each mix, the first row's labels as headings; no smoothing."""
    inner, border, gap, head = 96, 3, 6, 18
    step = inner + 2 * border + gap
    sheet = Image.new("RGB", (gap + step * len(rows[0]), head + step * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, tile in enumerate(rows[0]):
        draw.text((gap + column * step, 3), tile.label, fill="black", font=font)
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            framed = Image.new("RGB", (step - gap, step - gap), tile.colour or "#d5dae1")
            pixels = Image.fromarray(tile.pixels_HWC).resize((inner, inner), Image.Resampling.NEAREST)
            framed.paste(pixels, (border, border))
            sheet.paste(framed, (gap + column * step, head + number * step))
    return sheet


def tile_rows(made: Composition, steps: Sequence[tuple[int, Seen]]) -> list[list[Tile]]:
    """Return each mix's tiles from left to right."""

    def pixels(x_CHW: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return to_uint8(x_CHW).permute(1, 2, 0).numpy()

    last = steps[-1][1]
    return [
        [
            *(
                Tile(f"source {k + 1}", image_CHW.permute(1, 2, 0).numpy(), source_colour(k))
                for k, image_CHW in enumerate(made.images_NCHW[made.sources_BK[i]])
            ),
            Tile("taken from", source_picture(made.mask_BKhw[i].numpy())),
            Tile("pixel mix", pixels(last.pasted[i])),
            *(Tile(f"mix, {images:,} seen", pixels(seen.mixed[i])) for images, seen in steps),
            Tile("rec. of source 1", pixels(last.reconstructed[i]), source_colour(0)),
        ]
        for i in range(len(made.sources_BK))
    ]


# ---- all of it


@torch.inference_mode()
def look(looked: Subject, count: int, sheet: Path | None) -> None:
    """Print the tables and the JSON line, and write the sheet where a path is given."""
    made = compose(looked.train, looked, count, "look/train")
    made_held_out = compose(looked.held_out, looked, len(looked.held_out.ids), "look/held-out")
    # Shown are mixes of as many classes as the sheet has rows for.
    first_of_class = [int((looked.train.labels_N == c).nonzero()[0]) for c in looked.train.labels_N.unique().tolist()]
    anchors = torch.tensor([first_of_class[i % len(first_of_class)] for i in range(ROWS)])
    feature_side = made.mask_BKhw.shape[-1]
    shown = Composer(looked.train, looked.mix, feature_side, 0, "probe").compose(anchors, np.arange(ROWS), 0)

    reconstruction, discriminator, steps = [], [], []
    for images, networks in checkpoints(looked):
        train = render(made, looked.train, networks.generator)
        held_out = render(made_held_out, looked.held_out, networks.generator)
        augment = looked.settings.discriminator.augment
        seen: Row = {"images seen": images}
        reconstruction.append(seen | reconstruction_row(train, held_out))
        discriminator.append(seen | discriminator_row(networks.discriminator, train, held_out, augment=augment))
        steps.append((images, render(shown, looked.train, networks.generator)))

    masks = {name: spread(values) for name, values in mask_figures(made, looked.train, looked.mix).items()}
    nearest = {
        name: spread(values) for name, values in nearest_figures(made, train, looked.train, looked.held_out).items()
    }
    classifiers = {name: classifier_row(store, train, held_out) for name, store in looked.classifiers.items()}

    shots, part = len(looked.train.ids), f"{len(looked.held_out.ids)} {looked.part} images"
    print(f"arm {looked.arm}: {shots} training images, {count} mixes of them, {part} held out")
    show("reconstruction", reconstruction)
    show("discriminator: scores", discriminator)
    show(f"masks, {feature_side} x {feature_side} cells", [{"": name} | row for name, row in masks.items()])
    show("distance to the nearest training image", [{"": name} | row for name, row in nearest.items()])
    if classifiers:
        show("classifiers: accuracy", [{"": name} | row for name, row in classifiers.items()])
    record(
        "mixes",
        arm=looked.arm,
        held_out=looked.part,
        reconstruction=reconstruction,
        discriminator=discriminator,
        masks=masks,
        nearest=nearest,
        classifiers=classifiers,
    )
    if sheet is not None:
        draw_sheet(tile_rows(shown, steps)).save(sheet, optimize=True)
        print(f"sheet: {sheet}")


def short_pilot(out: Store) -> None:
    """Run the short pilot on the built-in images, with all its generator's checkpoints kept."""
    tree = read_yaml(configs_root() / "pilot" / "quick.yaml")
    tree["arms"] = {}  # an override is laid over what is there
    settings = build(PilotSettings, override(tree, SHORT), "quick")
    with LiveDisplay(error_console()) as display:
        run_pilot(None, settings, "quick", out, display)


def main(arguments: Sequence[str] | None = None) -> None:
    """Look at the mixes of a run, or of a short one made here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="folder of a finished pilot")
    parser.add_argument("--arm", help="whose generator and masks (default: the first with a generator)")
    parser.add_argument("--seed", type=int, default=0, help="which subset (default 0)")
    parser.add_argument("--classifiers", nargs="*", help="arms (default: all that are finished)")
    parser.add_argument("--count", type=int, default=200, help="mixes of training images (default 200)")
    parser.add_argument("--limit", type=int, default=500, help="held-out images, evenly over classes (default 500)")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.run is not None:
        look(subject(Store(options.run), options), options.count, options.sheet)
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Store(folder).child("run")
        short_pilot(out)
        look(subject(out, options), options.count, options.sheet)


if __name__ == "__main__":
    main()
