"""The texts written for this course: form, variety, splits, the second reading, and what their cards say of them."""
import csv
import os
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from readme import cross_validated, distinct_words      # .ci/readme.py, which writes the cards

from tutorial_clf.data import load_task, near_duplicates, normalise
from tutorial_clf.profile import shipped

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("TUTORIAL_CLF_REAL_DATA") or ROOT.parent / "shared" / "data")
PHENOMENA = {"plain", "negation", "contrast", "sarcasm", "comparison", "understatement", "mixed"}
TOPICS = {"politics", "business", "science", "sport"}
SPLITS = ("train", "validation", "test")
INTENTS = {"order_status", "delivery_options", "change_order", "cancel_order", "return_item", "refund_status", "damaged_item", "wrong_item",
           "payment_failed", "unexpected_charge", "login_problem", "update_account", "product_question", "stock_question", "invoice_copy"}
# file → column → what may stand there (None: any text)
COLUMNS = {
    "reviews": dict(text=None, label={"negative", "neutral", "positive"}, split=set(SPLITS),
                    domain={"films", "books", "food", "gadgets", "places"}, phenomenon=PHENOMENA, rationale=None),
    "messages": dict(text=None, label={"ham", "spam"}, split=set(SPLITS), kind=set(
        "chat work notice offer group odd prize delivery bank loan job invest advert impostor polite".split())),
    "intents": dict(text=None, label=INTENTS, split=set(SPLITS), kind={"inquiry", "request", "complaint"}),
    "headlines": dict(text=None, label=TOPICS, split=set(SPLITS), second=TOPICS | {""}),
}
STRATA = {"reviews": ("label", "phenomenon"), "messages": ("label", "kind"), "intents": ("label", "kind"), "headlines": ("label", "second")}
SHARES = {"reviews": (1000, 200, 400), "messages": (560, 120, 320), "intents": (60, 15, 25), "headlines": (60, 15, 25)}
each_file = pytest.mark.parametrize("name", COLUMNS)


@lru_cache
def rows_of(name):
    with open(shipped(f"{name}.csv"), encoding="utf-8", newline="") as file: return list(csv.DictReader(file))


def place(name, i):
    "Where row `i` stands, for somebody with the file open in an editor: no text holds a line break."
    return f"{name}.csv, line {i + 2}"


@each_file
def test_columns_and_values(name):
    rows, columns = rows_of(name), COLUMNS[name]
    assert list(rows[0]) == list(columns)
    for i, row in enumerate(rows):
        assert None not in row and None not in row.values(), f"{place(name, i)}: wrong number of fields"
        for column, allowed in columns.items():
            value = row[column]
            assert value == value.strip() and "\n" not in value, f"{place(name, i)}: blanks around {column}, or a line break in it"
            assert value in allowed if allowed else value, f"{place(name, i)}: {column} {value!r}"
    for column, allowed in columns.items():
        if allowed: assert {row[column] for row in rows} == allowed, f"{name}.csv: not every {column} occurs"


def test_reviews_are_complete():
    rows = rows_of("reviews")
    polar = [row for row in rows if row["label"] != "neutral"]
    assert Counter(row["label"] for row in rows) == {"negative": 800, "positive": 800, "neutral": 300}
    assert Counter(row["split"] for row in polar) == {"train": 1000, "validation": 200, "test": 400}
    for those in (polar, rows): assert sum(row["phenomenon"] != "plain" for row in those) >= 0.6 * len(those)
    for label in ("negative", "neutral", "positive"):
        domains = Counter(row["domain"] for row in rows if row["label"] == label)
        assert min(domains.values()) >= 0.15 * domains.total(), (label, domains)
    missing = [f"{place('reviews', i)}: {row['rationale']!r}" for i, row in enumerate(rows) if row["rationale"] not in row["text"]]
    assert not missing, missing[:5]


