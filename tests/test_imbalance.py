"""Measures, weights, shares and thresholds against scikit-learn and closed forms; the bootstrap of the sweep by simulation; bad input."""
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, log_loss, precision_score, recall_score
from sklearn.utils.class_weight import compute_class_weight

from tutorial_clf import imbalance
from tutorial_clf.evaluate import EvaluateError
from tutorial_clf.imbalance import (REMEDIES, adjusted, balanced_batches, batch_head, best_threshold, card, class_weights, judged, linear_head,
                                    measures, pair, sweep, thin, verdicts)


def rows(n=300, rare=60, width=6, gap=1.0, seed=0):
    "Two Gaussian clouds: x (n, width), labels (n,)."
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [n - rare, rare])
    return rng.normal(size=(n, width)) + gap * labels[:, None] / width**0.5, labels


# ---- measures

def test_card_is_scikit_learns_at_the_share_of_the_rows():
    rng = np.random.default_rng(0)
    for ties in (False, True):
        labels, p = rng.integers(0, 2, 200), rng.random(200)
        if ties: p = p.round(1)
        said, found = p >= 0.4, card(labels, p, 0.4)
        assert np.isclose(found["recall"], recall_score(labels, said)) and np.isclose(found["precision"], precision_score(labels, said))
        assert np.isclose(found["f1"], f1_score(labels, said)) and np.isclose(found["balanced"], balanced_accuracy_score(labels, said))
        assert np.isclose(found["ap"], average_precision_score(labels, p)) and np.isclose(found["claimed"], p.sum() / labels.sum())
        if not ties: assert np.isclose(found["log_score"], -log_loss(labels, p))


def test_another_share_is_a_weight_on_the_rows():
    rng = np.random.default_rng(1)
    labels, p = rng.integers(0, 2, 300), rng.random(300)
    share = 1 / 51
    w = np.where(labels == 1, share / (labels == 1).sum(), (1 - share) / (labels == 0).sum())
    found, said = card(labels, p, 0.5, share), p >= 0.5
    assert np.isclose(found["f1"], f1_score(labels, said, sample_weight=w)) and np.isclose(found["precision"], precision_score(labels, said, sample_weight=w))
    assert np.isclose(found["ap"], average_precision_score(labels, p, sample_weight=w))
    assert np.isclose(found["log_score"], -log_loss(labels, p, sample_weight=w))


def test_nobody_is_called_rare():
    found = measures(0.0, 0.0, 0.1)
    assert found["precision"] == 0 and found["f1"] == 0 and found["balanced"] == 0.5
    assert card([0, 1], [0.1, 0.2])["precision"] == 0


# ---- weights, shares, thresholds

def test_class_weights_are_scikit_learns():
    labels = np.array([0, 0, 0, 1, 2, 2])
    assert np.allclose(class_weights(labels), compute_class_weight("balanced", classes=np.arange(3), y=labels))
    with pytest.raises(EvaluateError, match="Class 1 has no row"): class_weights([0, 2])
    with pytest.raises(EvaluateError, match="Class 2 has no row"): class_weights([0, 1], classes=3)


