"""Turning knobs: no row is judged by a run that saw it, the same folds for every setting, the comparison by hand, bad input."""
import json
from types import SimpleNamespace

import numpy as np
import pytest

from tutorial_clf.compare import holm
from tutorial_clf.data import DataError
from tutorial_clf.evaluate import paired_test
from tutorial_clf.knobs import against, conclude, cross_validate, deal, known_rows, plot_knobs, say_knobs, show_knobs, turn
from tutorial_clf.ladder import difference_interval
from tutorial_clf.profile import ProfileError

KEYS = {"name", "settings", "n", "accuracy", "loss", "right", "seconds", "trained"}


def by_heart(part, seed):
    "A way that is sure of every text it has learned from or stopped by, and knows nothing of others."
    seen = {text: label for rows in (part.train, part.validation) for text, label in zip(rows["text"], rows["label"])}
    classes = len(part.label_names)
    def predict_proba(texts):
        return np.array([np.eye(classes)[seen[text]] if text in seen else np.full(classes, 1 / classes) for text in texts])
    return SimpleNamespace(predict_proba=predict_proba)


def by_word(part, seed):
    "A way that knows the toy task's words."
    words = ["bad", "good", "book"]
    return SimpleNamespace(predict_proba=lambda texts: np.array([[float(w in t.split()) for w in words] for t in texts]))


def as_row(name, right, seconds=10.0):
    return dict(name=name, settings={}, n=len(right), accuracy=right.count("1") / len(right), loss=0.5, right=right, seconds=seconds, trained=None)


def compared(**rights): return against([as_row(name, right) for name, right in rights.items()], paired_test, difference_interval, holm)


# ---- folds

@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_row_is_held_out_once_and_seen_nowhere_in_that_run(toy_task, folds):
    task = toy_task(train=60, validation=15, noise=True)
    dealt, rows = deal(task, folds), known_rows(task)
    assert sorted(np.concatenate([fold.rows for fold in dealt]).tolist()) == list(range(75))
    for fold in dealt:
        assert fold.texts == [rows["text"][i] for i in fold.rows.tolist()]
        inside = sorted([*fold.part.train["text"], *fold.part.validation["text"], *fold.texts])
        assert inside == sorted(rows["text"][:]), "each row stands in one place"
        assert len(fold.part.test) == 0 and len(fold.part.validation) >= 3
        assert fold.part.card["counts"]["train"] == np.bincount(fold.part.train["label"][:], minlength=3).tolist()


def test_folds_have_the_labels_in_equal_shares_and_follow_the_seed(toy_task):
    task = toy_task(train=60, validation=30)
    labels = np.array(known_rows(task)["label"][:])
    for fold in deal(task, 3): assert np.bincount(labels[fold.rows]).tolist() == [10, 10, 10]
    same, other = deal(task, 3, seed=42), deal(task, 3, seed=7)
    assert [fold.rows.tolist() for fold in deal(task, 3)] == [fold.rows.tolist() for fold in same]
    assert [fold.rows.tolist() for fold in same] != [fold.rows.tolist() for fold in other]


def test_a_group_is_never_cut(toy_task):
    task = toy_task(train=60, validation=30)
    name_of = {i: f"file {i // 4}" for i in range(90)}
    for fold in deal(task, 3, groups=lambda rows: [name_of[i] for i in range(len(rows))]):
        texts = known_rows(task)["text"][:]
        groups = {where: {name_of[i] for i in numbers} for where, numbers in dict(
            held=fold.rows.tolist(), train=[texts.index(t) for t in fold.part.train["text"]], watched=[texts.index(t) for t in fold.part.validation["text"]]).items()}
        assert not groups["held"] & groups["train"] and not groups["held"] & groups["watched"] and not groups["train"] & groups["watched"]


def test_the_test_split_has_no_part_in_it(toy_task):
    task = toy_task(train=30, validation=15, test=12)
    hidden = set(task.test["text"]) - set(known_rows(task)["text"])
    for fold in deal(task, 3): assert not hidden & {*fold.texts, *fold.part.train["text"], *fold.part.validation["text"]}


