"""The ladder: choices that never see a test row, scores and comparisons by hand and by simulation, bad input, the readers of public files."""
import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from scipy.stats import binom

from tutorial_clf import ladder as module
from tutorial_clf.compare import holm
from tutorial_clf.data import Task, without_duplicates
from tutorial_clf.evaluate import EvaluateError, paired_test, score_card
from tutorial_clf.ladder import RUNGS, Start, difference_interval, from_scratch, judge, ladder, plot_ladder, show_ladder, verdict
from tutorial_clf.pretrained import ModelError, embed, load_encoder, load_tokenizer
from tutorial_clf.profile import ProfileError, load_profile

ROOT = Path(__file__).resolve().parents[1]
SCORES = ("accuracy", "macro_f1", "log_loss")
KEYS = {"name", "n", *SCORES, *(f"{key}_interval" for key in SCORES), "calibration_error", "calibration_chance_95", "calibration_excess", "train_seconds",
        "texts_per_second", "megabytes", "chosen", "better_than_below", "against", "without_duplicates"}
STEP = {"difference", "interval", "only_this", "only_below", "p", "p_holm", "verdict"}
CHEAP = ("majority", "word counts", "TF-IDF")
TRIES = {"from scratch": [{"learning_rate": 1e-3}], "fine-tuned": [{"learning_rate": 1e-5}, {"learning_rate": 3e-3, "epochs": 3}]}


@pytest.fixture(scope="module")
def climb(checkpoint):
    "The ladder of a task with a tiny model: a few seconds for all rungs."
    def climb(task, seeds=(1, 2), tries=TRIES, **more):
        settings = dict(model=str(checkpoint("bert")), train_rows=0, eval_rows=0, batch_size=8, epochs=2) | more
        return ladder(task, "smoke", seeds=seeds, tries=tries, **settings)
    return climb


@pytest.fixture(scope="module")
def rungs(climb, toy_task): return climb(toy_task(train=60, validation=30, test=45))


def only(task, **changes) -> Task:
    "`task` with a column of its test split replaced."
    test = task.test
    for name, values in changes.items(): test = test.remove_columns(name).add_column(name, values, feature=task.test.features[name])
    return replace(task, test=test)


# ---- the whole

def test_every_rung_has_every_key_and_fits_into_json(rungs):
    assert [rung["name"] for rung in rungs] == list(RUNGS) and len(RUNGS) == 7
    assert all(set(rung) == KEYS for rung in rungs)
    assert json.loads(json.dumps(rungs, allow_nan=False)) == rungs
    for i, rung in enumerate(rungs):
        assert rung["n"] == 45 and list(rung["against"]) == list(RUNGS)[:i]
        for key in SCORES: assert rung[f"{key}_interval"][0] <= rung[key] <= rung[f"{key}_interval"][1], (rung["name"], key)
        assert 0 <= rung["calibration_error"] <= 1 and rung["train_seconds"] > 0 and rung["texts_per_second"] > 0 and rung["megabytes"] > 0
    assert rungs[0]["better_than_below"] is None and all(set(rung["better_than_below"]) == STEP for rung in rungs[1:])


def test_rungs_learn_what_can_be_learned(rungs):
    by = {rung["name"]: rung for rung in rungs}
    assert by["majority"]["accuracy"] == pytest.approx(1 / 3) and by["word counts"]["accuracy"] == by["TF-IDF"]["accuracy"] == 1       # one word tells the class
    assert by["word counts"]["better_than_below"]["verdict"] == "better" and by["TF-IDF"]["better_than_below"]["verdict"] == "not shown"
    assert by["seeds averaged"]["megabytes"] == pytest.approx(2 * by["fine-tuned"]["megabytes"])
    assert by["from scratch"]["megabytes"] == by["fine-tuned"]["megabytes"]
    assert by["seeds averaged"]["train_seconds"] > by["fine-tuned"]["train_seconds"]


