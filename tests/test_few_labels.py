"""Few labels: draws, contrastive loss, layers kept and trained, intervals over draws, active choice, and the labelling tool."""
import csv
import os
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from tutorial_clf import few_labels as fl
from tutorial_clf.checks import DataError
from tutorial_clf.data import load_task
from tutorial_clf.evaluate import EvaluateError
from tutorial_clf.pretrained import ModelError, embed, load_encoder, load_tokenizer

TEXTS = ["The soup was cold.", "My order has not arrived, where is it?", "ok", "I want my money back for the broken lamp, please, and soon."]


@pytest.fixture(scope="module")
def pair(): return load_tokenizer(), load_encoder()


# ---- draws

def test_draws_are_even_nested_and_repeatable():
    labels = np.array([0, 1, 2] * 9 + [0, 0])
    for draw in range(5):
        small, large = fl.few_rows(labels, 2, draw), fl.few_rows(labels, 5, draw)
        assert set(small) <= set(large) and len(set(large)) == 15
        assert np.bincount(labels[large]).tolist() == [5, 5, 5] and np.array_equal(large, fl.few_rows(labels, 5, draw))
    assert len({tuple(fl.few_rows(labels, 2, draw)) for draw in range(20)}) > 15


@pytest.mark.parametrize("labels, k", [([0, 0, 1], 2), ([0, 0, 1], 0), ([], 1)])
def test_draws_refuse_what_is_not_there(labels, k):
    with pytest.raises(DataError, match="smallest class has"): fl.few_rows(labels, k, 0)


def test_pairs_are_partners():
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(20), 3)
    for _ in range(20):
        rows = fl.pair_batch(labels, rng, classes=16)
        assert len(rows) == 32 and (labels[rows[::2]] == labels[rows[1::2]]).all() and (rows[::2] != rows[1::2]).all()
        assert len(set(labels[rows])) == 16
    assert sorted(fl.pair_batch([0, 1, 1], rng)) == [0, 0, 1, 2]


# ---- the loss

def test_contrastive_loss_by_hand():
    import torch
    v, labels = torch.randn(7, 5, generator=torch.manual_seed(0)), [0, 0, 1, 1, 1, 2, 0]
    z, losses = torch.nn.functional.normalize(v, dim=1).double().numpy(), []
    for i in range(7):
        s = {j: z[i] @ z[j] / 0.3 for j in range(7) if j != i}
        own = [s[j] - np.log(sum(map(np.exp, s.values()))) for j in s if labels[j] == labels[i]]
        if own: losses.append(-np.mean(own))
    assert np.isclose(np.mean(losses), fl.contrastive_loss(v, torch.tensor(labels), 0.3), atol=1e-5) and len(losses) == 6


def test_a_step_pulls_partners_together_and_pushes_strangers_apart():
    import torch
    for seed in range(10):
        v = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.manual_seed(seed)), dim=1).requires_grad_()
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        def gap(v):
            z = torch.nn.functional.normalize(v, dim=1)
            s, same = z @ z.T, labels[:, None] == labels
            return (s[same].sum() - 6) / 6 - s[~same].mean()
        fl.contrastive_loss(v, labels).backward()
        assert torch.isfinite(v.grad).all() and gap((v - 0.01 * v.grad).detach()) > gap(v.detach())


# ---- layers

@pytest.mark.parametrize("layers", [0, 4, 5])
def test_kept_layers_and_the_rest_are_the_encoder(pair, layers):
    upper, states = fl.upper_layers(pair[1], layers), fl.lower_states(TEXTS, pair, layers, batch_size=3)
    assert [state.shape[0] for state in states] == [len(ids) for ids in pair[0](TEXTS)["input_ids"]]
    assert np.allclose(fl.text_vectors(upper, states, batch_size=3), fl.unit(embed(TEXTS, pair)), atol=1e-5)
    assert len(upper.encoder.layer) == 6 - layers and len(pair[1].encoder.layer) == 6


@pytest.mark.parametrize("layers", [-1, 6])
def test_layers_that_are_not_there(pair, layers):
    with pytest.raises(ModelError, match="6 layers"): fl.upper_layers(pair[1], layers)


def test_other_families(checkpoint):
    for family in ("bert", "roberta"):
        model = load_tokenizer(checkpoint(family)), load_encoder(checkpoint(family))
        upper, states = fl.upper_layers(model[1], 1), fl.lower_states(["a good book", "the soup was bad"], model, 1)
        assert np.allclose(fl.text_vectors(upper, states), fl.unit(embed(["a good book", "the soup was bad"], model)), atol=1e-4)
    with pytest.raises(ModelError, match="encoder.layer"): fl.upper_layers(load_encoder(checkpoint("gpt2")), 1)


