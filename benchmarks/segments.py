"""How many segments an image has, and what segmenting costs, at the generator's two usual sides.

Run: `python benchmarks/segments.py [SOURCE]`; SOURCE is anything `hydramix data import` reads, without it the built-in
patches. One core, training images only, at most 1,000.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data.builtin import build_photo_patches
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.segmentation import segment

MOST = 1000


def main() -> None:
    """Print a table and a JSON line for each side."""
    with tempfile.TemporaryDirectory() as folder:
        source = sys.argv[1] if len(sys.argv) > 1 else f"{folder}/photo-patches"
        if len(sys.argv) == 1:
            build_photo_patches(Path(source))
        import_dataset(source, f"{folder}/set", segments=None)
        dataset = Dataset.open(f"{folder}/set")
        count = len(dataset.ids("train"))
        rows = range(0, count, -(-count // MOST))
        images = list(dataset.images("train", rows, dataset.side).permute(0, 2, 3, 1).numpy())
    for side in (32, 64):
        began = time.perf_counter()
        segments = [int(segment(pixels, side, SegmentSettings()).max()) + 1 for pixels in images]
        milliseconds = 1000 * (time.perf_counter() - began) / len(images)
        low, high = np.percentile(segments, (5, 95))
        mean = float(np.mean(segments))
        print(f"side {side}: {mean:.1f} segments (5-95 %: {low:.0f} to {high:.0f}), {milliseconds:.2f} ms an image")
        print(json.dumps({"benchmark": "segments", "side": side, "images": len(images), "mean": round(mean, 2)}))


if __name__ == "__main__":
    main()