@pytest.mark.parametrize("settings, said", [
    (dict(folds=1), "folds = 1"), (dict(folds=40), "nothing to hold out"), (dict(groups=lambda rows: ["one"] * len(rows)), "smaller groups"),
    (dict(groups=lambda rows: [1, 2]), "2 groups for 36 rows")])
def test_what_cannot_be_dealt_is_refused_in_one_sentence(toy_task, settings, said):
    with pytest.raises(DataError, match=said) as error: deal(toy_task(), **settings)
    assert "toy" in str(error.value) and len(str(error.value).splitlines()) == 1


# ---- one setting

def test_no_row_is_answered_by_a_run_that_knows_its_label(toy_task):
    task = toy_task(train=60, validation=30, noise=True)
    texts = known_rows(task)["text"][:]
    once = np.array([texts.count(text) == 1 for text in texts])
    found = cross_validate(task, by_heart, "smoke")
    assert once.sum() > 50 and np.allclose(found["probabilities"][once], 1 / 3), "what learns by heart knows nothing of a held-out row"


def test_answers_come_back_in_the_order_of_the_rows(toy_task):
    task = toy_task(train=60, validation=30)
    found = cross_validate(task, by_word, "smoke")
    assert found["labels"].tolist() == known_rows(task)["label"][:] and (found["probabilities"].argmax(axis=1) == found["labels"]).all()
    assert sorted(set(found["fold"].tolist())) == [0, 1, 2] and found["trained"] is None and found["seconds"] >= 0


def test_each_fold_has_its_seed_and_a_seed_of_the_way_leaves_the_folds_alone(toy_task, monkeypatch):
    calls = []
    def fine_tune(part, profile=None, **settings):
        calls.append((settings, sorted(part.train["text"])))
        return by_word(part, 0)
    monkeypatch.setattr("tutorial_clf.finetune.fine_tune", fine_tune)
    task, kept = toy_task(train=60, validation=30), {"epochs": 2}
    for way in (kept, {"epochs": 2, "seed": 100}): cross_validate(task, way, "smoke", seed=42)
    assert [settings for settings, _ in calls] == [{"epochs": 2, "seed": seed} for seed in (42, 43, 44, 100, 101, 102)]
    assert [texts for _, texts in calls[:3]] == [texts for _, texts in calls[3:]] and kept == {"epochs": 2}
    seeds = []
    cross_validate(task, lambda part, seed: seeds.append(seed) or by_word(part, seed), "smoke", seed=7)
    assert seeds == [7, 8, 9]


def test_answers_of_another_shape_are_refused(toy_task):
    with pytest.raises(DataError, match=r"shape \(12, 2\)"):
        cross_validate(toy_task(), lambda part, seed: SimpleNamespace(predict_proba=lambda texts: np.zeros((len(texts), 2))), "smoke")


def test_a_network_is_tuned_and_its_trained_weights_are_counted(toy_task, checkpoint):
    task, small = toy_task(train=24, validation=12), {"model": str(checkpoint("bert")), "batch_size": 8}
    rows = turn(task, {"as it is": small, "frozen": small | {"freeze": "embeddings"}, "low rank": small | {"lora_rank": 2}}, "smoke", folds=2)
    assert all(set(row) == KEYS for row in rows) and json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[0]["trained"] > rows[1]["trained"] > rows[2]["trained"] > 0
    assert all(row["n"] == 36 and set(row["right"]) <= {"0", "1"} and row["seconds"] > 0 for row in rows)
    again = turn(task, {"a": small, "b": small}, "smoke", folds=2)
    assert again[0]["right"] == again[1]["right"] == rows[0]["right"] and again[0]["loss"] == rows[0]["loss"], "the same setting gives the same answers"
    with pytest.raises(ProfileError): cross_validate(task, {"epoch": 3}, "smoke")