@pytest.mark.parametrize("classes", [None, 2])
def test_tuning_learns_and_repeats_and_leaves_the_start_alone(pair, classes):
    import torch
    texts, labels = TEXTS * 2, np.array([0, 1, 0, 1] * 2)
    upper, states = fl.upper_layers(pair[1], 5), fl.lower_states(texts, pair, 5)
    before = fl.text_vectors(upper, states)
    torch.rand(3)                                          # whatever was drawn before must not matter
    one, two = (fl.tune(upper, states, labels, classes, steps=8, seed=3) for _ in range(2))
    v, again = (fl.text_vectors(tuned[0], states) for tuned in (one, two))
    assert np.array_equal(v, again) and np.array_equal(before, fl.text_vectors(upper, states)) and not np.allclose(v, before)
    if classes: assert (one[1](fl.mean_vectors(one[0], states)).argmax(1).numpy() == labels).all()
    else: assert np.mean((v @ v.T)[labels[:, None] != labels]) < np.mean((before @ before.T)[labels[:, None] != labels]) - 0.1


# ---- all methods

@pytest.fixture(scope="module")
def bench(toy_task): return fl.prepare(toy_task(train=30, test=12), {name: f"It was {name}." for name in toy_task().label_names}, layers=5)


def test_every_method_answers_every_row(bench):
    right = fl.measure(bench, shots=(1, 2), draws=2, steps=2)
    assert {name for name, _ in right} == set(fl.METHODS)
    assert all(answers.shape == (1 if name in fl.ZERO else 2, 12) and answers.dtype == bool for (name, _), answers in right.items())
    table = fl.few_table(right)
    assert all(row["accuracy"] == pytest.approx(right[row["method"], row["per_class"]].mean()) for row in table)
    assert [row["method"] for row in table if row["than_reference"] is None] == ["logistic regression"] * 2
    assert max(map(len, fl.show_few(table).splitlines()[:11])) <= 100
    bare = bench._replace(described=bench.described[:0])
    assert not any("description" in name for name, _ in fl.measure(bare, shots=(1,), draws=2, steps=1))


def test_test_labels_are_only_for_scoring(bench):
    other = bench._replace(test_labels=np.zeros_like(bench.test_labels))
    rows = fl.few_rows(bench.labels, 2, 0)
    for method in fl.METHODS.values(): assert np.array_equal(method(bench, rows, 0, 2), method(other, rows, 0, 2))


def test_methods_see_only_the_labelled_rows(bench):
    rows = fl.few_rows(bench.labels, 2, 0)
    labels = np.full_like(bench.labels, -1)
    labels[rows] = bench.labels[rows]
    for method in fl.METHODS.values(): assert np.array_equal(method(bench, rows, 0, 2), method(bench._replace(labels=labels), rows, 0, 2))


def test_a_missing_description_is_named(toy_task):
    with pytest.raises(DataError, match="none for 'güt'"): fl.prepare(toy_task(), {"a bad thing": "bad", "☃ neither": "x"})


# ---- intervals over draws

def runs(rng, lead=0.0, draws=10, rows=250):
    hard, shared = rng.normal(size=rows), rng.normal(scale=0.3, size=(draws, 1))
    def method(lead):
        return lead + hard + shared + rng.normal(scale=0.2, size=(draws, 1)) + rng.normal(scale=0.5, size=rows) + rng.normal(size=(draws, rows)) > 0
    return method(lead), method(0.0)


def test_interval_over_draws_holds_zero_and_seldom_alarms():
    rng = np.random.default_rng(1)
    gaps = [fl.draw_gap(*runs(rng), repeats=300) for _ in range(250)]
    held, alarms = (np.mean([test(gap) for gap in gaps]) for test in (lambda g: g["interval"][0] <= 0 <= g["interval"][1], lambda g: g["p"] < 0.05))
    assert 0.92 < held and alarms == pytest.approx(1 - held, abs=0.005)


def test_gap_is_seen_and_signed():
    a, b = runs(np.random.default_rng(2), lead=1.2)
    gap, back = fl.draw_gap(a, b), fl.draw_gap(b, a)
    assert gap["p"] < 0.01 and gap["difference"] == pytest.approx(a.mean() - b.mean()) == pytest.approx(-back["difference"])
    same = fl.draw_gap(a, a)
    assert same["difference"] == 0 and same["p"] == 1
    one = fl.draw_gap(a[:1], b)                             # a method without draws
    assert one["difference"] == pytest.approx(a[:1].mean() - b.mean())


