"""Intervals and tests against closed forms, scikit-learn, SciPy and simulation; bad input; the table."""
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support, roc_auc_score

from tutorial_clf.evaluate import (EvaluateError, baselines, bootstrap_interval, check_rows, macro_f1, paired_test, plot_confusion, plot_curves,
                                   row_bootstrap, score_card, show_card, show_rows, tfidf_probabilities, wilson_interval)

NAMES = ["negative", "positive"]


def rows_of(counts):
    "Labels and predictions of a confusion matrix that is given flat, C * C counts"
    classes = round(len(counts) ** 0.5)
    return np.divmod(np.repeat(np.arange(classes**2), counts), classes)


def chances(class_shares, right):
    "Chance of each cell (C, C): classes with these shares, each answered right with its own probability, else any other class"
    shares, right, classes = np.array(class_shares), np.array(right), len(class_shares)
    off = ((1 - right) / (classes - 1))[:, None] * (1 - np.eye(classes))
    return shares[:, None] * (np.diag(right) + off)


# Wilson's interval

@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_wilson_equals_scipy(level):
    for n in (1, 2, 7, 175, 100_000):
        for k in {0, 1, n // 3, n - 1, n}:
            theirs = binomtest(k, n).proportion_ci(level, method="wilson")
            assert np.allclose(wilson_interval(k, n, level), (theirs.low, theirs.high), atol=1e-12)


def test_wilson_at_the_ends():
    z2 = 1.959963984540054**2
    assert np.allclose(wilson_interval(20, 20), (1 / (1 + z2 / 20), 1)) and wilson_interval(20, 20)[1] == 1.0
    assert np.allclose(wilson_interval(0, 20), (0, z2 / 20 / (1 + z2 / 20))) and wilson_interval(0, 20)[0] == 0.0


@pytest.mark.parametrize("p, n", [(0.5, 175), (0.85, 175), (0.95, 175), (0.95, 40), (0.9, 1000)])
def test_wilson_covers(p, n):
    right = np.random.default_rng(0).binomial(n, p, size=2_000)
    held = np.mean([low <= p <= high for low, high in (wilson_interval(int(k), n) for k in right)])
    assert 0.93 <= held <= 0.97, held


# the bootstrap

def test_macro_f1_equals_sklearn():
    rng = np.random.default_rng(0)
    for classes in (2, 5, 12):
        labels, predictions = rng.integers(0, classes, size=(2, 15))         # with twelve classes, some do not occur
        matrix = confusion_matrix(labels, predictions, labels=range(classes))
        assert np.isclose(macro_f1(matrix), f1_score(labels, predictions, average="macro", zero_division=0))
        assert np.allclose(macro_f1(np.stack([matrix, 3 * matrix])), macro_f1(matrix))


def test_plain_bootstrap_equals_redrawing_rows():
    rng = np.random.default_rng(0)
    labels, predictions = rows_of([140, 13, 6, 16])
    naive = []
    for _ in range(1_000):
        drawn = rng.integers(0, len(labels), len(labels))
        naive.append(f1_score(labels[drawn], predictions[drawn], average="macro"))
    ours = bootstrap_interval(labels, predictions, draws=20_000, imagined=0)
    assert np.allclose(ours, np.quantile(naive, [0.025, 0.975]), atol=0.015)


def test_bootstrap_of_accuracy_equals_binomial_quantiles():
    def accuracy(counts): return np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1))
    labels, predictions = rows_of([450, 50, 100, 400])
    ours = bootstrap_interval(labels, predictions, accuracy, draws=40_000, imagined=0)
    assert np.allclose(ours, binom.ppf([0.025, 0.975], 1000, 0.85) / 1000, atol=0.0015)


