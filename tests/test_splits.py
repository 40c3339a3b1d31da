"""What chapter 02d does not show: wrong arguments, equality with slow versions written out, and the claims under other seeds."""
import subprocess
import sys

import numpy as np
import pytest

from tutorial_clf.checks import DataError, near_groups, tied_groups
from tutorial_clf.splits import join_groups, out_of_sample, split_by_time, suspect_labels


# Groups --------------------------------------------------------------------------------------------------------------

def slow_join(*groups):
    "Join rows as long as anything changes."
    number = list(range(len(groups[0])))
    for _ in number:
        for group in groups:
            for a in range(len(number)):
                for b in range(a):
                    if group[a] == group[b]: number[a] = number[b] = min(number[a], number[b])
    return number


def test_groups_are_joined_along_chains():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = [rng.integers(0, 9, 14) for _ in range(rng.integers(1, 4))]
        ours, slow = join_groups(*groups), slow_join(*groups)
        assert len(set(zip(ours.tolist(), slow))) == len(set(ours.tolist())) == len(set(slow)), groups
    assert len(set(join_groups(["a", "b", "c"], [1, 2, 3]).tolist())) == 3 and set(join_groups([7, 7, 7]).tolist()) == {0}
    with pytest.raises(DataError, match="differ in length"): join_groups([1, 2], [1])


def test_one_function_follows_ties():
    "`near_groups` and `join_groups` both stand on it; no tie at all leaves every row by itself."
    assert tied_groups([(0, 2), (2, 3)], 5).tolist() == [0, 1, 0, 0, 2] and tied_groups(np.zeros((0, 2), int), 3).tolist() == [0, 1, 2]
    texts = ["a soup that was cold", "another text altogether", "A soup, that was cold!", "a soup that was cold again"]
    assert len(set(near_groups(texts)[[0, 2, 3]])) == 1 and len(set(near_groups(texts))) == 2 and near_groups([]).tolist() == []


# Time ----------------------------------------------------------------------------------------------------------------

def test_later_rows_are_in_later_splits_and_no_moment_is_torn():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        times = rng.integers(0, rng.integers(20, 500), 300)
        parts = split_by_time(times)
        assert all(times[parts == part].max() < times[parts == part + 1].min() for part in (0, 1)), seed
        edges = np.cumsum(np.unique(times, return_counts=True)[1])       # where a cut between two moments can be
        for part, due in ((0, 180), (1, 225)): assert abs((parts <= part).sum() - due) == abs(edges - due).min(), (seed, part)
    assert np.bincount(split_by_time(rng.permutation(1000), (8, 1, 1))).tolist() == [800, 100, 100]
    assert split_by_time(range(4), (1, 1)).tolist() == [0, 0, 1, 1]


def test_times_may_be_words_or_dates():
    days = [f"2026-{month:02}-{day:02}" for month in (3, 1, 2) for day in (9, 1, 20, 28)]
    assert (split_by_time(days) == split_by_time(np.array(days, "datetime64[D]"))).all()
    assert (split_by_time(days) == split_by_time([int(day.replace("-", "")) for day in days])).all()


@pytest.mark.parametrize("times, said", [([1, None], "row 1: the time is missing"), (["a", "", "b"], "row 1: the time is missing"), ([float("nan"), 1.0], "row 0"),
                                         (np.array(["2026-01-01", "NaT"], "datetime64[D]"), "row 1"), ([3] * 9, "1 different times"), ([], "0 different times")], ids=str)
def test_times_are_refused_in_one_sentence(times, said):
    with pytest.raises(DataError) as error: split_by_time(times)
    assert said in str(error.value) and "; " in str(error.value) and "\n" not in str(error.value)


# Labels --------------------------------------------------------------------------------------------------------------

def slow_suspects(labels, p):
    "Confident learning row by row, as the paper states it: {row: suggested label}."
    n, classes = p.shape
    t = [np.mean([p[i, j] for i in range(n) if labels[i] == j]) if j in labels else np.inf for j in range(classes)]
    found, joint = {}, np.zeros((classes, classes), int)
    for i in range(n):
        confident = [j for j in range(classes) if p[i, j] >= t[j] - 1e-12]
        if not confident: continue
        best = max(confident, key=lambda j: p[i, j])
        joint[labels[i], best] += 1
        if best != labels[i]: found[i] = best
    return found, joint, t


def test_suspects_are_those_of_the_definition():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        n, classes = rng.integers(1, 60), rng.integers(2, 6)
        labels, p = rng.integers(0, classes, n), rng.dirichlet([0.7] * classes, n)
        expected, joint, thresholds = slow_suspects(labels.tolist(), p)
        found = suspect_labels(labels, p)
        assert dict(zip(found["rows"].tolist(), found["suggested"].tolist())) == expected and (found["joint"] == joint).all(), seed
        assert np.allclose(found["thresholds"], thresholds) and (np.diff(found["margins"]) >= 0).all()
        others = [p[i, labels[i]] - max(p[i, j] for j in range(classes) if j != labels[i]) for i in found["rows"]]
        assert np.allclose(found["margins"], others)