@pytest.mark.parametrize("a, b", [((3, 5), (3, 6)), ((3, 5), (2, 5)), ((1, 5), (1, 5))])
def test_gap_refuses_other_rows_and_draws(a, b):
    with pytest.raises(EvaluateError, match="shapes"): fl.draw_gap(np.ones(a), np.ones(b))


# ---- active choice

def test_rules_by_hand():
    p = np.array([[0.50, 0.48, 0.02], [0.40, 0.31, 0.29], [0.90, 0.05, 0.05]])
    rng = np.random.default_rng(0)
    assert fl.by_margin(p, p, p, 3, rng).tolist() == [0, 1, 2] and fl.by_entropy(p, p, p, 3, rng).tolist() == [1, 0, 2]
    at = np.deg2rad([0, 5, 80, 170, 175])
    plane = np.stack([np.cos(at), np.sin(at)], axis=1)
    assert fl.by_distance(None, plane, plane[:1], 2, rng).tolist() == [4, 2] and sorted(fl.by_chance(None, plane, plane, 5, rng)) == [0, 1, 2, 3, 4]
    assert len(set(fl.by_distance(None, plane, plane[:1], 9, rng))) == 5                    # never twice, however many are asked for
    assert fl.by_entropy(np.array([[1.0, 0.0], [0.5, 0.5]]), None, None, 1, rng).tolist() == [1]


@pytest.mark.parametrize("rule", fl.ASK)
def test_curve_asks_each_text_once_and_all_rules_begin_alike(rule):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    vectors = fl.unit(np.eye(6)[labels] + rng.normal(scale=0.5, size=(90, 6)))
    asked = []
    def watched(p, pool, labelled, n, rng):
        asked.append(len(labelled))
        assert len(pool) + len(labelled) == 60 and p.shape[0] == len(pool)
        return fl.ASK[rule](p, pool, labelled, n, rng)
    counts, right = fl.active_curve(vectors[:60], labels[:60], vectors[60:], labels[60:], watched, start=6, batch=5, budget=22, draw=1)
    assert counts.tolist() == [6, 11, 16, 21, 22] and asked == [6, 11, 16, 21] and right.shape == (5, 30)
    random = fl.active_curve(vectors[:60], labels[:60], vectors[60:], labels[60:], fl.by_chance, start=6, batch=5, budget=22, draw=1)[1]
    assert np.array_equal(right[0], random[0])


def test_curve_starts_with_two_classes_and_refuses_too_much():
    labels, vectors = np.array([0] * 30 + [1]), fl.unit(np.random.default_rng(0).normal(size=(31, 4)))
    counts, _ = fl.active_curve(vectors, labels, vectors, labels, fl.by_margin, start=2, budget=8)
    assert counts[0] in (2, 3)
    with pytest.raises(DataError, match="pool has 31"): fl.active_curve(vectors, labels, vectors, labels, fl.by_margin, budget=32)


# ---- the labelling tool

NASTY = ['<script>alert("x")</script> & $\\frac{1}{2}$', 'a "quoted", text', "two\nlines", "old\r\nlines", "=1+1", "汤 🍲", " blanks around ", "plain"]


def buttons(box): return {made.description: made for row in box.children[1:3] for made in row.children}


def test_clicking_through(tmp_path):
    tool = fl.Labeller([*NASTY, "plain"], ["yes", "no"], tmp_path / "labels.csv")
    box = tool.widget()
    press, page, bar = {name: made.click for name, made in buttons(box).items()}, box.children[0], box.children[3]
    assert list(press) == ["yes", "no", "skip", "undo"] and buttons(box)["undo"].disabled and bar.max == 8
    press["skip"]()
    assert tool.current == NASTY[1] and not (tmp_path / "labels.csv").exists()
    press["yes"]()
    assert rows_of(tool.path) == [[NASTY[1], "yes"]] and bar.value == 1 and "1 of 8" in page.value
    press["undo"]()
    assert rows_of(tool.path) == [] and tool.current == NASTY[1]
    press["undo"]()
    assert tool.current == NASTY[0] and buttons(box)["undo"].disabled
    for i in range(8): press[["yes", "no"][i % 2]]()
    assert tool.current is None and buttons(box)["yes"].disabled and buttons(box)["skip"].disabled and not buttons(box)["undo"].disabled
    assert rows_of(tool.path) == [[text, ["yes", "no"][i % 2]] for i, text in enumerate(NASTY)]
    task = load_task(tool.path)
    assert task.label_names == ["no", "yes"] and {text for rows in task.splits.values() for text in rows["text"]} == set(NASTY)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file: rows = list(csv.reader(file))
    assert rows[0] == ["text", "label"]
    return rows[1:]