@pytest.mark.parametrize("cells, n", [
    (chances([0.5, 0.5], [0.85, 0.85]), 175), (chances([0.5, 0.5], [0.97, 0.97]), 60), (chances([0.5, 0.5], [0.95, 0.95]), 175),
    (chances([0.875, 0.125], [0.99, 0.85]), 200), (chances([0.4, 0.3, 0.2, 0.1], [0.9, 0.8, 0.8, 0.7]), 300),
], ids=["balanced", "good and small", "good", "one in eight", "four classes"])
def test_bootstrap_covers(cells, n):
    truth = macro_f1(cells * 1_000)
    held = 0
    for counts in np.random.default_rng(4).multinomial(n, cells.ravel(), size=2_000):
        low, high = bootstrap_interval(*rows_of(counts), draws=500, classes=len(cells))
        held += low <= truth <= high
    assert 0.93 <= held / 2_000 <= 0.97, held / 2_000


def test_bootstrap_is_seeded_and_ordered():
    labels, predictions = rows_of([70, 10, 12, 83])
    first = bootstrap_interval(labels, predictions, seed=3)
    assert first == bootstrap_interval(labels, predictions, seed=3) != bootstrap_interval(labels, predictions, seed=4)
    wide, narrow = bootstrap_interval(labels, predictions, level=0.99), bootstrap_interval(labels, predictions, level=0.8)
    assert wide[0] < narrow[0] < macro_f1(confusion_matrix(labels, predictions)) < narrow[1] < wide[1]


def test_no_mistake_is_no_certainty():
    labels = np.array([0, 1] * 10)
    low, high = bootstrap_interval(labels, labels)
    assert high == 1 and 0.75 < low < 0.9
    assert bootstrap_interval(labels, labels, imagined=0) == (1, 1)


def test_many_classes_are_quick_and_whole():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 150, 3_000)
    predictions = np.where(rng.random(3_000) < 0.9, labels, rng.integers(0, 150, 3_000))
    low, high = bootstrap_interval(labels, predictions, draws=1_000)
    assert low < f1_score(labels, predictions, average="macro") < high


def test_row_bootstrap_of_a_mean_equals_its_closed_form():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 500)
    labels = (rng.random(500) < p).astype(int)
    loss = -np.log(np.where(labels == 1, p, 1 - p))
    low, high = row_bootstrap(labels, np.stack([1 - p, p], axis=1), log_loss, draws=3000)
    half = 1.96 * loss.std() / 500**0.5
    assert np.allclose((low, high), (loss.mean() - half, loss.mean() + half), atol=0.01)
    assert row_bootstrap(labels, p, roc_auc_score, draws=50) == row_bootstrap(labels, p, roc_auc_score, draws=50) != row_bootstrap(labels, p, roc_auc_score, draws=50, seed=1)


def test_row_bootstrap_covers():
    rng, held = np.random.default_rng(0), 0
    def area(sought, score): return (score[sought == 1][:, None] > score[sought == 0]).mean()
    for _ in range(2_000):
        sought = (rng.random(150) < 0.3).astype(int)
        low, high = row_bootstrap(sought, rng.normal(size=150) + sought, area, draws=200)
        held += low <= 0.7602 <= high                      # chance that a normal number is below another with mean 1: Phi(1 / sqrt 2)
    assert 0.93 <= held / 2_000 <= 0.97, held / 2_000


def test_row_bootstrap_leaves_out_what_is_not_defined():
    labels, scores = [0] * 8 + [1] * 2, np.linspace(0, 1, 10)
    assert row_bootstrap(labels, scores, roc_auc_score, draws=200) == (1, 1)          # draws without a row of class 1 do not count
    with pytest.raises(EvaluateError, match="not defined"): row_bootstrap([0] * 9, np.linspace(0, 1, 9), roc_auc_score, draws=50)


# the paired test

def answers(only_a, only_b, both=5, neither=4):
    "Labels (all 1) and two classifiers' answers with these numbers of rows"
    a = [1] * only_a + [0] * only_b + [1] * both + [0] * neither
    b = [0] * only_a + [1] * only_b + [1] * both + [0] * neither
    return [1] * len(a), a, b


