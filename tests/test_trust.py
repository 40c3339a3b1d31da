"""Slices, calibration, abstention, behaviour tests and leak finder: hand examples, simulation, bad input."""
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from tutorial_clf.evaluate import EvaluateError, paired_test, wilson_interval
from tutorial_clf.trust import (calibration_bins, calibration_error, calibration_null, failure_table, fill, fit_temperature, flips, misses,
                                plot_reliability, plot_risk_coverage, risk_coverage, row_loss, safe_threshold, slice_table, telling_tokens,
                                with_temperature, with_typo, wrong_way)


def simulated(rng, n, classes=3, sharpness=2.0, temperature=1.0):
    "Labels drawn from calibrated probabilities, and those probabilities after dividing their logits by `temperature`"
    logits = rng.normal(scale=sharpness, size=(n, classes))
    truth = softmax(logits, axis=1)
    labels = (truth.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=classes - 1)
    return labels, softmax(logits / temperature, axis=1)


# ---- rows and slices

def test_row_loss_equals_sklearn():
    labels, p = simulated(np.random.default_rng(0), 200)
    assert np.isclose(row_loss(labels, p).mean(), log_loss(labels, p)) and row_loss(labels, p).shape == (200,)
    assert np.isclose(row_loss([0], [[0.0, 1.0]])[0], 52 * np.log(2))          # a probability of 0 costs much, not infinitely much


def test_slices_by_hand():
    rows = slice_table([0, 0, 1, 1, 1], [0, 1, 1, 1, 0], ["a", "a", "b", "b", "c"])
    assert [(row["slice"], row["n"], row["accuracy"]) for row in rows] == [("c", 1, 0.0), ("a", 2, 0.5), ("b", 2, 1.0)]
    assert rows[1]["interval"] == wilson_interval(1, 2) and np.isclose(rows[1]["elsewhere"], 2 / 3) and rows[1]["p"] == 1
    alone, = slice_table(["x", "y"], ["x", "x"], [True, True])                 # names instead of numbers, one group only
    assert alone["p"] is None and alone["elsewhere"] is None and alone["accuracy"] == 0.5


def test_slices_raise_few_false_alarms():
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(1000):
        right, group = rng.random(300) < 0.8, rng.random(300) < 0.3
        alarms += slice_table(np.ones(300, int), right.astype(int), group)[0]["p"] < 0.05
    assert alarms / 1000 < 0.065


# ---- calibration