def test_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "labels.csv"
    first = fl.Labeller(NASTY, ["yes", "no"], path)
    for name in ("yes", "no", "yes"): first.label(name)
    first.skip()
    again = fl.Labeller(NASTY, ["yes", "no"], path)
    assert again.done == first.done and again.current == NASTY[3]
    again.undo()
    assert again.current == NASTY[2] and len(rows_of(path)) == 2
    again.label("no")
    other = fl.Labeller(["something new"], ["yes", "no"], path)          # labels of other texts stay
    other.label("yes")
    assert [row[1] for row in rows_of(path)] == ["yes", "no", "no", "yes"]
    other.undo(), other.undo(), other.undo()
    assert len(rows_of(path)) == 3 and other.current == "something new"


def test_text_is_escaped_everywhere(tmp_path):
    tool = fl.Labeller(NASTY, ["<b>yes</b>", "no"], tmp_path / "labels.csv")
    class Tags(HTMLParser):
        seen, words = set(), ""
        def handle_starttag(self, tag, attrs): self.seen.add(tag)
        def handle_data(self, data): self.words += data
    for shown in (tool._repr_html_(), tool.widget().children[0].value):
        parser = Tags()
        parser.feed(shown)
        assert parser.seen <= {"div", "p"} and NASTY[0] in parser.words
    assert "[&lt;b&gt;yes&lt;/b&gt;] [no] [skip] [undo]" in tool._repr_html_() and "mathjax_ignore" in tool._repr_html_()


def test_a_label_that_could_not_be_saved_is_not_given(tmp_path, monkeypatch):
    tool = fl.Labeller(NASTY, ["yes", "no"], tmp_path / "labels.csv")
    tool.label("yes")
    box = tool.widget()
    def full(*_): raise OSError(28, "No space left on device <here>")
    monkeypatch.setattr(os, "replace", full)
    buttons(box)["no"].click()
    assert "No space left" in box.children[4].value and "&lt;here&gt;" in box.children[4].value
    assert tool.current == NASTY[1] and len(tool.done) == 1 and len(rows_of(tool.path)) == 1 and os.listdir(tmp_path) == ["labels.csv"]
    monkeypatch.undo()
    buttons(box)["no"].click()
    assert box.children[4].value == "" and len(rows_of(tool.path)) == 2


@pytest.mark.parametrize("texts, names, file, said", [
    (["a", " "], ["x", "y"], "l.csv", r"texts\[1\]"), (["a", None], ["x", "y"], "l.csv", r"texts\[1\]"), (["a\0"], ["x", "y"], "l.csv", "no text"),
    (["\ud800"], ["x", "y"], "l.csv", "half a character"), (["a"], ["x"], "l.csv", "label_names"), (["a"], ["x", "x"], "l.csv", "label_names"),
    (["a"], ["x", " y"], "l.csv", "label_names"), (["a"], ["x", "y"], "l.txt", "CSV"), (["a"], ["x", "y"], "no/l.csv", "folder that exists")])
def test_what_cannot_be_kept_is_refused(tmp_path, texts, names, file, said):
    with pytest.raises(DataError, match=said): fl.Labeller(texts, names, tmp_path / file)


def test_other_files_are_not_overwritten(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("name,age\nAnn,3\n")
    with pytest.raises(DataError, match="no label file"): fl.Labeller(["a"], ["x", "y"], path)
    path.write_text("text,label\na,z\n")
    with pytest.raises(DataError, match="row 1"): fl.Labeller(["a"], ["x", "y"], path)
    assert path.read_text() == "text,label\na,z\n"
    tool = fl.Labeller(["a"], ["x", "y"], tmp_path / "new.csv")
    with pytest.raises(DataError, match="no such label"): tool.label("z")
    tool.label("x")
    with pytest.raises(DataError, match="all texts are labelled"): tool.label("x")
    tool.skip()
    assert tool.current is None


def test_import_is_light(run_python):
    assert run_python("import sys, tutorial_clf.few_labels; print(*{'torch', 'transformers', 'sklearn', 'ipywidgets', 'scipy'} & set(sys.modules))").strip() == ""


def test_tool_needs_no_widgets_package_to_label(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    tool = fl.Labeller(["a", "b"], ["x", "y"], tmp_path / "labels.csv")
    tool.label("x")
    assert "1 of 2 labelled" in tool._repr_html_()
    with pytest.raises(ImportError): tool.widget()
