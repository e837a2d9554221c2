"""The command `hydramix predict`."""

import csv
import io
import json
import sys
from dataclasses import asdict

from hydramix_dist.cli.console import print_json
from hydramix_dist.orchestration.predict import choose_classifier, classify, find_images
from hydramix_dist.store import Store, split_target


def predict_command(run: str, images: str, arm: str | None, out: str | None, json_: bool) -> int:
    """Write a CSV line for each image; return 0, or 1 where an image could not be read."""
    target = None if out is None else split_target(out)
    classifier = choose_classifier(Store(run), arm)
    predictions = classify(classifier, find_images(images))
    text = _csv([asdict(p) for p in predictions])
    if target is not None:
        target[0].put(target[1], text.encode())
    if json_:
        print_json(json.dumps({"classifier": classifier.url, "predictions": [asdict(p) for p in predictions]}))
    elif out is None:
        sys.stdout.write(text)
    unread = [p for p in predictions if p.error is not None]
    for prediction in unread:
        print(f"not read: {prediction.image}: {prediction.error}", file=sys.stderr)
    where = "" if out is None else f" to {out}"
    print(f"{len(predictions) - len(unread)} images classified{where} by {classifier.url}", file=sys.stderr)
    return 1 if unread else 0


def _csv(rows: list[dict[str, object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("image", "class", "probability"))
    for row in rows:
        if row["error"] is None:
            writer.writerow((row["image"], row["label"], f"{row['probability']:.4f}"))
    return buffer.getvalue()