def test_the_chosen_settings_are_those_with_the_lowest_validation_loss(climb, toy_task):
    task = toy_task(train=60, validation=30, test=9)
    alone = {i: climb(task, rungs=("fine-tuned",), tries={"fine-tuned": [setting]})[0]["chosen"] for i, setting in enumerate(TRIES["fine-tuned"])}
    both = climb(task, rungs=("fine-tuned",))[0]["chosen"]
    best = min(alone.values(), key=lambda chosen: chosen["validation_loss"])
    assert both["validation_loss"] == best["validation_loss"] and alone[0]["validation_loss"] != alone[1]["validation_loss"]
    assert both["learning_rate"] == best["learning_rate"] and both["epochs"] == (3 if both["learning_rate"] == 3e-3 else 2)
    averaged = climb(task, rungs=("seeds averaged",))[0]["chosen"]
    assert averaged["learning_rate"] == both["learning_rate"] and averaged["seeds"] == [1, 2] and averaged["best_epoch"][0] == both["best_epoch"]


def test_all_that_was_tried_is_reported(climb, toy_task):
    chosen = climb(toy_task(train=60, validation=30, test=9), rungs=("fine-tuned",))[0]["chosen"]
    assert [one["settings"] for one in chosen["tried"]] == TRIES["fine-tuned"] and all(set(one) == {"settings", "epoch", "validation_loss", "validation_accuracy"} for one in chosen["tried"])
    assert chosen["validation_loss"] == min(one["validation_loss"] for one in chosen["tried"])


def test_a_try_may_set_any_key_of_the_profile(monkeypatch, toy_task):
    asked = []
    def run(start, model, seed, settings):
        asked.append(settings)
        return None, {"epoch": 1, "validation_loss": 1 / (1 + len(asked)), "validation_accuracy": 0.5}
    monkeypatch.setattr(module, "_run", run)
    start = module.begin(toy_task(), load_profile("smoke"), (1,), {"fine-tuned": [{}, {"precision": "bf16", "freeze": "embeddings", "batch_size": 32}]})[0]
    best = module.best_run(start, "fine-tuned", "minilm")
    assert module._chosen(start, "fine-tuned", best) | {"tried": None} == {"precision": "bf16", "freeze": "embeddings", "batch_size": 32, "best_epoch": 1, "validation_loss": 1 / 3, "tried": None}
    module.best_run(start, "from scratch", "folder")
    assert asked[1] == {"precision": "bf16", "freeze": "embeddings", "batch_size": 32} and all(module.ALL_WEIGHTS.items() <= settings.items() for settings in asked[2:])


def test_from_scratch_trains_all_weights_whatever_the_profile_says(checkpoint, toy_task, tmp_path):
    model = str(checkpoint("bert"))
    profile = load_profile("smoke", model=model, freeze="1", layer_decay=0.5, batch_size=8)
    start = module.begin(toy_task(), profile, (1,), {"from scratch": [{"learning_rate": 1e-3}], "fine-tuned": [{"learning_rate": 1e-3}]})[0]
    module.scratch(start), module.tuned(start)
    def kept(name, folder):
        before, after = load_encoder(folder).state_dict(), start.runs[name]["clf"].model.bert.state_dict()
        return {key for key in before if key.endswith(("word_embeddings.weight", "query.weight")) and before[key].equal(after[key])}
    assert kept("from scratch", from_scratch(tmp_path, model, 1)) == set() and len(kept("fine-tuned", model)) == 2


def test_poisoned_test_rows_change_no_choice(climb, toy_task, rungs):
    task = toy_task(train=60, validation=30, test=45)
    labels = np.array(task.test["label"])
    poisoned = climb(only(task, label=((labels + 1) % 3).tolist(), text=[f"poison {i % 7}" for i in range(45)]))
    assert [rung["chosen"] for rung in poisoned] == [rung["chosen"] for rung in rungs]
    assert poisoned[1]["accuracy"] < rungs[1]["accuracy"] == 1                     # the poison was there


def test_no_rung_is_handed_a_test_row(monkeypatch, climb, toy_task):
    task, seen = toy_task(), []
    monkeypatch.setitem(RUNGS, "majority", lambda start: seen.append(start) or module.majority(start))
    climb(task, rungs=("majority",))
    assert isinstance(seen[0], Start) and len(seen[0].task.test) == 0 and len(seen[0].task.train) == len(task.train) and len(task.test)


def test_validation_labels_do_change_choices(toy_task):
    "The test of poisoned labels can fail: the same poison in the validation split changes what is chosen."
    task = toy_task(train=60, validation=30, test=9)
    labels = [(label + 1) % 3 for label in task.validation["label"]]
    poisoned = replace(task, validation=task.validation.remove_columns("label").add_column("label", labels, feature=task.validation.features["label"]))
    chosen = [ladder(t, "smoke", rungs=("TF-IDF",), train_rows=0, eval_rows=0)[0]["chosen"] for t in (task, poisoned)]
    assert chosen[0]["C"] > chosen[1]["C"]