@pytest.mark.parametrize("only_a, only_b", [(5, 1), (0, 6), (9, 9), (30, 12), (400, 500), (0, 1)])
def test_mid_p_is_the_exact_p_less_half_the_observed(only_a, only_b):
    test = paired_test(*answers(only_a, only_b))
    d, s = only_a + only_b, min(only_a, only_b)
    if only_a != only_b: assert np.isclose(test["p"], binomtest(s, d).pvalue - binom.pmf(s, d, 0.5))
    else: assert np.isclose(test["p"], 1)
    assert (test["only_a"], test["only_b"]) == (only_a, only_b)
    assert np.isclose(test["difference"], test["accuracy_a"] - test["accuracy_b"])
    turned = paired_test(*[answers(only_a, only_b)[i] for i in (0, 2, 1)])
    assert np.isclose(turned["p"], test["p"]) and turned["difference"] == -test["difference"]


def test_nothing_discordant_is_no_evidence():
    assert paired_test([0, 1], [1, 1], [1, 1])["p"] == 1


@pytest.mark.parametrize("n, p", [(175, 0.85), (500, 0.9), (200, 0.7)])
def test_false_alarms(n, p):
    rng, ones = np.random.default_rng(0), np.ones(n, dtype=int)
    alarms = 0
    for _ in range(2_500):
        a, b = (rng.random((2, n)) < p).astype(int)
        alarms += paired_test(ones, a, b)["p"] < 0.05
    assert 0.03 <= alarms / 2_500 <= 0.065, alarms / 2_500


# the card

def test_card_equals_sklearn():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), size=200)
    labels = np.where(rng.random(200) < 0.6, probabilities.argmax(1), rng.integers(0, 4, 200))
    predictions = probabilities.argmax(1)
    card = score_card(labels, probabilities, list("abcd"))
    assert np.isclose(card["accuracy"], accuracy_score(labels, predictions))
    assert np.isclose(card["macro_f1"], f1_score(labels, predictions, average="macro"))
    for i, row in enumerate(zip(*precision_recall_fscore_support(labels, predictions))):
        assert np.allclose(list(card["per_class"]["abcd"[i]].values()), row)
    for key in ("accuracy", "macro_f1"): assert card[f"{key}_interval"][0] < card[key] < card[f"{key}_interval"][1]
    assert card == json.loads(json.dumps(card))


