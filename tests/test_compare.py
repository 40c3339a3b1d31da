"""Paired bootstrap, power, several comparisons, several seeds: closed forms and simulation; bad input."""
import warnings
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import f1_score, log_loss, precision_score

from tutorial_clf.compare import _redrawn_runs, compare_methods, holm, paired_bootstrap, power, rows_to_see, seed_spread
from tutorial_clf.evaluate import EvaluateError, paired_test


def accuracy(labels, answers): return (labels == answers).mean()


# ---- paired bootstrap

def test_difference_of_accuracies_equals_its_closed_forms():
    labels, a, b = np.ones(400, int), np.ones(400, int), np.ones(400, int)
    a[:20], b[10:50] = 0, 0                                        # only B right 10 times, only A right 30 times, both wrong 10 times
    found, test = paired_bootstrap(labels, a, b, accuracy, draws=20_000), paired_test(labels, a, b)
    assert np.isclose(found["difference"], test["difference"]) and np.isclose(found["difference"], 20 / 400)
    half = 1.96 * (40 / 400 - 0.05**2) ** 0.5 / 20
    assert np.allclose(found["interval"], (0.05 - half, 0.05 + half), atol=0.004)
    assert np.isclose(found["p"], binomtest(10, 40).pvalue, atol=0.001)       # swapping at random is tossing the discordant coins
    turned = paired_bootstrap(labels, b, a, accuracy, draws=20_000)
    assert turned["difference"] == -found["difference"] and np.allclose(turned["interval"], [-x for x in found["interval"][::-1]])


def test_any_metric_of_sklearn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    a, b = (np.where(rng.random(200) < share, labels, rng.integers(0, 3, 200)) for share in (0.8, 0.4))
    macro = lambda y, answers: f1_score(y, answers, average="macro")
    found = paired_bootstrap(labels, a, b, macro, draws=200)
    assert np.isclose(found["a"], macro(labels, a)) and found["interval"][0] > 0 and found["p"] < 0.02
    p, q = rng.dirichlet(np.ones(3), (2, 200))
    assert np.isclose(paired_bootstrap(labels, p, q, log_loss, draws=50)["difference"], log_loss(labels, p) - log_loss(labels, q))


def test_equal_answers_are_no_evidence():
    found = paired_bootstrap([0, 1, 1], [0, 1, 0], [0, 1, 0], accuracy)
    assert found["p"] == 1 and found["interval"] == (0, 0) and found["difference"] == 0


def rare(n=60, seed=0):
    "Labels with three rows of class 1, and the answers of two classifiers, which name it three times each."
    labels, a, b = np.zeros((3, n), int)
    labels[:3], a[1:4], b[2:5] = 1, 1, 1
    return labels, a, b


def test_a_metric_is_left_out_where_it_is_not_defined(recwarn):
    "Precision without a positive answer: scikit-learn makes it 0 and warns; here such a draw is no draw, and nothing is said a thousand times."
    labels, a, b = rare()
    found = paired_bootstrap(labels, a, b, precision_score, draws=400)
    assert not recwarn.list and found["difference"] == pytest.approx(1 / 3)
    def far(y, answers):                                                      # a thousand where it is not defined: 5 % of the draws
        if not answers.any(): warnings.warn("no answer", UndefinedMetricWarning)
        return answers.mean() if answers.any() else 1000
    assert max(map(abs, paired_bootstrap(labels, a, b, far, draws=400)["interval"])) < 1
    def said(y, answers): return 0.0 if not answers.any() else 1000 * far(y, answers)                # its own number is taken as it is
    assert paired_bootstrap(labels, a, b, said, draws=400)["interval"][1] > 1
    assert paired_bootstrap([0] * 4 + [1] * 6, np.full((10, 2), 0.5), np.full((10, 2), 0.5), log_loss, draws=100)["difference"] == 0


def test_an_undefined_swap_is_no_evidence():
    "A alone names class 1: swap that row and B's precision is defined instead of A's; p must not come from the swaps that are left."
    labels, answers = np.array([1, 0, 1, 0] * 10), np.zeros(40)
    metric = lambda y, x: float("nan") if x.sum() not in (0, 20) else x.mean()
    a, b = (labels == 1).astype(int), np.zeros(40, int)
    with pytest.raises(EvaluateError, match="not defined"): paired_bootstrap(labels, a, b, metric, draws=50)
    some = lambda y, x: float("nan") if x.sum() not in (0, 20) and len(set(zip(y.tolist(), x.tolist()))) == 3 and y.sum() == 20 else x.mean()
    assert paired_bootstrap(labels, a, b, some, draws=99)["p"] == 1 and paired_bootstrap(labels, a, b, lambda y, x: x.mean(), draws=99)["p"] < 0.05