def test_the_same_call_gives_the_same_scores(climb, toy_task, rungs):
    again = climb(toy_task(train=60, validation=30, test=45))
    changing = {"train_seconds", "texts_per_second"}
    for one, other in zip(rungs, again): assert {k: v for k, v in one.items() if k not in changing} == {k: v for k, v in other.items() if k not in changing}


def test_averaging_is_the_mean_of_the_probabilities(checkpoint, toy_task):
    start = module.begin(toy_task(train=24, validation=12), load_profile("smoke", model=str(checkpoint("bert")), epochs=1), (1, 2, 3), {"fine-tuned": [{"learning_rate": 1e-3}]})[0]
    texts = ["the bad soup", "a good film", "book"]
    together, first = module.averaged(start).predict(texts), module.tuned(start).predict(texts)
    others = [module._run(start, start.profile.model, seed, {"learning_rate": 1e-3})[0].predict_proba(texts) for seed in (2, 3)]
    assert np.allclose(together, np.mean([first, *others], axis=0)) and not np.allclose(together, first)


def test_frozen_is_logistic_regression_on_the_embedding(checkpoint, toy_task):
    from sklearn.linear_model import LogisticRegression
    model = str(checkpoint("bert"))
    start = module.begin(toy_task(train=30, validation=15), load_profile("smoke", model=model), (1,))[0]
    fitted = module.frozen(start)
    texts, labels = start.rows("train", "validation")
    encoder, questions = (load_tokenizer(model), load_encoder(model)), ["the bad soup", "a good film"]
    by_hand = LogisticRegression(C=fitted.chosen["C"], max_iter=5000).fit(embed(texts, encoder, max_length=64).astype(float), labels)
    assert np.allclose(fitted.predict(questions), by_hand.predict_proba(embed(questions, encoder, max_length=64).astype(float)), atol=1e-4)


def test_the_search_for_C_stops_once_the_loss_rises():
    "Labels by coin: the freer the weights, the worse; where words tell the label, the freer the better."
    rng = np.random.default_rng(0)
    features, coin, signal = rng.normal(size=(200, 20)), rng.integers(0, 2, 200), np.arange(200) % 2
    tried = module.validation_losses(features[:100], coin[:100], features[100:], coin[100:], 2)
    assert list(tried) == list(module.GRID[:len(tried)]) and len(tried) < len(module.GRID) and list(tried.values())[-1] > min(tried.values())
    told = features + 9 * signal[:, None]
    assert list(module.validation_losses(told[:100], signal[:100], told[100:], signal[100:], 2)) == list(module.GRID)


def test_from_scratch_has_the_shape_and_other_weights(checkpoint, tmp_path):
    model = str(checkpoint("bert"))
    one, two, other = (load_encoder(from_scratch(tmp_path / str(i), model, seed)).state_dict() for i, seed in enumerate((0, 0, 1)))
    given = load_encoder(model).state_dict()
    name = next(name for name in given if name.endswith("query.weight"))
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in given.items()}
    assert one[name].equal(two[name]) and not one[name].equal(other[name]) and not one[name].equal(given[name])
    assert load_tokenizer(tmp_path / "0")("the soup")["input_ids"] == load_tokenizer(model)("the soup")["input_ids"]


# ---- classes and splits

def test_a_class_that_is_missing_from_training(climb, toy_task):
    task = toy_task(train=60, validation=30, test=30)
    kept = np.flatnonzero(np.array(task.train["label"]) != 2)
    for held in (task.validation, task.validation.select(np.flatnonzero(np.array(task.validation["label"]) != 2))):
        answer = climb(replace(task, train=task.train.select(kept), validation=held), seeds=(1,), rungs=tuple(RUNGS)[:-1])
        assert all(np.isfinite([rung[key] for key in SCORES]).all() and rung["n"] == 30 for rung in answer)
    assert answer[1]["accuracy"] == pytest.approx(2 / 3)                          # the third class is never predicted