def test_turn_scores_what_cross_validate_answers(toy_task):
    task = toy_task(train=60, validation=30)
    rows = turn(task, {"words": by_word, "nothing": by_heart}, "smoke")
    assert rows[0]["accuracy"] == 1 and rows[0]["right"] == "1" * 90 and rows[0]["loss"] == pytest.approx(0, abs=1e-12) and rows[0]["settings"] == "by_word"
    assert rows[1]["accuracy"] == rows[1]["right"].count("1") / 90
    with pytest.raises(DataError, match="a start"): turn(task, {"words": by_word}, "smoke")


# ---- against the start

def test_the_comparison_by_hand():
    rows = compared(start="1" * 10 + "0" * 10, A="1" * 16 + "0" * 4, B="0" * 4 + "1" * 12 + "0" * 4, C="0" * 20)
    a, b, c = (row["against_start"] for row in rows[1:])
    assert rows[0]["against_start"] is None
    assert (a["difference"], a["only_this"], a["only_start"], b["only_this"], b["only_start"]) == (0.3, 6, 0, 6, 4)
    assert a["p"] == pytest.approx(2 * 0.5**6 - 0.5**6) and c["p"] == pytest.approx(0.5**10)
    assert [a["p_holm"], c["p_holm"]] == pytest.approx([2 * a["p"], 3 * c["p"]]) and b["p_holm"] == b["p"]
    assert [x["verdict"] for x in (a, b, c)] == ["better", "not told apart", "worse"]
    assert a["interval"] == list(difference_interval(6, 0, 20)) and a["interval"][0] <= a["difference"] <= a["interval"][1]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_other_luck_is_rarely_told_apart():
    "Settings that are the start with other luck: in 200 tables of five, Holm's correction lets a false alarm through in one of twenty, about."
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        hard = rng.random(300)
        draws = {f"s{k}": "".join("01"[int(x)] for x in rng.random(300) < hard) for k in range(6)}
        alarms += any(row["against_start"]["verdict"] != "not told apart" for row in compared(**draws)[1:])
    assert alarms <= 22


def test_rows_that_do_not_belong_together_are_refused():
    for rows in ([as_row("a", "110")], [as_row("a", "110"), as_row("b", "1101")]):
        with pytest.raises(DataError, match="turn"): against(rows, paired_test, difference_interval, holm)


# ---- shown

@pytest.fixture
def table():
    rights = {"start": "1" * 60 + "0" * 40, "more of it": "1" * 80 + "0" * 20, "less of it": "1" * 30 + "0" * 70, "a setting with a name of some length": "0" + "1" * 60 + "0" * 39}
    seconds = dict(zip(rights, (100.0, 150.0, 10.0, 50.0)))
    return against([as_row(name, right, seconds[name]) for name, right in rights.items()], paired_test, difference_interval, holm)


def test_conclusions_follow_the_verdicts(table):
    assert conclude(table) == {"better": ["more of it"], "worse": ["less of it"], "open": ["a setting with a name of some length"],
                               "cheaper": ["a setting with a name of some length"]}
    said = say_knobs(table)
    assert "shown better: more of it (+0.200)" in said and "not told apart by 100 rows: a setting" in said and "shown worse: less of it (-0.300)" in said
    assert say_knobs(table[:1] + table[3:]).count("none") == 2


def test_the_table_fits_a_page_with_and_without_comparison(table):
    text = show_knobs(table)
    assert max(map(len, text.splitlines())) <= 92 and "0.50" in text and "<0.001" in text and text.count("\n") == 11
    plain = show_knobs([as_row("a", "10"), as_row("b", "11") | {"trained": 1_500_000}])
    assert "verdict" not in plain and "1.50" in plain


def test_the_plot_shows_every_setting_and_tells_filled_from_open(table):
    import matplotlib
    matplotlib.use("agg")
    ax = plot_knobs(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == [row["name"] for row in table[1:]]
    marks = [line for line in ax.lines if line.get_marker() in ("^", "v", "o")]
    assert [mark.get_marker() for mark in marks] == ["^", "v", "o"] and [mark.get_markerfacecolor() == "white" for mark in marks] == [False, False, True]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first setting is on top"


def test_the_module_costs_no_torch(run_python):
    assert run_python("import sys, tutorial_clf.knobs; print('torch' in sys.modules)").strip() == "False"