def test_adjusting_there_and_back():
    p = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    a, b = np.array([0.1, 0.2, 0.3, 0.4]), np.array([5.0, 1.0, 1.0, 2.0])      # shares need not sum to one
    assert np.allclose(adjusted(adjusted(p, a, b), b, a), p) and np.allclose(adjusted(p, a, a), p)
    logits = np.log(p) - np.log(a)                                             # Menon and others 2021
    assert (adjusted(p, a, np.ones(4)).argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize("p, prior, new, says", [
    ([[0.5, 0.5]], [1, 0], [1, 1], "above 0"), ([[0.5, 0.5]], [1, 1], [1, 1, 1], "new priors"), ([[0.7, 0.7]], [1, 1], [1, 1], "sum to one"),
    ([[0.5, 0.5]], [1, 1, 1], [1, 1, 1], "shape"), ([[0.5, 0.5]], [1, np.nan], [1, 1], "NaN")])
def test_shares_that_cannot_be(p, prior, new, says):
    with pytest.raises(EvaluateError, match=says): adjusted(np.array(p), prior, new)


@pytest.mark.parametrize("metric, score", [("f1", f1_score), ("balanced", balanced_accuracy_score)])
def test_best_threshold_has_no_better(metric, score):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = np.r_[0, 1, rng.integers(0, 2, 40)]
        p = (0.3 * labels + rng.random(42)).round(2)                           # with ties
        threshold = best_threshold(labels, p, metric)
        best = max(score(labels, p >= t) for t in np.r_[np.unique(p), 2])
        assert np.isclose(score(labels, p >= threshold), best)


def test_best_threshold_agrees_with_scikit_learns_tuned_classifier():
    from sklearn.model_selection import TunedThresholdClassifierCV
    x, labels = rows()
    held, held_labels = rows(seed=1)
    model = LogisticRegression().fit(x, labels)
    p = model.predict_proba(held)[:, 1]
    theirs = TunedThresholdClassifierCV(model, scoring="f1", cv="prefit", refit=False, thresholds=np.unique(p)).fit(held, held_labels)
    assert np.isclose(f1_score(held_labels, p >= best_threshold(held_labels, p)), theirs.best_score_)


def test_a_threshold_needs_both_classes_and_a_known_metric():
    with pytest.raises(EvaluateError, match="both classes"): best_threshold([1, 1], [0.1, 0.2])
    with pytest.raises(EvaluateError, match="no metric 'f2'; known are recall"): best_threshold([0, 1], [0.1, 0.2], "f2")
    with pytest.raises(EvaluateError, match="2 labels and 3 scores"): best_threshold([0, 1], [0.1, 0.2, 0.3])


# ---- batches

@pytest.mark.parametrize("counts", [(90, 10), (10, 90), (50, 7, 3), (5, 5)])
def test_balanced_batches(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    batches = balanced_batches(labels, 8, seed=3)
    share = 8 // len(counts)
    assert all((np.bincount(labels[b], minlength=len(counts)) == share).all() for b in batches)
    often = np.bincount(np.concatenate(batches), minlength=len(labels))
    for c in range(len(counts)): assert often[labels == c].min() >= 1 and np.ptp(often[labels == c]) <= 1
    assert batches == balanced_batches(labels, 8, seed=3) and batches != balanced_batches(labels, 8, seed=4)


def test_a_batch_that_is_too_small():
    with pytest.raises(EvaluateError, match="too small for one row of each of 3"): balanced_batches([0, 1, 2], 2, 0)


# ---- heads and remedies

def test_linear_head_with_cross_entropy_is_logistic_regression():
    from tutorial_clf.losses import cross_entropy
    x, labels = rows()
    for C in (0.1, 10.0):
        want = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(x, labels).predict_proba(x)[:, 1]
        assert np.allclose(linear_head(x, labels, cross_entropy, C)(x), want, atol=1e-5)


def test_batch_head_on_whole_batches_comes_close():
    x, labels = rows()
    want = LogisticRegression(C=10, max_iter=5000).fit(x, labels).predict_proba(x)[:, 1]
    assert np.allclose(batch_head(x, labels, [np.arange(len(labels))] * 600, C=10, rate=0.05)(x), want, atol=0.01)


def test_every_remedy_on_a_few_rows():
    pytest.importorskip("imblearn")
    x, labels = rows(60, 3)
    for name, remedy in REMEDIES.items():
        predict, threshold = remedy(x, labels, seed=1)
        again = remedy(x, labels, seed=1)[0](x)
        p = predict(x)
        assert p.shape == (60,) and (p >= 0).all() and (p <= 1).all() and 0 <= threshold <= 1, name
        assert np.array_equal(p, again), f"{name}: the same seed, other numbers"


def test_a_single_rare_row():
    x, labels = rows(40, 1)
    with pytest.raises(EvaluateError, match="only one"): imbalance.smote(x, labels)
    with pytest.raises(EvaluateError, match="single rare row"): imbalance.thresholded(x, labels)
    assert imbalance.logit_adjusted(x, labels)[0](x).shape == (40,)


# ---- thinning

def test_pair_and_thin(toy_task):
    task = toy_task()
    found = pair(task, "a bad thing", "☃ neither")
    texts, labels = found["train"]
    assert set(found) == {"train", "validation", "test"} and len(texts) == len(labels) == 16
    assert all(("book" in text) == bool(y) for text, y in zip(texts, labels))
    with pytest.raises(EvaluateError, match="no class 'x'; known are a bad thing"): pair(task, "x", "güt")
    with pytest.raises(EvaluateError, match="name two classes"): pair(task, "güt", "güt")


def test_thin():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [200, 50]))
    chosen = thin(labels, 10, 100, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [100, 10] and len(set(chosen)) == 110 and (np.diff(chosen) > 0).all()
    assert not np.array_equal(chosen, thin(labels, 10, 100, seed=2))
    for ratio, common, says in [(1, 100, "100 rows of class 1"), (10, 201, "201 rows of class 0"), (1000, 100, "at least one")]:
        with pytest.raises(EvaluateError, match=says): thin(labels, ratio, common)


# ---- the sweep

def test_a_cut_changes_no_order():
    data = [rows(600, 200, seed=0), rows(150, 60, seed=2), rows(200, 80, seed=1)]
    few = {name: REMEDIES[name] for name in ("nothing", "logit adjustment", "class weights")}
    found = sweep(*data, ratios=(5, 20), common=200, remedies=few, draws=3, redraws=30)
    assert all("than_threshold" not in row for row in found)
    assert [(row["ratio"], row["remedy"]) for row in found] == [(ratio, name) for ratio in (5, 20) for name in few]
    for row in found:
        if row["remedy"] == "nothing": assert row["f1"]["gain"] == 0 and row["f1"]["p"] == 1
        if row["remedy"] == "logit adjustment": assert row["C"] in imbalance.GRID and abs(row["ap"]["gain"]) < 1e-12 and row["ap"]["p"] == 1 and row["recall"]["gain"] > 0
    assert found == sweep(*data, ratios=(5, 20), common=200, remedies=few, draws=3, redraws=30)


def test_interval_covers_the_true_gain():
    "Ten draws with an effect of their own each, answers that differ at random: about 95 of 100 intervals hold the truth."
    held, far, runs = 0, 0, 300
    for run in range(runs):
        rng = np.random.default_rng(run)
        labels = np.repeat([0, 1], [150, 150])
        outcomes = {"nothing": [], "remedy": []}
        for draw in range(10):
            chance = np.clip(0.6 + 0.05 * rng.normal(size=2), 0, 1)            # recall of nothing and of the remedy in this draw: truth 0.6
            for name, c in zip(outcomes, chance): outcomes[name].append(((rng.random(300) < np.where(labels == 1, c, 0.1)).astype(float), 0.5))
        gain = judged(labels, outcomes, 0.5, redraws=200, seed=run)[1]["recall"]
        held += gain["interval"][0] <= 0 <= gain["interval"][1]
        far += gain["p"] < 0.05
    assert 0.90 <= held / runs <= 0.99, held / runs
    assert far / runs <= 0.08, far / runs


def test_verdicts_are_corrected_and_have_a_sign():
    def line(ratio, remedy, gain, p): return dict(ratio=ratio, remedy=remedy, f1=dict(gain=gain, p=p))
    found = verdicts([line(2, "nothing", 0, 1), line(2, "a", 0.1, 0.001), line(2, "b", -0.1, 0.001), line(2, "c", 0.1, 0.04), line(2, "d", 0.1, 0.03)], "f1")
    assert found == {(2, "a"): "better", (2, "b"): "worse", (2, "c"): "not shown", (2, "d"): "not shown"}
    both = [line(2, "a", 0.1, 0.001) | {"than_threshold": {"f1": dict(gain=-0.1, p=0.001)}}, line(2, "threshold", 0.2, 0.001) | {"than_threshold": {"f1": dict(gain=0.0, p=1.0)}}]
    assert verdicts(both, "f1", base="threshold") == {(2, "a"): "worse"}


def test_outcomes_that_cannot_be_compared():
    run = (np.array([0.1, 0.9]), 0.5)
    for outcomes in ({"a": [run, run]}, {"nothing": [run]}, {"nothing": [run, run], "a": [run]}):
        with pytest.raises(EvaluateError, match="the same draws, at least two"): judged([0, 1], outcomes, 0.1)
    with pytest.raises(EvaluateError, match="both classes"): card([1, 1], [0.1, 0.9])


def test_plot_has_a_line_for_each_measure():
    import matplotlib.pyplot as plt
    cell = dict(mean=0.5, gain=0.1, interval=[0.0, 0.2], p=0.5)
    ax = imbalance.plot_gain([dict(ratio=r, remedy="a", f1=cell, balanced=cell, ap=cell) for r in (2, 10)], "a")
    assert len(ax.get_lines()) == 4 and ax.get_xscale() == "log"
    plt.close(ax.figure)