def test_class_order_comes_from_the_task(toy_task):
    task = toy_task(train=60, validation=30, test=30, names=("z", "a", "m"))
    rung = ladder(task, "smoke", rungs=("TF-IDF",), train_rows=0, eval_rows=0)[0]
    assert rung["accuracy"] == 1 and task.label_names == ["z", "a", "m"]


def test_profile_cuts_the_rows(toy_task):
    rung = ladder(toy_task(train=60, validation=30, test=45), "smoke", rungs=("majority",), eval_rows=21)[0]
    assert rung["n"] == 21


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_refused(toy_task, split):
    task = toy_task()
    with pytest.raises(EvaluateError, match=f"toy: the {split} split has no rows; .*cut them anew"):
        ladder(replace(task, **{split: getattr(task, split).select([])}), "smoke", rungs=CHEAP)


def test_one_class_is_refused(toy_task):
    task = toy_task()
    train = task.train.select(np.flatnonzero(np.array(task.train["label"]) == 1))
    with pytest.raises(EvaluateError, match="toy: all training rows have the label 'güt'; .*at least two classes"): ladder(replace(task, train=train), "smoke", rungs=CHEAP)


def test_withheld_labels_are_refused(toy_task):
    task = toy_task()
    with pytest.raises(EvaluateError, match="test labels must be from 0 to 2; row 0 .* withheld"): ladder(only(task, label=[-1] * len(task.test)), "smoke", rungs=("majority",))


@pytest.mark.parametrize("wrong, said", [
    (dict(rungs=("majority", "LSTM")), "there is no rung 'LSTM'; known are majority"),
    (dict(rungs=()), "the rungs are \\[\\]; give at least one"),
    (dict(rungs=("TF-IDF", "TF-IDF")), "give at least one, each of them once"),
    (dict(seeds=()), "the seeds are \\(\\); give at least one"),
    (dict(seeds=(1, 1)), "the seeds are \\(1, 1\\); give at least one, each of them once"),
    (dict(tries={"fine tuned": [{}]}), "tries for 'fine tuned' .* from scratch or fine-tuned"),
    (dict(tries={"fine-tuned": []}), "give at least one dictionary of settings"),
    (dict(tries={"from scratch": [{}, {"freeze": "embeddings"}]}), "a try for 'from scratch' sets freeze; leave it out"),
    (dict(tries={"fine-tuned": [{"seed": 3}]}), "a try for 'fine-tuned' sets seed; leave it out")])
def test_wrong_arguments_end_in_one_sentence(toy_task, wrong, said):
    with pytest.raises(EvaluateError, match=said) as caught: ladder(toy_task(), "smoke", **dict(rungs=CHEAP) | wrong)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("toy: ")


def test_errors_from_below_come_through(toy_task):
    with pytest.raises(ProfileError, match="epoch"): ladder(toy_task(), "smoke", rungs=CHEAP, epoch=3)
    with pytest.raises(ProfileError, match="learning_rat"): ladder(toy_task(), "smoke", rungs=CHEAP, tries={"fine-tuned": [{"learning_rat": 1e-4}]})       # before anything is trained
    with pytest.raises(ModelError): ladder(toy_task(), "smoke", rungs=("frozen encoder",), model="no/such folder/")


def test_texts_without_words_are_refused(toy_task):
    task = toy_task()
    train = task.train.remove_columns("text").add_column("text", ["!?"] * len(task.train))
    with pytest.raises(EvaluateError, match="no training text holds a word"): ladder(replace(task, train=train), "smoke", rungs=("word counts",))


# ---- judging

def answers(right, classes=3):
    "Probabilities (N, classes) with the right answer 0 where `right`, else 1."
    p = np.full((len(right), classes), 0.1)
    p[np.arange(len(right)), np.where(right, 0, 1)] = 0.8
    return p