def test_a_metric_that_stops_is_refused_with_its_reason():
    with pytest.raises(EvaluateError, match="not defined on these rows: .*no predicted samples.*[^.]\\.$"): paired_bootstrap([0, 1, 1], [0, 0, 0], [0, 1, 1], precision_score)
    with pytest.raises(EvaluateError, match="not defined on these rows: .*only one label"): paired_bootstrap([1, 1], [[0.5, 0.5]] * 2, [[0.5, 0.5]] * 2, log_loss)


def test_paired_bootstrap_covers_and_raises_few_false_alarms():
    rng, held, alarms, n = np.random.default_rng(0), 0, 0, 150
    labels = np.ones(n, int)
    for _ in range(1000):
        hard = rng.normal(size=n)
        a, b = ((hard + rng.normal(scale=0.5, size=n) < 1).astype(int) for _ in range(2))
        found = paired_bootstrap(labels, a, b, accuracy, draws=200)
        held += found["interval"][0] <= 0 <= found["interval"][1]
        alarms += found["p"] < 0.05
    assert 0.93 <= held / 1000 <= 0.97 and alarms / 1000 < 0.065, (held / 1000, alarms / 1000)


# ---- power

@pytest.mark.parametrize("n, gap, disagreement", [(300, 0.013, 0.06), (300, 0.05, 0.1), (400, 0.05, 0.25), (1000, 0.03, 0.1), (2785, 0.013, 0.06), (150, 0.1, 0.3)])
def test_power_equals_simulation(n, gap, disagreement):
    drawn = np.random.default_rng(0).multinomial(n, [(disagreement + gap) / 2, (disagreement - gap) / 2, 1 - disagreement], size=20_000)
    s, d = np.minimum(drawn[:, 0], drawn[:, 1]), drawn[:, :2].sum(axis=1)
    seen = np.mean(2 * binom.cdf(s, d, 0.5) - binom.pmf(s, d, 0.5) < 0.05)
    assert abs(power(n, gap, disagreement) - seen) < 0.02, seen


def test_power_in_closed_form():
    assert np.isclose(power(500, 0, 0.1), 0.05) and np.isclose(power(500, 0, 0.1, level=0.01), 0.01)
    assert np.isclose(power(400, -0.05, 0.2), power(400, 0.05, 0.2)) and power(10**7, 0.01, 0.3) > 0.999
    assert np.isclose(power(400, 0.05, 0.25), NormalDist().cdf((0.05 * 20 - 1.959964 * 0.5) / (0.25 - 0.0025) ** 0.5), atol=1e-4)
    many = power([100, 1000], 0.05, 0.2)
    assert many.shape == (2,) and many[1] == power(1000, 0.05, 0.2) and np.ndim(power(100, 0.05, 0.2)) == 0


@pytest.mark.parametrize("gap, disagreement, wanted", [(0.013, 0.06, 0.8), (0.05, 0.25, 0.8), (-0.02, 0.1, 0.9), (0.1, 0.1, 0.8)])
def test_rows_to_see_is_where_power_gets_there(gap, disagreement, wanted):
    n = rows_to_see(gap, disagreement, wanted)
    assert power(n, gap, disagreement) >= wanted - 1e-9 and power(max(n - 2, 1), gap, disagreement) < wanted


# ---- several comparisons

def test_holm_by_hand():
    assert np.allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]) and np.allclose(holm([0.6, 0.7]), [1, 1]) and list(holm([0.2])) == [0.2]


def test_holm_keeps_the_family_quiet_and_sees_no_less_than_bonferroni():
    rng = np.random.default_rng(0)
    p = rng.random((5000, 10))
    assert 0.04 < np.mean([(holm(row) < 0.05).any() for row in p]) < 0.06
    for row in p[:200]: assert (holm(row) <= np.minimum(row * 10, 1) + 1e-12).all() and (holm(row) >= row).all()


# ---- seeds

@pytest.mark.parametrize("seeds, spread", [(3, 0.01), (5, 0.0), (5, 0.2), (10, 0.2)])
def test_seed_interval_covers(seeds, spread):
    rng, held, n = np.random.default_rng(0), 0, 300
    truth = NormalDist().cdf(1.2 / (1 + 0.25 + spread**2) ** 0.5)
    for _ in range(500):
        bar = 1.2 + rng.normal(size=(seeds, 1)) * spread                 # some seeds come out better
        right = rng.normal(size=n) + 0.5 * rng.normal(size=(seeds, n)) < bar
        low, high = seed_spread(right, draws=300)["interval"]
        held += low <= truth <= high
    assert 0.92 <= held / 500 <= 0.98, held / 500


