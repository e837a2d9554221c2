import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from results_factory import CLASSES, pilot, run

from hydramix_dist.errors import UserError
from hydramix_dist.evaluation.metrics import confusion_matrix, score
from hydramix_dist.evaluation.results import PilotResults, RunResult, load_results, save_results
from hydramix_dist.store import Store

RESULTS = pilot({"baseline": (0.5, 0.6, 0.55), "hydramix": (0.6, 0.66, 0.58)})


def write(store: Store, **changes: object) -> None:
    tree = json.loads(RESULTS.model_dump_json()) | changes
    store.put("results.json", json.dumps(tree).encode())


def test_results_come_back_as_they_were_saved(tmp_path):
    store = Store(tmp_path)
    save_results(store, RESULTS)
    assert load_results(store) == RESULTS


def test_file_is_plain_json_with_the_schema_version(tmp_path):
    save_results(Store(tmp_path), RESULTS)
    tree = json.loads((tmp_path / "results.json").read_text())
    assert tree["schema_version"] == 1
    assert tree["pairs"][0]["p_holm"] == RESULTS.pairs[0].p_holm
    assert tree["settings"]["classifier"]["batch"] == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, ["newer", "schema 2", "results.json"]),
        ({"surprise": 1}, ["surprise", "results.json"]),
        ({"runs": [{"arm": "baseline"}]}, ["runs.0", "results.json"]),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_words(tmp_path, changes, words):
    store = Store(tmp_path)
    write(store, **changes)
    with pytest.raises(UserError) as error:
        load_results(store)
    assert all(word in str(error.value) for word in words)


def test_absent_and_broken_files_are_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_results(Store(tmp_path))
    (tmp_path / "results.json").write_text('{"schema_version": 1, "na')
    with pytest.raises(UserError, match="not valid JSON"):
        load_results(Store(tmp_path))


@pytest.mark.parametrize("bad", [{"accuracy": 1.2}, {"accuracy": float("nan")}, {"seconds": -1.0}, {"new": 0}])
def test_impossible_values_never_enter_the_results(bad):
    with pytest.raises(ValidationError):
        RunResult.model_validate(run("baseline", 0, 0.5).model_dump() | bad)


def test_missing_runs_are_named_in_the_pilots_order():
    partial = pilot({"baseline": (0.5, 0.6), "hydramix": (0.6,)}, shots=(5, 10), seeds=3)
    assert partial.missing == (
        ("hydramix", 5, 1),
        ("baseline", 5, 2),
        ("hydramix", 5, 2),
        ("hydramix", 10, 1),
        ("baseline", 10, 2),
        ("hydramix", 10, 2),
    )
    assert RESULTS.missing == ()


def test_every_field_of_the_schema_that_is_not_plain_is_described():
    schema = PilotResults.model_json_schema()
    assert schema["$defs"]["RunResult"]["properties"]["confusion"]["description"]
    assert schema["$defs"]["PairResult"]["properties"]["interval_low"]["description"]


labelled = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60)


@given(labelled)
def test_scores_agree_with_counting_one_by_one(pairs):
    labels, predictions = (torch.tensor(column) for column in zip(*pairs, strict=True))
    scores = score(predictions, labels, CLASSES)
    assert scores.accuracy == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    for c, name in enumerate(CLASSES):
        hits = [a == b for a, b in pairs if a == c]
        assert scores.per_class[name] == (pytest.approx(sum(hits) / len(hits)) if hits else None)
        for d in range(len(CLASSES)):
            assert scores.confusion[c][d] == pairs.count((c, d))
    present = [share for share in scores.per_class.values() if share is not None]
    assert scores.balanced_accuracy == pytest.approx(sum(present) / len(present))


def test_balanced_accuracy_does_not_follow_the_largest_class():
    labels = torch.tensor([0] * 9 + [1])
    scores = score(torch.zeros(10, dtype=torch.int64), labels, ("a", "b"))
    assert (scores.accuracy, scores.balanced_accuracy) == (0.9, 0.5)


def test_logits_are_judged_by_their_largest():
    logits = torch.tensor([[0.1, 2.0], [3.0, -1.0], [0.0, 0.5]])
    assert score(logits, torch.tensor([1, 0, 0]), ("a", "b")).confusion == ((1, 1), (0, 1))


@pytest.mark.parametrize(
    ("output", "labels"),
    [
        (torch.tensor([[float("nan"), 0.0]]), torch.tensor([0])),
        (torch.tensor([2]), torch.tensor([0])),
        (torch.tensor([0, 1]), torch.tensor([0])),
        (torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64)),
    ],
)
def test_what_cannot_be_scored_is_refused(output, labels):
    with pytest.raises(ValueError):
        score(output, labels, ("a", "b"))


def test_confusion_rows_are_the_true_classes():
    counts_LL = confusion_matrix(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]), 2)
    assert counts_LL.tolist() == [[1, 2], [0, 0]]