def test_judge_agrees_with_its_parts():
    rng, labels = np.random.default_rng(0), np.zeros(120, int)
    given = {name: answers(rng.random(120) < share) for name, share in (("a", 0.4), ("b", 0.7), ("c", 0.72), ("d", 0.5))}
    judged = judge(labels, given, ["x", "y", "z"])
    tests = [paired_test(labels, given[upper].argmax(1), given[lower].argmax(1)) for lower, upper in zip("abc", "bcd")]
    steps = [rung["better_than_below"] for rung in judged[1:]]
    assert [step["p"] for step in steps] == [test["p"] for test in tests] and np.allclose([step["p_holm"] for step in steps], holm([test["p"] for test in tests]))
    assert [step["verdict"] for step in steps] == ["better", "not shown", "worse"]
    assert [(step["only_this"], step["only_below"]) for step in steps] == [(test["only_a"], test["only_b"]) for test in tests]
    assert judged[3]["against"]["a"]["p"] == paired_test(labels, given["d"].argmax(1), given["a"].argmax(1))["p"] and judged[3]["against"]["c"]["p"] == steps[2]["p"]
    for rung in judged[1:]: assert list(rung["against"].values())[-1] == {key: rung["better_than_below"][key] for key in ("difference", "interval", "p")}
    card = score_card(labels, given["b"], ["x", "y", "z"])
    assert all(judged[1][key] == card[key] for key in ("n", "accuracy", "accuracy_interval", "macro_f1", "macro_f1_interval"))
    right = (given["b"].argmax(1) == 0)
    assert judged[1]["log_loss"] == pytest.approx(-(right.mean() * np.log(0.8) + (1 - right.mean()) * np.log(0.1)))


def test_holm_counts_all_steps():
    "A p of 0.03 is enough on a ladder of two and not beside five other questions."
    b, c = next((b, c) for b in range(30) for c in range(b) if 0.02 < 2 * binom.cdf(c, b + c, 0.5) - binom.pmf(c, b + c, 0.5) < 0.04)
    i = np.arange(100)
    low, high = answers(i < 50), answers((i < 50 - c) | ((i >= 50) & (i < 50 + b)))
    two = judge(np.zeros(100, int), {"low": low, "high": high}, ["x", "y", "z"])
    many = judge(np.zeros(100, int), {"low": low, "high": high} | {f"same {k}": high for k in range(5)}, ["x", "y", "z"])
    assert two[1]["better_than_below"]["verdict"] == "better" and many[1]["better_than_below"]["verdict"] == "not shown"
    assert many[1]["better_than_below"]["p"] == two[1]["better_than_below"]["p"]


def test_verdict(): assert [verdict(0.1, 0.049), verdict(-0.1, 0.049), verdict(0.1, 0.05), verdict(0.0, 1.0)] == ["better", "worse", "not shown", "not shown"]


@pytest.mark.parametrize("n, above, below", [(200, 0.09, 0.04), (300, 0.02, 0.02), (100, 0.2, 0.1), (1800, 0.03, 0.01)])
def test_difference_interval_holds_the_gap(n, above, below):
    rng = np.random.default_rng(n)
    splits = rng.multinomial(n, [above, below, 1 - above - below], size=4000)
    held = np.mean([low <= above - below <= high for low, high in (difference_interval(b, c, n) for b, c, _ in splits)])
    assert 0.93 < held < 0.98


def test_difference_interval_at_the_ends():
    assert difference_interval(0, 0, 50)[0] == -difference_interval(0, 0, 50)[1] < 0      # never without width
    low, high = difference_interval(1, 0, 1)
    assert -1 <= low < high <= 1
    assert np.allclose(difference_interval(6, 12, 200), [-x for x in difference_interval(12, 6, 200)[::-1]])
    z = 1.959963984540054                                                                 # by hand: 13/202, 7/202
    assert np.allclose(difference_interval(12, 6, 200), 6 / 202 + np.array([-z, z]) * ((20 / 202 - (6 / 202) ** 2) / 202) ** 0.5)


def test_without_duplicates_judges_the_rows_that_are_alone(toy_task):
    task = toy_task(train=60, validation=30, test=45)
    texts = list(task.test["text"])
    texts[:15] = task.train["text"][:15]                                          # repeated, with the same labels
    task = only(task, text=texts)
    rung = ladder(task, "smoke", rungs=("majority", "TF-IDF"), train_rows=0, eval_rows=0)[1]
    clean = without_duplicates(task)
    assert rung["n"] == 45 and rung["without_duplicates"]["n"] == len(clean.test) <= 30
    assert rung["without_duplicates"]["accuracy"] == ladder(clean, "smoke", rungs=("TF-IDF",), train_rows=0, eval_rows=0)[0]["accuracy"]
    assert rung["without_duplicates"]["better_than_below"]["verdict"] == "better" and "without duplicates" in show_ladder([rung])
    for counted in (0, 15):                                                       # what the card says is believed
        known = replace(task, card=task.card | {"duplicates_across_splits": counted})
        assert (ladder(known, "smoke", rungs=("majority",))[0]["without_duplicates"] is None) == (counted == 0)