def test_other_files_are_complete():
    messages, intents, headlines = map(rows_of, ("messages", "intents", "headlines"))
    assert Counter(row["label"] for row in messages) == {"ham": 875, "spam": 125}
    sizes = Counter(row["label"] for row in intents)
    assert 950 <= len(intents) <= 1100 and 40 <= min(sizes.values()) and max(sizes.values()) <= 110, sizes
    assert len(headlines) == 800 and all(190 <= n <= 210 for n in Counter(row["label"] for row in headlines).values())
    assert all(row["second"] != row["label"] for row in headlines) and sum(row["second"] != "" for row in headlines) >= 0.2 * len(headlines)
    assert len({(row["label"], row["second"]) for row in headlines}) == 16, "a pair of topics is missing"
    for label in INTENTS: assert len({row["kind"] for row in intents if row["label"] == label}) >= 2, f"{label}: all of one kind"


@each_file
def test_no_two_texts_are_near_duplicates(name):
    pairs = near_duplicates([row["text"] for row in rows_of(name)])
    assert not len(pairs), [(place(name, i), place(name, j)) for i, j in pairs[:5]]


@each_file
def test_openings_vary(name):
    rows = rows_of(name)
    opening, n = Counter(" ".join(normalise(row["text"]).split()[:3]) for row in rows).most_common(1)[0]
    assert n <= 0.01 * len(rows), f"{n} of {len(rows)} texts begin with {opening!r}"


@each_file
def test_no_slots_or_placeholders(name):
    odd = [place(name, i) for i, row in enumerate(rows_of(name)) if re.search(r"\{|\}|<\w+>|\[\w+\]|�|lorem", row["text"])]
    assert not odd, odd


@each_file
def test_splits_are_stratified(name):
    rows = rows_of(name)
    sizes, shares = Counter(row["split"] for row in rows), dict(zip(SPLITS, np.array(SHARES[name]) / sum(SHARES[name])))
    for split, share in shares.items(): assert abs(sizes[split] / len(rows) - share) < 0.02, sizes
    for column in STRATA[name]:
        for value, n in Counter(row[column] for row in rows).items():
            for split, share in shares.items():
                there = sum(row[column] == value and row["split"] == split for row in rows)
                # at least one row, and within four points of the share or two rows of it
                assert there >= 1 and abs(there - share * n) <= max(2, 0.04 * n), (column, value, split, there, n)


@pytest.mark.parametrize("task", ("reviews", "reviews3", "messages", "intents", "headlines"))
def test_no_test_text_was_seen_before(task):
    loaded = load_task(task)                         # refuses exact and near duplicates across splits
    rows = [row for row in rows_of(task.removesuffix("3")) if task != "reviews" or row["label"] != "neutral"]
    assert loaded.card["duplicates_across_splits"] == 0 and not loaded.card.get("warnings")
    assert set(loaded.label_names) == {row["label"] for row in rows}
    assert {(text, loaded.label_names[label], split) for split, part in loaded.splits.items() for text, label in zip(part["text"], part["label"])} \
        == {(row["text"], row["label"], row["split"]) for row in rows}


@each_file
def test_vocabulary_is_as_rich_as_that_of_real_sentences(name):
    if not (REAL / "sst2.train").is_file(): pytest.skip(f"{REAL.name}/sst2.train is not there: set TUTORIAL_CLF_REAL_DATA to the folder with it")
    real = [line.split(" ", 1)[1] for line in (REAL / "sst2.train").read_text(encoding="latin-1").splitlines()]
    ours = [row["text"] for row in rows_of(name)]
    n = min(10_000, sum(len(normalise(text).split()) for text in ours))
    ratio = distinct_words(ours, n) / distinct_words(real, n)
    print(f"{name}: {distinct_words(ours, n):.0f} different words in {n}, {ratio:.2f} times as many as in SST-2 sentences")
    assert ratio >= 0.8, f"{name}.csv uses few different words: {ratio:.2f} times as many as SST-2 sentences in {n} words"


def test_reviews_are_neither_trivial_nor_hopeless():
    scores = cross_validated("reviews")
    print(f"TF-IDF + logistic regression, 5 folds of the training split: {np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})")
    assert 0.65 <= np.mean(scores) <= 0.9