def test_nothing_is_suspect_where_labels_and_model_agree_and_nothing_given_is_changed():
    labels, p = np.arange(30) % 3, np.eye(3)[np.arange(30) % 3] * 0.8 + 0.2 / 3
    before = labels.copy(), p.copy()
    assert len(suspect_labels(labels, p)["rows"]) == 0 and suspect_labels(labels, p)["joint"].tolist() == [[10, 0, 0], [0, 10, 0], [0, 0, 10]]
    assert (before[0] == labels).all() and (before[1] == p).all()
    assert len(suspect_labels(np.zeros(0, int), np.zeros((0, 3)))["rows"]) == 0
    unused = suspect_labels([0, 0, 1, 1], [[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.1, 0.9, 0], [0, 0.8, 0.2]])          # nobody has label 2
    assert unused["rows"].tolist() == [] and unused["thresholds"][2] == np.inf


@pytest.mark.parametrize("labels, p, said", [
    ([0], [[0.5, 0.5], [1, 0]], "1 labels and probabilities of shape (2, 2)"), ([0, 1], [0.5, 0.5], "shape (2,)"), ([0.0], [[0.5, 0.5]], "no numbers from 0 to 1"),
    ([2], [[0.5, 0.5]], "no numbers from 0 to 1"), ([-1], [[0.5, 0.5]], "no numbers from 0 to 1"), ([0], [[0.5, 0.9]], "add up to one"),
    ([0], [[float("nan"), 1.0]], "add up to one"), ([0], [[1.5, -0.5]], "add up to one")], ids=str)
def test_probabilities_are_refused_in_one_sentence(labels, p, said):
    with pytest.raises(DataError) as error: suspect_labels(labels, p)
    assert said in str(error.value) and "; " in str(error.value) and "\n" not in str(error.value)


def topics(n, seed, classes=3):
    "Texts of ten words, about half of them of the topic."
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % classes
    words = [[f"w{label}x{rng.integers(40)}" if rng.random() < 0.5 else f"any{rng.integers(200)}" for _ in range(10)] for label in truth]
    return [" ".join(text) for text in words], truth


def test_planted_mistakes_are_found():
    for seed in range(3):
        texts, truth = topics(600, seed)
        rng, labels = np.random.default_rng(seed), truth.copy()
        rows = rng.choice(600, 60, replace=False)
        labels[rows] = (truth[rows] + rng.integers(1, 3, 60)) % 3
        found = suspect_labels(labels, out_of_sample(texts, labels, seed=seed))
        first = found["rows"][:60]
        assert np.isin(first, rows).mean() > 0.8 and (found["suggested"][:60] == truth[first]).mean() > 0.8, seed


def test_no_row_is_judged_by_a_model_that_has_seen_it_or_one_of_its_group():
    "Labels by coin: a model that had seen the row would know. Copies give it away, unless the groups are told."
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 5000, 12)) for _ in range(150)] * 2
    labels, group = np.tile(rng.integers(0, 2, 150), 2), np.tile(np.arange(150), 2)
    right = [(out_of_sample(texts, labels, groups).argmax(axis=1) == labels).mean() for groups in (None, group)]
    assert right[0] > 0.75 and 0.35 < right[1] < 0.65, right
    p = out_of_sample(texts, labels, group)
    assert np.allclose(p.sum(axis=1), 1) and (p == out_of_sample(texts, labels, group)).all() and (p != out_of_sample(texts, labels, group, seed=1)).any()


def test_probabilities_of_numbers_and_of_a_rare_class():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 50 + [1] * 50 + [2])
    p = out_of_sample(rng.normal(size=(101, 4)) + 3 * np.eye(4)[labels], labels)
    assert p.shape == (101, 3) and (p.argmax(axis=1) == labels)[:100].mean() > 0.9
    assert p[100, 2] == 0                                                # its one row was never in training when it was judged


@pytest.mark.parametrize("arguments", [dict(labels=[0] * 12), dict(folds=1), dict(groups=[0] * 12), dict(groups=[i % 2 for i in range(12)])], ids=str)
def test_folds_that_leave_a_single_class_are_refused(arguments):
    with pytest.raises(DataError, match="out_of_sample: .*; give more rows"):
        out_of_sample(**{"texts": [f"text {i}" for i in range(12)], "labels": [i % 2 for i in range(12)]} | arguments)


def test_importing_costs_no_torch():
    code = "import sys, tutorial_clf.splits; print({'torch', 'transformers', 'datasets', 'pandas', 'matplotlib', 'sklearn', 'scipy'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