# ---- table and picture

def test_table_has_at_most_76_columns(rungs):
    shown = show_ladder(rungs)
    assert max(map(len, shown.splitlines())) <= 76 and all(shown.count(name) >= 2 for name in RUNGS)
    wide = [rung | {"train_seconds": 123456.7, "texts_per_second": 9.99e7, "megabytes": 1234.5, "log_loss": 12.345, "log_loss_interval": [10.5, 14.25],
                    "chosen": {"learning_rate": 0.00012, "epochs": 10, "weight_decay": 0.01, "warmup": 0.06, "best_epoch": [10, 10, 10]},
                    "without_duplicates": {key: rung[key] for key in ("n", "accuracy", "accuracy_interval", "macro_f1", "macro_f1_interval", "better_than_below")}}
            for rung in rungs]
    shown = show_ladder(wide)
    assert max(map(len, shown.splitlines())) <= 76 and "without duplicates" in shown and "123 k" in shown and "99.9 M" in shown
    for rung in rungs: assert f"{rung['accuracy']:.3f} ({rung['accuracy_interval'][0]:.3f}-{rung['accuracy_interval'][1]:.3f})" in show_ladder(rungs)


def test_a_ladder_of_one_rung_is_shown(rungs):
    shown = show_ladder([rungs[0] | {"without_duplicates": None}])
    assert "than below" not in shown and "45 test rows" in shown


def test_picture_has_a_bar_for_each_rung(rungs):
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    ax = plt.figure().add_subplot()
    assert plot_ladder(rungs, ax) is ax
    bars = ax.containers
    assert len(bars) == 7 and [label.get_text() for label in ax.get_yticklabels()] == list(RUNGS) and ax.get_xlabel()
    assert [bar[0].get_xdata()[0] for bar in bars] == [rung["accuracy"] for rung in rungs]
    open_marks = [bar[0].get_markerfacecolor() == "white" for bar in bars]
    assert open_marks == [bool(rung["better_than_below"]) and rung["better_than_below"]["verdict"] == "not shown" for rung in rungs]
    plt.close("all")


# ---- the lesson: readers of public files, and records

@pytest.fixture(scope="module")
def lesson():
    "What the cells of the chapter define that read public files."
    cells = [cell.source for cell in nbformat.read(ROOT / "nbs" / "08_ladder.ipynb", 4).cells if cell.cell_type == "code"]
    names = {}
    from tempfile import TemporaryDirectory

    from tutorial_clf.checks import SPLITS, near_groups, split_groups
    from tutorial_clf.data import load_task
    from tutorial_clf.profile import shipped
    names |= dict(csv=csv, os=os, np=np, Path=Path, TemporaryDirectory=TemporaryDirectory, SPLITS=SPLITS, near_groups=near_groups,
                  split_groups=split_groups, load_task=load_task, shipped=shipped)
    for cell in cells:
        if "def read_public(" in cell or "def public_task(" in cell: exec(cell, names)
    return names


