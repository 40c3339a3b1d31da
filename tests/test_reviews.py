"""The reviews written for this course: their form, their variety, their splits, and that they are neither trivial nor hopeless."""
import csv
import re
from collections import Counter

import numpy as np
import pytest

from tutorial_clf.data import load_task, near_duplicates, normalise
from tutorial_clf.profile import shipped

COLUMNS = ["text", "label", "split", "domain", "phenomenon", "rationale"]
PHENOMENA = {"plain", "negation", "contrast", "sarcasm", "comparison", "understatement", "mixed"}
SPLITS = {"train": 0.60, "validation": 0.15, "test": 0.25}


@pytest.fixture(scope="module")
def rows():
    with open(shipped("reviews.csv"), encoding="utf-8", newline="") as file: return list(csv.DictReader(file))


def line(rows, i):
    "Where row `i` begins, for somebody with the file open in an editor."
    return 2 + i + sum(row["text"].count("\n") for row in rows[:i])


def test_columns_and_values(rows):
    assert list(rows[0]) == COLUMNS
    assert len(rows) >= 700
    for i, row in enumerate(rows):
        where = f"reviews.csv, line {line(rows, i)}"
        assert None not in row and all(value and value == value.strip() for value in row.values()), f"{where}: an empty cell or blanks around one"
        assert row["label"] in {"negative", "positive"}, f"{where}: label {row['label']!r}"
        assert row["split"] in SPLITS, f"{where}: split {row['split']!r}"
        assert row["phenomenon"] in PHENOMENA, f"{where}: phenomenon {row['phenomenon']!r}"
    assert {row["phenomenon"] for row in rows} == PHENOMENA
    assert min(Counter(row["domain"] for row in rows).values()) >= 0.1 * len(rows)


def test_every_rationale_stands_in_its_text(rows):
    missing = [f"line {line(rows, i)}: {row['rationale']!r}" for i, row in enumerate(rows) if row["rationale"] not in row["text"]]
    assert not missing, missing[:5]


def test_no_two_texts_are_near_duplicates(rows):
    pairs = near_duplicates([row["text"] for row in rows])
    assert not len(pairs), [(line(rows, i), line(rows, j)) for i, j in pairs[:5]]


def test_openings_vary(rows):
    openings = Counter(" ".join(normalise(row["text"]).split()[:3]) for row in rows)
    opening, n = openings.most_common(1)[0]
    assert n <= 0.01 * len(rows), f"{n} of {len(rows)} texts begin with {opening!r}"


def test_no_slots_or_placeholders(rows):
    odd = [line(rows, i) for i, row in enumerate(rows) if re.search(r"\{|\}|<\w+>|\[\w+\]|�|lorem", row["text"])]
    assert not odd, odd


def test_splits_are_stratified_by_label_and_phenomenon(rows):
    sizes = Counter(row["split"] for row in rows)
    for split, share in SPLITS.items(): assert abs(sizes[split] / len(rows) - share) < 0.02, sizes
    for column in ("label", "phenomenon"):
        for value, n in Counter(row[column] for row in rows).items():
            for split, share in SPLITS.items():
                there = sum(row[column] == value and row["split"] == split for row in rows)
                # at least one row, and within four points of the share or two rows of it
                assert there >= 1 and abs(there - share * n) <= max(2, 0.04 * n), (column, value, split, there, n)


def test_no_test_text_was_seen_before(rows):
    task = load_task("reviews")                      # refuses exact and near duplicates across splits
    assert task.card["duplicates_across_splits"] == 0
    assert task.label_names == ["negative", "positive"]
    assert sum(map(len, task.splits.values())) == len(rows)
    texts = {split: {normalise(text) for text in part["text"]} for split, part in task.splits.items()}
    assert not texts["test"] & (texts["train"] | texts["validation"]) and not texts["validation"] & texts["train"]


def test_difficulty_on_the_training_split(rows):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    train = [row for row in rows if row["split"] == "train"]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(model, [row["text"] for row in train], [row["label"] for row in train], cv=folds)
    print(f"TF-IDF + logistic regression, 5 folds of the training split: {np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})")
    assert 0.65 <= np.mean(scores) <= 0.9