def test_calibration_error_by_hand():
    p = [[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 4                                  # 4 of 4 right at 0.9, 1 of 4 right at 0.6
    labels = [0, 0, 0, 0] + [1, 0, 0, 0]
    bins = calibration_bins(labels, p, bins=2)
    assert [(b["n"], b["accuracy"]) for b in bins] == [(4, 0.25), (4, 1.0)] and np.allclose([b["confidence"] for b in bins], [0.6, 0.9])
    assert np.isclose(calibration_error(labels, p, bins=2)["ece"], (4 * 0.35 + 4 * 0.1) / 8)
    assert np.isclose(calibration_error(labels, p, bins=1)["ece"], abs(5 / 8 - 0.75))


def test_rows_of_one_confidence_stay_together():
    p = np.tile([0.8, 0.2], (50, 1))
    assert len(calibration_bins([0] * 40 + [1] * 10, p, bins=10)) == 1
    assert calibration_error([0] * 40 + [1] * 10, p)["ece"] < 1e-12


@pytest.mark.parametrize("n, classes, bins", [(200, 2, 10), (400, 5, 10), (100, 3, 15)])
def test_a_calibrated_classifier_is_not_told_from_its_null(n, classes, bins):
    rng, p_values, excess = np.random.default_rng(1), [], []
    for _ in range(1000):
        found = calibration_error(*simulated(rng, n, classes), bins=bins, draws=200)
        p_values.append(found["p"]), excess.append(found["excess"])
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.065, np.mean(np.array(p_values) < 0.05)
    assert 0.45 < np.mean(p_values) < 0.55 and abs(np.mean(excess)) < 0.003


def test_an_overconfident_classifier_is_told_from_its_null():
    labels, p = simulated(np.random.default_rng(0), 500, temperature=0.4)
    found = calibration_error(labels, p)
    assert found["p"] < 0.01 and found["ece"] > found["chance_95"] > found["chance"] > 0 and found["excess"] > 0.05


def test_null_is_seeded_and_needs_little_memory():
    p = simulated(np.random.default_rng(0), 3000)[1]
    assert (calibration_null(p, draws=1500, seed=1) == calibration_null(p, draws=1500, seed=1)).all()
    assert calibration_null(p, draws=1500).shape == (1500,)


# ---- temperature

@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_recovered(temperature):
    labels, p = simulated(np.random.default_rng(0), 20_000, temperature=1 / temperature)
    assert np.isclose(fit_temperature(labels, p), temperature, rtol=0.05)


def test_temperature_is_where_the_loss_is_least():
    labels, p = simulated(np.random.default_rng(3), 150, classes=6, temperature=0.7)
    loss = lambda t: -log_softmax(np.log(p) / t, axis=1)[np.arange(150), labels].mean()
    assert np.isclose(fit_temperature(labels, p), minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x, rtol=1e-4)
    assert np.isclose(loss(1.7), row_loss(labels, with_temperature(p, 1.7)).mean())


def test_temperature_keeps_predictions_and_order_of_classes():
    _, p = simulated(np.random.default_rng(0), 300, classes=5)
    for t in (0.05, 0.5, 3, 20):
        q = with_temperature(p, t)
        assert (q.argmax(1) == p.argmax(1)).all() and np.allclose(q.sum(1), 1)
    assert np.allclose(with_temperature(p, 1), p, atol=1e-6)


def test_temperature_at_the_edges():
    assert fit_temperature([0, 1], [[0.9, 0.1], [0.2, 0.8]]) == 1                  # all right: nothing to learn
    assert fit_temperature([1, 0], [[0.9, 0.1], [0.2, 0.8]]) == 20                 # all wrong: as unsure as can be
    assert 0.05 <= fit_temperature([0, 1, 0], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]) <= 20


# ---- abstention

def test_risk_coverage_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.4, 0.6]])
    curve = risk_coverage([0, 1, 0, 1], p)
    assert np.allclose(curve["coverage"], [0.25, 0.75, 1]) and np.allclose(curve["risk"], [0, 1 / 3, 0.25])
    assert np.allclose(curve["threshold"], [0.9, 0.8, 0.6]) and list(curve["errors"]) == [0, 1, 1]


def test_the_promised_risk_is_kept():
    rng = np.random.default_rng(0)
    big_labels, big = simulated(rng, 200_000, classes=2, sharpness=1.5, temperature=0.5)
    confidence, right = big.max(axis=1), big.argmax(axis=1) == big_labels
    long_run = lambda t: 1 - right[confidence >= t].mean() if (confidence >= t).any() else 0.0
    broken = naive_broken = promised = 0
    for _ in range(2000):
        rows = rng.integers(0, len(big), 250)
        found = safe_threshold(big_labels[rows], big[rows], 0.15)
        promised += found["answered"] > 0
        broken += long_run(found["threshold"]) > 0.15
        curve = risk_coverage(big_labels[rows], big[rows])
        fine = np.flatnonzero(curve["risk"] <= 0.15)
        naive_broken += len(fine) > 0 and long_run(curve["threshold"][fine[-1]]) > 0.15
    assert promised > 1500 and broken / 2000 <= 0.05 and naive_broken / 2000 > 0.3, (promised, broken, naive_broken)


def test_nothing_can_be_promised():
    found = safe_threshold([0, 1], [[0.9, 0.1], [0.2, 0.8]], 0.01)
    assert found["threshold"] == float("inf") and found["answered"] == 0 and found["coverage"] == 0