@pytest.fixture
def public(tmp_path):
    "Small files in the formats of the four public data sets."
    rng = np.random.default_rng(0)
    def text(i): return " ".join(rng.choice("alpha beta gamma delta kappa sigma omega tau rho".split(), size=7)) + f" number{i}"
    def lines(file, n, classes, encoding="latin-1"): (tmp_path / file).write_text("".join(f"{i % classes} {text(i)} caf\u00e9\n" for i in range(n)), encoding=encoding)
    for file, n in (("sst2.train", 40), ("sst2.dev", 10), ("sst2.test", 12)): lines(file, n, 2)
    for file, n in (("trec.train", 120), ("trec.test", 12)): lines(file, n, 6)
    messages = [f"{('ham', 'spam')[i % 2]}\t{text(i)} \u20ac\u2019\n" for i in range(60)]
    (tmp_path / "sms.tsv").write_text("".join(messages + messages[:20]), encoding="utf-8")                 # twenty are repeated
    for split, n in (("train", 100), ("test", 20)):
        with open(tmp_path / f"banking77.{split}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "category"), *((f'{text(i)}, "quoted"\nsecond line', f"intent_{i % 5}") for i in range(n))])
    return tmp_path


@pytest.mark.parametrize("name, classes, rows", [("sst2", 2, (40, 10, 12)), ("trec", 6, (120, 12)), ("sms", 2, (80,)), ("banking77", 5, (100, 20))])
def test_public_files_become_tasks(lesson, public, capsys, name, classes, rows):
    task = lesson["public_task"](name, public)
    sizes = [len(split) for split in task.splits.values()]
    assert task.name == name and len(task.label_names) == classes and sum(sizes) == sum(rows) and all(sizes)
    if len(rows) == 3: assert tuple(sizes) == rows
    if len(rows) == 2: assert sizes[2] == rows[1] and 0.05 < sizes[1] / rows[0] < 0.2
    if name == "sms":
        assert task.card["duplicates_across_splits"] == 0 and "\u20ac\u2019" in task.train["text"][0]      # repeats stay on one side
    if name == "sst2": assert task.train["text"][0].endswith("caf\u00e9") and list(task.train["label"][:4]) == [0, 1, 0, 1]
    if name == "banking77": assert task.train["text"][0].endswith('"quoted"\nsecond line')


def test_validation_is_cut_by_groups(lesson, public):
    "A training row that is repeated does not come to stand on both sides."
    with open(public / "trec.train", "a", encoding="latin-1") as file: file.writelines(f"{i % 6} {text}\n" for i, text in [(0, "what is the capital of this large country")] * 30)
    assert lesson["public_task"]("trec", public).card["duplicates"]["validation"] == {"exact": 0, "near": 0}


def test_repeated_test_rows_are_scored_both_ways_and_grouped_messages_have_none(lesson, public, monkeypatch):
    climb = lambda name: ladder(lesson["public_task"](name, public), "smoke", rungs=CHEAP, train_rows=0, eval_rows=0)
    known = (public / "trec.train").read_text(encoding="latin-1").splitlines(keepends=True)[:4]
    with open(public / "trec.test", "a", encoding="latin-1") as file: file.writelines(known)
    assert all(rung["n"] == 16 and rung["without_duplicates"]["n"] == 12 for rung in climb("trec"))
    assert all(rung["without_duplicates"] is None for rung in climb("sms"))
    monkeypatch.setitem(lesson, "near_groups", lambda texts: np.arange(len(texts)))                       # cut by row, repeats come apart
    assert all(0 < rung["without_duplicates"]["n"] < rung["n"] for rung in climb("sms"))


@pytest.mark.parametrize("name, rows", [("sst2", (6920, 872, 1821)), ("trec", (4907, 545, 500)), ("sms", 5574), ("banking77", (9002, 1001, 3080))])
def test_real_files_have_the_published_rows(lesson, name, rows):
    real = Path(os.environ.get("TUTORIAL_CLF_REAL_DATA") or ROOT.parent / "shared" / "data")
    absent = [file for file in lesson["PUBLIC"][name] if file and not (real / file).is_file()]
    if absent: pytest.skip(f"{absent[0]} is not in {real.name}: set TUTORIAL_CLF_REAL_DATA to the folder with it")
    sizes = tuple(len(split) for split in lesson["public_task"](name, real).splits.values())
    assert sizes == rows if name != "sms" else sum(sizes) == rows


RECORDS = sorted((ROOT / "data" / "runs").glob("ladder-*.json"))


def test_each_record_can_be_made_by_name():
    text = (ROOT / "nbs" / "08_ladder.ipynb").read_text(encoding="utf-8")
    names = ("reviews", "messages", "intents", "headlines", "docstrings", "sst2", "trec", "sms", "banking77")
    lacking = [name for name in names if f'recording(\\"ladder-{name}\\")' not in text]                   # what `make record` looks for
    assert not lacking, f"nbs/08_ladder.ipynb does not ask recording(...) for {lacking}"
    assert {path.stem.removeprefix("ladder-") for path in RECORDS} <= {*names}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_recorded_ladder_is_whole(path):
    rungs = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert [rung["name"] for rung in rungs] == list(RUNGS) and all(set(rung) == KEYS for rung in rungs) and len({rung["n"] for rung in rungs}) == 1
    steps = [rung["better_than_below"] for rung in rungs[1:]]
    assert np.allclose([step["p_holm"] for step in steps], holm([step["p"] for step in steps]))
    assert [step["verdict"] for step in steps] == [verdict(step["difference"], step["p_holm"]) for step in steps]
