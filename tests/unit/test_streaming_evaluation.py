"""Images that are streamed for an evaluation give what images held in memory give."""

from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch

from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.data import held_out, streaming
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.held_out import HeldOut, Streamed, load_held_out
from hydramix_dist.models.classifiers import build_classifier
from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
from hydramix_dist.training.scoring import predict_together


@pytest.fixture(scope="module")
def classifier_weights() -> dict[str, Any]:
    torch.manual_seed(0)
    return build_classifier(tiny.classifier_settings(), 10).state_dict()


def probabilities(url: str, rows: list[int], streamed: bool, weights: dict[str, Any], group: Any) -> torch.Tensor:
    """Return a classifier's answers on test images, held in memory or streamed."""
    data = Dataset.open(url)
    images = Streamed(data, "test", tuple(rows), 16) if streamed else data.images("test", rows, 16)
    network = build_classifier(tiny.classifier_settings(), 10)
    network.load_state_dict(weights)
    return predict_together(network, HeldOut(images, torch.from_numpy(data.labels("test")[rows])), group)


def on_a_rank(url: str, chosen: list[list[int]], weights: dict[str, Any]) -> list[list[torch.Tensor]]:
    group = DeepSpeedGroup(read_deepspeed("zero1"), torch.device("cpu"))
    return [[probabilities(url, rows, streamed, weights, group) for streamed in (False, True)] for rows in chosen]


ROWS = [row for row in range(600) if row % 7]  # 514, so that neither batches nor ranks come out even


def test_streamed_images_come_in_the_same_batches_as_held_ones(
    large_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_BLOCK_ROWS", 77)
    monkeypatch.setattr(streaming, "_DENSE", 9.0)
    monkeypatch.setattr(streaming, "_READ_BYTES", 0)
    data = Dataset.open(str(large_set))
    in_memory = load_held_out(data, "test", ROWS, 24)
    monkeypatch.setattr(held_out, "_HELD_BYTES", 0)
    streamed = load_held_out(data, "test", ROWS, 24)
    assert isinstance(in_memory.images, torch.Tensor) and isinstance(streamed.images, Streamed)
    assert torch.equal(in_memory.labels_N, streamed.labels_N)
    for positions in (range(514), range(250), range(0), [3], [1, 5, 5, 5, 400], range(200, 514)):
        chosen = torch.tensor(list(positions), dtype=torch.int64)
        held, read = list(in_memory.batches(chosen)), list(streamed.batches(chosen))
        if len(chosen):
            assert [len(batch) for batch in held] == [len(batch) for batch in read]
            for mine, theirs in zip(held, read, strict=True):
                assert torch.equal(mine, theirs) and mine.stride() == theirs.stride()
        else:
            assert sum(map(len, held)) == sum(map(len, read)) == 0


def test_streamed_predictions_are_those_of_images_in_memory_on_one_rank_and_on_two(
    large_set: Path, classifier_weights: dict[str, Any]
) -> None:
    alone = [
        probabilities(str(large_set), ROWS, streamed, classifier_weights, tiny.ALONE) for streamed in (False, True)
    ]
    assert alone[0].shape == (514, 10) and torch.equal(*alone)
    answers = ranks.run(2, on_a_rank, str(large_set), [ROWS, ROWS[:3]], classifier_weights)
    for (held, streamed), (few_held, few_streamed) in answers:
        assert torch.equal(held, streamed) and torch.equal(few_held, few_streamed)
        torch.testing.assert_close(held, alone[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(few_held, alone[0][:3], rtol=1e-5, atol=1e-6)