@pytest.mark.parametrize("kind", ["list", "datasets", "pandas", "torch"])
def test_labels_of_any_kind(kind):
    labels, probabilities = [0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    wanted = score_card(labels, probabilities, NAMES)
    if kind == "datasets":
        import datasets
        labels = datasets.Dataset.from_dict({"label": labels})["label"]
    elif kind == "pandas":
        import pandas as pd
        labels = pd.Series(labels, index=[5, 6, 7])
    elif kind == "torch":
        import torch
        labels, probabilities = torch.tensor(labels), torch.tensor(probabilities, dtype=torch.float32)
    assert score_card(labels, probabilities, NAMES) == wanted


def test_one_class_only_is_legal():
    card = score_card([1, 1, 1, 1], [[0.2, 0.8]] * 4, NAMES)
    assert card["accuracy"] == card["macro_f1"] == 1 and card["per_class"]["negative"]["n"] == 0
    assert card["macro_f1_interval"][0] < 0.9
    missed = score_card([1, 1, 1, 1], [[0.2, 0.8]] * 3 + [[0.8, 0.2]], NAMES)
    assert np.isclose(missed["macro_f1"], (6 / 7) / 2)         # the class that was predicted and never occurs counts, with 0
    assert paired_test([1, 1], [1, 0], [0, 0])["only_a"] == 1


GOOD = [[0.5, 0.5], [0.1, 0.9]]
@pytest.mark.parametrize("labels, probabilities, names, message", [
    ([], np.empty((0, 2)), NAMES, "empty"),
    ([0, 1], [[0.5, 0.6], [0.1, 0.9]], NAMES, "Row 0 .* sum to one"),
    ([0, 1], [[0.5, 0.5], [3.0, -2.0]], NAMES, "Row 1 .* negative"),
    ([0, 1], [[0.5, 0.5], [float("nan"), 0.5]], NAMES, "Row 1 .* NaN"),
    ([0, 1], [[0.5, 0.5], [float("inf"), 0.5]], NAMES, "Row 1 .* infinite"),
    ([0, 1], [0.5, 0.9], NAMES, r"shape \(2,\).*\(2, 2\)"),
    ([0, 1], [[0.5, 0.25, 0.25]] * 2, NAMES, r"shape \(2, 3\).*\(2, 2\)"),
    ([0, 1, 1], GOOD, NAMES, r"shape \(2, 2\).*\(3, 2\)"),
    ([0, 1], [[0.5, 0.5], [1.0]], NAMES, "table of numbers"),
    ([0, 1], [["a", "b"], ["c", "d"]], NAMES, "table of numbers"),
    ([0, 2], GOOD, NAMES, "from 0 to 1; row 1 .* is 2"),
    ([0, -1], GOOD, NAMES, "withheld"),
    ([0.0, float("nan")], GOOD, NAMES, "NaN in row 1"),
    ([0, None], GOOD, NAMES, "whole numbers"),
    (["negative", "positive"], GOOD, NAMES, "whole numbers"),
    ([0.0, 0.5], GOOD, NAMES, "whole numbers"),
    ([[0], [1]], GOOD, NAMES, r"shape \(2, 1\)"),
    ([[0], [1, 1]], GOOD, NAMES, "one entry per row"),
    ([0, 1], GOOD, ["same", "same"], "all different"),
    ([0, 0], [[1.0], [1.0]], ["only"], "At least two label names"),
])
def test_card_refuses(labels, probabilities, names, message):
    with pytest.raises(EvaluateError, match=message) as error: score_card(labels, probabilities, names)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("call", [
    lambda: wilson_interval(0, 0), lambda: wilson_interval(3, 2), lambda: wilson_interval(-1, 2), lambda: wilson_interval(float("nan"), 2),
    lambda: wilson_interval(1, 2, level=95), lambda: bootstrap_interval([], []), lambda: bootstrap_interval([0, 1], [0]),
    lambda: bootstrap_interval([0, 1], [0, 1], draws=0), lambda: bootstrap_interval([0, 1], [0, 1], level=1),
    lambda: bootstrap_interval([0, 1], [0, 1], imagined=-1), lambda: bootstrap_interval([0, 2], [0, 1], classes=2),
    lambda: bootstrap_interval([0, 1], [0, 1], metric=lambda counts: 0.5),
    lambda: paired_test([], [], []), lambda: paired_test([0, 1], [0], [0, 1]), lambda: paired_test([0, 1], [0, 1], [[0, 1]]),
    lambda: paired_test([0, 1], ["negative", "positive"], [0, 1]), lambda: paired_test([0, 1], [0, float("nan")], [0, 1]),
    lambda: plot_confusion([0, 1], [0, 2], NAMES), lambda: plot_confusion([], [], NAMES),
    lambda: row_bootstrap([], [], accuracy_score), lambda: row_bootstrap([0, 1], [0], accuracy_score), lambda: row_bootstrap([0, 1], 0.5, accuracy_score),
    lambda: row_bootstrap([0, 1], [0, 1], accuracy_score, draws=0), lambda: row_bootstrap([0, 1], [0, 1], accuracy_score, level=95),
    lambda: row_bootstrap([0, 1], [[0.5, 0.5], [float("nan"), 1]], log_loss), lambda: row_bootstrap([0, 1], [[0.5, 0.5], [1]], log_loss),
    lambda: plot_curves([0, 0], {"a": [0.1, 0.2]}), lambda: plot_curves([0, 2], {"a": [0.1, 0.2]}), lambda: plot_curves([0, 1], {"a": [0.1]}),
    lambda: check_rows([0, 1], [0.5, 0.5]), lambda: check_rows([0, 1], [[1.0], [1.0]]), lambda: check_rows([0, 1], [[0.5, 0.5], [1.0]]), lambda: check_rows([0, 2], GOOD),
    lambda: check_rows([], np.empty((0, 2))), lambda: check_rows([0], GOOD), lambda: check_rows([0, 1], None),
])
def test_others_refuse(call):
    with pytest.raises(EvaluateError) as error: call()
    assert "\n" not in str(error.value)


# baselines and table

TEXTS = ["lovely soup", "awful soup", "lovely room", "awful room", "lovely film", "awful film"]
LABELS = [1, 0, 1, 0, 1, 0]


def test_baselines():
    cheap = baselines(TEXTS + ["lovely walk"], LABELS + [1], ["lovely tea", "awful tea", "awful day"], [1, 0, 0], NAMES)
    assert cheap["tfidf"]["accuracy"] == 1 and np.isclose(cheap["majority"]["accuracy"], 1 / 3)
    assert cheap["majority"]["per_class"]["negative"]["recall"] == 0


def test_tfidf_keeps_columns_of_classes_that_training_lacks():
    probabilities = tfidf_probabilities(TEXTS, [3 if label else 1 for label in LABELS], ["lovely tea", "awful tea"], 5)
    assert probabilities.shape == (2, 5) and (probabilities[:, [0, 2, 4]] == 0).all() and np.allclose(probabilities.sum(1), 1)
    assert list(probabilities.argmax(1)) == [3, 1]


@pytest.mark.parametrize("train, labels, test, message", [
    (TEXTS, [0] * 6, ["a text"], "one class only"), (TEXTS, LABELS[:5], ["a text"], "5 labels and 6 training texts"),
    (TEXTS, LABELS, [], "test texts"), (TEXTS, LABELS, "a text", "must be a list"), (["!", "?"], [0, 1], ["a text"], "word of two letters"),
    (TEXTS[:5] + [None], LABELS, ["a text"], "Row 5 of the training texts"), (TEXTS, LABELS, [3.5], "Row 0 of the test texts"),
])
def test_baselines_refuse(train, labels, test, message):
    with pytest.raises(EvaluateError, match=message): tfidf_probabilities(train, labels, test, 2)


def test_table():
    card = score_card([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], NAMES)
    plain = show_card(card)
    assert "classifier" in plain and "3 test rows" in plain and "seconds" not in plain and "peak" not in plain
    full = card | dict(model="some/folder/that/has/a/very/long/name", baselines={"majority": {"accuracy": 0.5}, "tfidf": card},
                       seconds=123456.7, peak_memory_mb=23456.0)
    lines = show_card(full).splitlines()
    assert max(map(len, lines)) <= 80 and len({len(line) for line in lines[:4]}) == 1
    assert lines[1].startswith("...") and lines[2].startswith("TF-IDF") and lines[3].startswith("majority") and lines[4] == "3 test rows, 123,456.7 seconds, 23,456 MB at the peak"
    assert show_card(full).isascii()


def test_table_says_what_is_left_without_repeated_rows():
    card = score_card([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], NAMES)
    with_clean = show_card(card | {"seconds": 1.0, "without_duplicates": card | {"n": 123456}})
    assert with_clean.startswith(show_card(card | {"seconds": 1.0}))
    said = " ".join(with_clean.splitlines()[3:])
    assert f"without the rows that repeat earlier ones: accuracy {card['accuracy']:.3f} (" in said and "macro-F1" in said and said.endswith("on 123,456 test rows")
    refused = show_card(card | {"without_duplicates": {"refused": "every test row repeats a row of an earlier split, and this sentence goes on and on."}})
    assert "no score without duplicates: every test row" in refused
    assert max(len(line) for text in (with_clean, refused) for line in text.splitlines()) <= 80
    assert "repeat" not in show_card(card) and not show_card(card).endswith("\n")


def test_rows_become_a_table():
    table = show_rows([{"slice": "long name", "n": 5, "accuracy": 0.25, "interval": (0.1, 0.75), "p": None}, {"slice": "b", "n": 12, "accuracy": 1.0, "interval": (0.5, 1.0), "p": 0.0001}])
    assert table.splitlines() == ["slice       n  accuracy        interval       p",
                                  "long name   5     0.250  0.100 to 0.750       -",
                                  "b          12     1.000  0.500 to 1.000  <0.001"]
    assert show_rows([]) == "(no rows)"


def test_curves_and_their_areas():
    import matplotlib
    matplotlib.use("agg")
    roc, pr = plot_curves([0, 0, 1, 1], {"some": [0.1, 0.4, 0.35, 0.8], "none": [0.5] * 4})
    assert [text.get_text() for text in roc.get_legend().get_texts()] == ["some, area 0.750", "none, area 0.500"]
    assert pr.get_legend().get_texts()[0].get_text() == "some, area 0.833" and pr.get_ylabel() == "precision" and roc.get_ylabel() == "recall"
    assert plot_curves(np.array([True, False]), {"a": [1, 0]}, (roc, pr)) == (roc, pr)
    matplotlib.pyplot.close("all")


def test_picture():
    import matplotlib
    matplotlib.use("agg")
    ax = plot_confusion([0, 1, 1, 2], [0, 1, 0, 2], ["a", "b", "c"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "label") and len(ax.texts) == 9
    many = list(range(40))
    assert not plot_confusion(many, many, [f"class {i}" for i in many]).texts
    matplotlib.pyplot.close("all")


def test_import_costs_no_torch():
    heavy = "torch transformers sklearn scipy matplotlib pandas datasets".split()
    code = f"import sys, tutorial_clf.evaluate; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_label_names_that_occur_nowhere_do_not_move_the_interval():
    labels, predictions = [0, 1] * 100, [0, 1] * 93 + [1, 0] * 7
    assert np.allclose(bootstrap_interval(labels, predictions, classes=10), bootstrap_interval(labels, predictions, classes=2), atol=0.01)


class Counting:
    "A classifier that says how often it was asked"
    history, asked = [], 0

    def predict_proba(self, texts):
        self.asked += 1
        return np.array([[0.2, 0.8] if "lovely" in text else [0.7, 0.3] for text in texts])


@pytest.mark.parametrize("repeated", ["some of test", "all of test", "all of validation"])
def test_card_of_a_run_scores_the_kept_rows_once(repeated):
    from datasets import ClassLabel, Dataset
    from tutorial_clf.checks import Task
    from tutorial_clf.cli import make_card
    from tutorial_clf.profile import load_profile
    def rows(start, stop):
        names = ClassLabel(names=["down", "up"])
        both = [(f"{word} thing of kind {i} seen at place {7 * i}", label) for i in range(start, stop) for word, label in (("lovely", 1), ("dreadful", 0))]
        return Dataset.from_dict({"text": [text for text, _ in both], "label": [label for _, label in both]}).cast_column("label", names)
    validation, test = {"some of test": (rows(20, 25), rows(15, 30)), "all of test": (rows(20, 25), rows(0, 8)), "all of validation": (rows(0, 5), rows(30, 40))}[repeated]
    task = Task("stand-in", ["down", "up"], rows(0, 20), validation, test, {"duplicates_across_splits": 10})
    clf = Counting()
    card = make_card(task, clf, load_profile("smoke", train_rows=0, eval_rows=0), 1.0)
    assert clf.asked == 1, "the test rows were predicted more than once"
    if repeated == "all of test": assert "every test row repeats" in card["without_duplicates"]["refused"]
    else: assert card["without_duplicates"]["n"] == {"some of test": 10, "all of validation": 20}[repeated]
    assert "duplicates" in show_card(card) or "repeat" in show_card(card)
    json.dumps(card)