def test_the_first_failure_ends_the_search():
    p = np.array([[0.96, 0.04]] * 100 + [[0.85, 0.15]] * 400)
    labels = np.array([0] * 60 + [1] * 40 + [0] * 400)                       # bad where it is sure, and good on the whole
    assert safe_threshold(labels, p, 0.15, thresholds=(0.8,))["answered"] == 500
    assert safe_threshold(labels, p, 0.15, thresholds=(0.8, 0.95))["answered"] == 0
    assert safe_threshold(labels, p, 0.15, thresholds=(0.8, 0.999))["answered"] == 500      # no row there: passed over


def test_bound_equals_clopper_and_pearson():
    from scipy.stats import binomtest
    labels, p = np.array([0] * 95 + [1] * 5), np.tile([0.9, 0.1], (100, 1))
    found = safe_threshold(labels, p, 0.2, level=0.95, thresholds=(0.0,))
    assert np.isclose(found["bound"], binomtest(5, 100, alternative="less").proportion_ci(0.95, "exact").high)


# ---- behaviour

def by_word(texts):
    "A classifier that knows one word: positive where `good` is in the text"
    return np.array([[0.1, 0.9] if "good" in text else [0.8, 0.2] for text in texts])


def test_behaviour_of_a_classifier_that_knows_one_word():
    texts = fill("The {thing} was {word}.", thing=["soup", "film"], word=["good", "bad"])
    assert texts == ["The soup was good.", "The soup was bad.", "The film was good.", "The film was bad."]
    assert list(misses(by_word, texts[::2], 1)) == [False, False] and list(misses(by_word, texts[1::2], 1)) == [True, True]
    assert list(flips(by_word, texts[:2], ["The soup was godo.", "The soup was bda."])) == [True, False]
    assert list(wrong_way(by_word, ["good soup", "good film"], ["not good soup", "no film"], 1)) == [True, False]
    table = failure_table({"minimum": misses(by_word, texts, 1), "names": [False] * 3})
    assert [(row["failed"], row["n"]) for row in table] == [(2, 4), (0, 3)] and table[1]["interval"] == wilson_interval(0, 3)


def test_typos():
    texts = ["A wonderful evening", "no", "aaaa", "", "naïveté überall"] * 20
    once, again, other = with_typo(texts, 1), with_typo(texts, 1), with_typo(texts, 2)
    assert once == again != other
    for before, after in zip(texts, once):
        assert len(before) == len(after) and sorted(before) == sorted(after)
        assert sum(a != b for a, b in zip(before, after)) == (2 if len(before) > 4 else 0)
        assert all((a[0], a[-1]) == (b[0], b[-1]) for a, b in zip(before.split(), after.split()))


# ---- leaks

WORDS = [f"word{i}" for i in range(300)]


def some_texts(rng, n): return [" ".join(rng.choice(WORDS, 12)) for _ in range(n)]


@pytest.mark.parametrize("mark", ["#7", " ID", "\n", "  end"])
def test_a_planted_leak_is_on_top(mark):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    texts = [text + (mark if label == 2 and rng.random() < 0.5 else "") for text, label in zip(some_texts(rng, 300), labels)]
    first = telling_tokens(texts, labels, list("abc"))[0]
    assert first["label"] == "c" and first["share"] == 1 and first["p"] < 0.01 and first["interval"][0] > first["usual"]


def test_a_leak_in_the_place_of_a_word_is_found():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    texts = [f"{text} the" if label else f"the {text}" for text, label in zip(some_texts(rng, 300), labels)]
    assert {row["token"] for row in telling_tokens(texts, labels, list("ab"), top=2)} == {"^the", "the$"}


def test_shuffled_labels_raise_no_more_alarms_than_promised():
    rng, texts = np.random.default_rng(0), some_texts(np.random.default_rng(1), 120)
    alarms = sum(telling_tokens(texts, rng.integers(0, 2, 120), list("ab"), draws=60)[0]["p"] < 0.05 for _ in range(300))
    assert alarms / 300 < 0.08, alarms / 300