@pytest.mark.parametrize("seeds_a, seeds_b", [(5, 5), (8, 1), (1, 1)])
def test_interval_of_methods_covers(seeds_a, seeds_b):
    rng, held, n = np.random.default_rng(0), 0, 200
    def runs(hard, seeds, skill, spread):
        return hard + 0.5 * rng.normal(size=(seeds, n)) < skill + rng.normal(size=(seeds, 1)) * spread
    def long_run(skill, spread): return NormalDist().cdf(skill / (1.25 + spread**2) ** 0.5)
    spread_b = 0.1 if seeds_b > 1 else 0
    spread_a = 0.1 if seeds_a > 1 else 0
    truth = long_run(1.2, spread_a) - long_run(0.9, spread_b)
    for _ in range(500):
        hard = rng.normal(size=n)
        low, high = compare_methods(runs(hard, seeds_a, 1.2, spread_a), runs(hard, seeds_b, 0.9, spread_b), draws=300)["interval"]
        held += low <= truth <= high
    assert 0.92 <= held / 500 <= 0.98, held / 500


def test_methods_with_one_run_each_are_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 300)) < np.array([[0.8], [0.7]])
    one, other = compare_methods([a], [b], draws=5000), paired_bootstrap(np.ones(300), a.astype(int), b.astype(int), accuracy, draws=5000)
    assert np.allclose(one["interval"], other["interval"], atol=0.01) and np.isclose(one["difference"], other["difference"])


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_redrawn_seeds_spread_as_their_mean_does(seeds):
    runs = np.linspace(0.2, 0.8, seeds)[:, None] * np.ones((1, 4))           # rows that do not matter
    spread = _redrawn_runs(runs, np.random.default_rng(0), 40_000)[:, 0].std()
    assert np.isclose(spread, runs[:, 0].std(ddof=1) / seeds**0.5, rtol=0.02)


def test_seeds_and_methods_redraw_the_same_rows():
    "The same draws for both functions: a method against one that is always wrong has the interval of the method alone."
    right = np.random.default_rng(0).random((4, 80)) < 0.7
    alone, against = seed_spread(right, draws=500, seed=3), compare_methods(right, np.zeros((1, 80)), draws=500, seed=3)
    assert against["difference"] == alone["accuracy"] and np.allclose(against["interval"], alone["interval"])


def test_seed_spread_by_hand():
    found = seed_spread([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert found["accuracy"] == 0.75 and np.isclose(found["between_seeds"], 0.5 / 2**0.5)
    assert np.isclose(found["from_rows"], np.std([1, 1, 0.5, 0.5], ddof=1) / 2)


@pytest.mark.parametrize("call", [
    lambda: paired_bootstrap([], [], [], accuracy), lambda: paired_bootstrap([0, 1], [0, 1], [0], accuracy), lambda: paired_bootstrap([0, 1], [0, 1], [[0.5, 0.5]] * 2, accuracy),
    lambda: paired_bootstrap([0, 1], [0, 1], [0, float("nan")], accuracy), lambda: paired_bootstrap([0, 1], [0, 1], [0, 1], accuracy, draws=0),
    lambda: paired_bootstrap([0, 1], [0, 1], [0, 1], accuracy, level=95), lambda: paired_bootstrap([0, 1], [0, 1], [0, 1], lambda y, a: float("nan")),
    lambda: power(100, 0.2, 0.1), lambda: power(100, 0.1, 0), lambda: power(100, 0.1, 1.5), lambda: power(100, 0.1, 0.2, level=5), lambda: power(0, 0.1, 0.2), lambda: power([5, -1], 0.1, 0.2),
    lambda: power(100, float("nan"), 0.2), lambda: power(None, 0.1, 0.2), lambda: power("many", 0.1, 0.2), lambda: power([[1, 2], [3]], 0.1, 0.2), lambda: power(100, None, 0.2), lambda: power(100, 0.1, "0.2"),
    lambda: power(100, 0.1, 0.2, level=None), lambda: rows_to_see(None, 0.1), lambda: rows_to_see(0.01, 0.1, wanted=None), lambda: compare_methods([[1, 0]], [[1, 0]], level=95), lambda: seed_spread([[1, 0]] * 2, draws=0), lambda: rows_to_see(0, 0.1), lambda: rows_to_see(0.01, 0.1, wanted=1), lambda: rows_to_see(0.01, 0.1, wanted=0.01),
    lambda: holm([]), lambda: holm([0.5, 1.5]), lambda: holm([0.5, float("nan")]), lambda: holm(["a"]),
    lambda: compare_methods([[1, 0]], [[1, 0, 1]]), lambda: compare_methods([], [[1, 0]]), lambda: compare_methods([[1, 2]], [[1, 0]]), lambda: compare_methods([[1, 0]], [["a", "b"]]),
    lambda: seed_spread([]), lambda: seed_spread([1, 0, 1]), lambda: seed_spread([[1, 0, 1]]), lambda: seed_spread([[0.5, float("nan")], [1, 0]]), lambda: seed_spread([[1, 0], [1]])])
def test_bad_input(call):
    with pytest.raises(EvaluateError) as error: call()
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