def test_bits_by_hand():
    row = telling_tokens(["a x", "b x", "a y", "b y"] * 5, [0, 1, 0, 1] * 5, ["first", "second"])[0]
    assert np.isclose(row["bits"], 1) and row["n"] == 10 and row["usual"] == 0.5


# ---- bad input

GOOD = ([0, 1], [[0.5, 0.5], [0.1, 0.9]])
SCORERS = [row_loss, calibration_bins, calibration_error, fit_temperature, risk_coverage, plot_reliability, plot_risk_coverage,
           lambda labels, p: safe_threshold(labels, p, 0.1)]


@pytest.mark.parametrize("labels, p", [
    ([], np.empty((0, 2))), ([0, 1], [[0.5, 0.6], [0.1, 0.9]]), ([0, 1], [[float("nan"), 1.0], [0.1, 0.9]]), ([0, 2], GOOD[1]), ([0], GOOD[1]),
    ([0, 1], [0.5, 0.9]), ([0, 1], [[1.0], [1.0]]), ([0, 1], [[0.5, 0.5], [1.0]]), ([0, -1], GOOD[1]), ([0.5, 1], GOOD[1]), ([0, 1], [[2.0, -1.0], [0.5, 0.5]])])
@pytest.mark.parametrize("score", SCORERS)
def test_scores_refuse(score, labels, p):
    with pytest.raises(EvaluateError) as error: score(labels, p)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("call", [
    lambda: with_temperature(GOOD[1], 0), lambda: with_temperature(GOOD[1], float("nan")), lambda: with_temperature([], 1),
    lambda: calibration_error(*GOOD, bins=0), lambda: safe_threshold(*GOOD, 0), lambda: safe_threshold(*GOOD, 0.1, level=95),
    lambda: calibration_null(np.empty((0, 2))), lambda: slice_table([], [], []), lambda: slice_table([0, 1], [0, 1], ["a"]), lambda: slice_table([0, 1], [0], ["a", "b"]),
    lambda: slice_table([0, 1], ["a", "b"], ["a", "b"]),
    lambda: slice_table([0, 1], [[0, 1], [1, 0]], ["a", "b"]), lambda: flips(by_word, ["a"], []), lambda: flips(by_word, [], []),
    lambda: misses(lambda texts: [[2.0, 3.0]], ["a"], 0), lambda: misses(lambda texts: [[0.5, 0.5]] * 3, ["a"], 0), lambda: misses(by_word, ["a"], 2),
    lambda: wrong_way(by_word, ["a"], ["b"], 5),
    lambda: failure_table({"empty": []}), lambda: fill("a {b}"), lambda: fill("a {b}", b="word"), lambda: telling_tokens(["a"], [0], ["x", "y"]),
    lambda: telling_tokens(["a", "b"], [0], ["x", "y"]), lambda: telling_tokens(["a"] * 9, [0] * 8 + [2], ["x", "y"]), lambda: telling_tokens(["a", None] * 9, [0, 1] * 9, ["x", "y"])])
def test_others_refuse(call):
    with pytest.raises(EvaluateError) as error: call()
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_one_class_is_legal():
    p = [[0.8, 0.2]] * 20
    assert calibration_error([0] * 20, p)["ece"] > 0 and risk_coverage([0] * 20, p)["risk"][-1] == 0 and fit_temperature([0] * 20, p) == 1


def test_pictures():
    import matplotlib
    matplotlib.use("agg")
    labels, p = simulated(np.random.default_rng(0), 200)
    for draw in (plot_reliability, plot_risk_coverage):
        ax = draw(labels, p, label="some")
        assert ax.get_xlabel() and ax.get_ylabel() and draw(labels, p, ax=ax, label="other") is ax
    matplotlib.pyplot.close("all")


def test_import_is_light():
    heavy = "torch transformers sklearn scipy matplotlib pandas datasets".split()
    code = f"import sys, tutorial_clf.trust, tutorial_clf.compare; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
