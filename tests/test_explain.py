"""Explanations: a linear classifier whose reasons are known, captum, five families, overlap and faithfulness by hand, HTML, bad input."""
import json
from html.parser import HTMLParser
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tutorial_clf.data import load_task
from tutorial_clf.evaluate import EvaluateError
from tutorial_clf.explain import (MEASURES, METHODS, STAGES, _blank, _tokens, attention, attention_maps, chance_overlap, completeness,
                                  faithfulness, gradient_input, in_words, integrated_gradients, judge, log_odds, margin, marked_words,
                                  occlusion, overlap, random_scores, rank_correlation, rolled_out, rollout, scrambled, show_words,
                                  sizes, split_words, study, trust_table, vectors_of, without)
from tutorial_clf.finetune import Classifier
from tutorial_clf.pretrained import load_classifier, load_tokenizer
from tutorial_clf.runs import load_run

FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "modernbert")
TEXTS = ["the soup was good, and the bread was xylophone-warm", "a bad film", "bad"]
WEIGHTS = {"[PAD]": (0, 0), "good": (2, 1), "bad": (-2, 1), "not": (-1, 2), "film": (1, 4)}
HEAD = torch.tensor([1.0, -0.25])


class LinearWords(torch.nn.Module):
    "Logits (B, 2): 0, and the sum of the words' products with the head"
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.tensor(list(WEIGHTS.values()), dtype=torch.float32))
        self.device, self.config = torch.device("cpu"), SimpleNamespace(num_labels=2, id2label={0: "negative", 1: "positive"})

    def get_input_embeddings(self): return self.table

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None):
        total = ((self.table(input_ids) if inputs_embeds is None else inputs_embeds) @ HEAD).sum(1)
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(total), total], 1))


@pytest.fixture(scope="module")
def linear():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WEIGHTS)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return Classifier(LinearWords(), PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[PAD]", eos_token="[PAD]"), 16)


@pytest.fixture(scope="module")
def small(checkpoint):
    "family → Classifier with three classes on the small random checkpoint"
    def make(family, **more):
        torch.manual_seed(0)
        model = load_classifier(str(checkpoint(family)), ["bad", "good", "neither"])
        for name, weight in model.named_parameters():
            if "class" in name or "score" in name: torch.nn.init.normal_(weight, std=1.0)      # a new head is too small to tell anything
        return Classifier(model, load_tokenizer(str(checkpoint(family))), **{"max_length": 64} | more)
    return make


# ---- a classifier whose reasons are known

@pytest.mark.parametrize("method", [occlusion, gradient_input, integrated_gradients])
def test_linear_classifier_gets_weight_times_input(linear, method):
    texts = ["not good film", "bad", "film film unknown good"]
    for target, sign in (("positive", 1), ("negative", -1), (1, 1), ([1, "positive", np.int64(1)], 1)):
        for text, (words, scores) in zip(texts, method(linear, texts, target)):
            known = [float(torch.tensor(WEIGHTS.get(word, (0, 0)), dtype=torch.float32) @ HEAD) for word in words]
            assert words == text.split() and np.allclose(scores, sign * np.array(known), atol=1e-5)


def test_the_predicted_class_is_explained_by_default(linear):
    for method in (occlusion, gradient_input):
        (_, bad), (_, good) = method(linear, ["bad", "good"])
        assert bad[0] > 0 and good[0] > 0


# ---- log-odds, words

def test_log_odds_and_margin_agree_and_stay_finite():
    logits = torch.tensor([[1.0, -2, 0.5], [30, 0, 0], [0, 0, 90]], dtype=torch.float64)
    for target in range(3):
        assert np.allclose(log_odds(logits.softmax(1).numpy(), np.full(3, target))[:2], margin(logits, target)[:2], rtol=1e-6)
    assert np.isfinite(log_odds(np.array([[1.0, 0.0], [0.0, 1.0]]), [0, 0])).all()


def test_words_can_be_left_out_and_the_rest_stands():
    text = " One  two,\n three\u00a0four "
    assert split_words(text) == ["One", "two,", "three", "four"]
    assert without(text, set()) == text and without(text, {1}) == "One  three\u00a0four"
    assert without(text, {3}) == "One  two,\n three" and without(text, {0, 1, 2, 3}) == "" and without(text, range(3)) == "four"


# ---- the network

@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_explains_every_family(small, family):
    clf = small(family)
    for name, method in METHODS.items():
        found = method(clf, TEXTS)
        for text, (words, scores) in zip(TEXTS, found):
            assert words == split_words(text) and scores.shape == (len(words),) and np.isfinite(scores).all(), name
        alone = method(clf, TEXTS[:1])[0][1]
        assert name == "random" or np.allclose(alone, found[0][1], atol=1e-5), f"{name} depends on the other texts"
        if name != "random": assert abs(scores).max() > 0 and np.ptp(found[0][1]) > 0, f"{name} gives nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_integrated_gradients_are_complete(small, family):
    clf = small(family)
    total, rise = completeness(clf, TEXTS, 1, steps=400).T
    assert np.allclose(total, rise, atol=0.02 * abs(rise).max() + 1e-3) and abs(rise).max() > 0.01
    few = completeness(clf, TEXTS, 1, steps=2)
    assert np.allclose(few[:, 1], rise) and not np.allclose(few[:, 0], rise, atol=1e-4)


def test_equal_to_captum(small):
    attr = pytest.importorskip("captum.attr")
    clf, text = small("bert"), TEXTS[0]
    ids, word = _tokens(clf, text)
    start, end = vectors_of(clf, _blank(clf, ids, word >= 0)), vectors_of(clf, ids)
    def score(vectors): return margin(clf.model(inputs_embeds=vectors).logits, 2)
    def by_word(found): return np.bincount(word[word >= 0], found.detach().sum(-1)[0].numpy()[word >= 0], minlength=len(split_words(text)))
    assert np.allclose(by_word(attr.InputXGradient(score).attribute(end.clone().requires_grad_())), gradient_input(clf, [text], 2)[0][1], atol=1e-4)
    theirs = attr.IntegratedGradients(score).attribute(end, start, n_steps=8, method="riemann_middle")
    assert np.allclose(by_word(theirs), integrated_gradients(clf, [text], 2, steps=8)[0][1], atol=1e-4)
    def switched(on): return torch.tensor(log_odds(clf.predict_proba([without(text, set(np.flatnonzero(line == 0))) for line in on.numpy()]), [2] * len(on)))
    theirs = attr.FeatureAblation(switched).attribute(torch.ones(1, len(split_words(text))), baselines=0.0)[0].numpy()
    assert np.allclose(theirs, occlusion(clf, [text], 2)[0][1], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_know_their_words(small, family):
    clf, text = small(family), "the soup was good, and xylophone [SEP] film"
    ids, word = _tokens(clf, text)
    pieces = [clf.tokenizer.decode(ids[0][word == i]).strip().replace(" ", "") for i in range(len(split_words(text)))]
    assert pieces == [w.replace(" ", "") for w in split_words(text)]
    assert (word < 0).sum() == clf.tokenizer.num_special_tokens_to_add() and (np.diff(word[word >= 0]) >= 0).all()


def test_words_beyond_the_cut_get_nothing_from_inside(small):
    clf = small("bert", max_length=6)
    for method in (gradient_input, attention):
        scores = method(clf, ["the soup was good and warm there"])[0][1]
        assert (scores[4:] == 0).all() and (scores[:4] != 0).all()


def test_attention_is_the_models_own_and_leaves_the_model_as_it_was(small):
    clf = small("bert")
    ids, word = _tokens(clf, TEXTS[1])
    before, implementation = clf.predict_proba(TEXTS), clf.model.config._attn_implementation
    maps = attention_maps(clf, ids)
    assert maps.shape == (2, ids.shape[1], ids.shape[1]) and torch.allclose(maps.sum(-1), torch.ones(maps.shape[:2]), atol=1e-5)
    eager = load_classifier(str(clf.model.config._name_or_path), clf.label_names)
    eager.load_state_dict(clf.model.state_dict())
    eager.set_attn_implementation("eager")
    with torch.no_grad(): theirs = eager(ids, output_attentions=True).attentions
    assert torch.allclose(maps[-1], theirs[-1][0].mean(0), atol=1e-6)
    assert np.allclose(attention(clf, TEXTS[1:2])[0][1], [maps[-1, 0][word == i].sum() for i in range(3)], atol=1e-6)
    assert clf.model.config._attn_implementation == implementation and np.allclose(clf.predict_proba(TEXTS), before)


def test_rollout_by_hand():
    first, second = torch.tensor([[[1.0, 0, 0], [0, 0, 1], [0, 0, 1]], [[0.0, 1, 0], [0, 1, 0], [0, 0, 1]]])
    assert torch.allclose(rolled_out(torch.stack([first, second]))[0], torch.tensor([0.5, 0.25, 0.25]))
    maps = torch.rand(4, 7, 7).softmax(-1)
    assert torch.allclose(rolled_out(maps).sum(-1), torch.ones(7), atol=1e-5)


# ---- overlap

def test_marked_words():
    assert marked_words("The soup was good, I think", "good").tolist() == [False, False, False, True, False, False]
    assert marked_words("unfounded  joy", "found").tolist() == [True, False] and marked_words("a b c", "a b c").all()


def test_overlap_by_hand():
    explained = [(["a", "b", "c", "d"], [0.9, 0.1, 0.5, 0.2]), (["x", "y"], [-1.0, -2.0])]
    assert np.allclose(overlap(explained, ["a b c d", "x y"], ["b c", "y"]), [(1 / 2 + 2 / 4) / 2, 1 / 2])


@pytest.mark.parametrize("n, m", [(1, 1), (2, 1), (4, 1), (4, 2), (5, 3), (5, 5)])
def test_chance_is_the_mean_over_all_rankings(n, m):
    words = [str(i) for i in range(n)]
    text = " ".join(words)
    marked = " ".join(words[:m])
    every = [overlap([(words, order)], [text], [marked])[0] for order in permutations(range(n))]
    assert np.isclose(chance_overlap(marked_words(text, marked)), np.mean(every))


def test_every_rationale_of_the_reviews_marks_words():
    for rows in load_task("reviews").splits.values():
        for text, rationale in zip(rows["text"], rows["rationale"]): assert marked_words(text, rationale).any()


# ---- faithfulness

class Counter:
    "Not a network: the more 'good' and the fewer 'bad' there are, the more positive"
    label_names = ["negative", "positive"]
    def predict_proba(self, texts):
        p = 1 / (1 + np.exp(-np.array([t.split().count("good") - t.split().count("bad") for t in texts], float)))
        return np.stack([1 - p, p], 1)


def test_faithfulness_by_hand():
    def sigma(x): return 1 / (1 + np.exp(-x))
    found = faithfulness(Counter(), ["good bad film good"], [(["good", "bad", "film", "good"], [2, -1, 0, 1])], "positive", shares=(0.25, 0.5))
    assert np.allclose(found["comprehensiveness"], np.mean([sigma(1) - sigma(0), sigma(1) - sigma(-1)]))
    assert np.allclose(found["sufficiency"], np.mean([sigma(1) - sigma(1), sigma(1) - sigma(2)]))


def test_the_best_explanation_is_more_faithful_than_the_worst():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["good", "bad", "the", "film", "was"], 12)) for _ in range(40)]
    best = occlusion(Counter(), texts)
    worst = [(words, -scores) for words, scores in best]
    a, b = faithfulness(Counter(), texts, best), faithfulness(Counter(), texts, worst)
    assert a["comprehensiveness"].mean() > b["comprehensiveness"].mean() + 0.1 and a["sufficiency"].mean() < b["sufficiency"].mean() - 0.1


def test_shares_are_rounded_up_to_words():
    words = [f"w{i}" for i in range(10)]
    text, scores = " ".join(words), np.arange(10.0)
    asked = []
    class Spy(Counter):
        def predict_proba(self, texts): asked.extend(texts); return super().predict_proba(texts)
    faithfulness(Spy(), [text], [(words, scores)], 1, shares=(0.1, 0.3))
    assert [len(t.split()) for t in asked] == [10, 9, 1, 7, 3] and asked[2] == "w9" and asked[4] == "w7 w8 w9"


# ---- shuffled weights

def test_shuffling_keeps_the_numbers_and_the_original(small):
    clf = small("bert")
    before = {name: w.clone() for name, w in clf.model.named_parameters()}
    changed = {}
    for layers in (0, 1, 2, None):
        broken = scrambled(clf, layers, seed=1)
        changed[layers] = {name for name, w in broken.model.named_parameters() if w.ndim > 1 and not torch.equal(w, before[name])}
        assert all(torch.equal(w.flatten().sort().values, before[name].flatten().sort().values) for name, w in broken.model.named_parameters())
    assert all(torch.equal(w, before[name]) for name, w in clf.model.named_parameters())
    assert all("pooler" in name or "classifier" in name for name in changed[0]) and changed[0]
    assert changed[0] < changed[1] < changed[2] < changed[None]
    assert all("layer.1." in name for name in changed[1] - changed[0]) and all("layer.0." in name for name in changed[2] - changed[1])
    assert all("embeddings" in name for name in changed[None] - changed[2])
    with pytest.raises(EvaluateError, match="between 0 and 2"): scrambled(clf, 3)


def test_attention_does_not_know_the_head_and_gradients_do(small):
    clf = small("bert")
    broken = scrambled(clf, 0)
    for method in (attention, rollout): assert np.allclose(rank_correlation(method(clf, TEXTS[:2]), method(broken, TEXTS[:2])), 1)
    assert rank_correlation(occlusion(clf, TEXTS[:2], 1), occlusion(broken, TEXTS[:2], 1)).min() < 0.99


def test_rank_correlation():
    a, flat = [(["a", "b", "c"], [1.0, 2, 3])], [(["a", "b", "c"], [1.0, 1, 1])]
    assert rank_correlation(a, a) == [1] and rank_correlation(a, flat) == [0] and rank_correlation(a, [(["a", "b", "c"], [9, 5, 1])]) == [-1]


# ---- the study

@pytest.fixture(scope="module")
def found(small):
    texts = ["the soup was good and warm", "a bad film with a bad ending", "we would go there again", "nothing works"]
    clf = small("bert")
    labels = clf.predict_proba(texts).argmax(1)
    labels[3] = (labels[3] + 1) % 3
    return study(clf, texts, labels, ["good", "bad film", "go there", "nothing works"], draws=2, checked=3, seeds=(0, 1))


def test_study_is_complete_and_fits_into_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["right"] == [True, True, True, False] and list(found["methods"]) == list(METHODS)
    for values in found["methods"].values():
        assert all(len(values[measure]) == 4 for measure in MEASURES) and list(values["scrambled"]) == list(STAGES)
        assert all(np.shape(r) == (2, 3) for r in values["scrambled"].values())
    assert found["methods"]["random"]["overlap"][3] == 1 and np.allclose(sizes(found, "attention", "head"), 1)
    tests = judge(found, draws=100)
    assert len(tests) == 42 and {test["n"] for test in tests if test["measure"] == "overlap"} == {3}
    rows = trust_table(found, tests)
    assert [row["method"] for row in rows] == list(METHODS)[2:] and rows[0]["head"] == rows[1]["head"] == "no"


def planted(seed=0, n=120):
    "Results in which occlusion is good at everything, gradient x input better than chance in overlap alone, and the rest like chance"
    rng = np.random.default_rng(seed)
    methods = {}
    for name in METHODS:
        good, some = name == "occlusion", name == "gradient x input"
        methods[name] = dict(overlap=rng.normal(0.4 + 0.2 * (good or some), 0.2, n).tolist(), comprehensiveness=rng.normal(0.1 + 0.3 * good, 0.2, n).tolist(),
                             sufficiency=rng.normal(0.2 - 0.2 * good, 0.2, n).tolist(),
                             scrambled={stage: rng.uniform(-0.5, 0.5, (2, 30)).tolist() for stage in STAGES})
    return dict(right=[True] * n, methods=methods)


def test_verdicts_on_planted_results():
    results = planted()
    tests = judge(results)
    against = {(t["measure"], t["a"]): t["verdict"] for t in tests if t["b"] == "random"}
    assert [against[m, "occlusion"] for m in MEASURES] == ["better"] * 3
    assert [against[m, "gradient x input"] for m in MEASURES] == ["better", "not shown", "not shown"]
    rows = trust_table(results, tests)
    assert [row["method"] for row in rows if row["trust"] == "yes"] == ["occlusion"]
    assert in_words(rows, 120).startswith("On this classifier and these 120 texts, occlusion passed all tests; attention, rollout")
    long = planted()                                         # better than random numbers, and no better than the length of the words
    long["methods"]["word length"] = long["methods"]["occlusion"]
    row = next(row for row in trust_table(long, judge(long)) if row["method"] == "occlusion")
    assert [row[m] for m in MEASURES] == ["not shown"] * 3 and row["trust"] == "no"
    for stage in ("head", "all weights"):                   # one that shuffling does not touch fails, however good it is
        kept = planted()
        kept["methods"]["occlusion"]["scrambled"][stage] = np.ones((2, 30)).tolist()
        assert not [row for row in trust_table(kept, tests) if row["trust"] == "yes"]
    worse = planted()
    worse["methods"]["occlusion"]["sufficiency"] = (np.array(worse["methods"]["occlusion"]["sufficiency"]) + 0.5).tolist()
    assert next(t["verdict"] for t in judge(worse) if (t["measure"], t["a"], t["b"]) == ("sufficiency", "occlusion", "random")) == "worse"


def test_chance_passes_nothing():
    alarms = 0
    for seed in range(12):
        results = planted(seed, 60)
        results["methods"] |= {name: results["methods"]["attention"] for name in ("occlusion", "gradient x input")}
        alarms += any(t["verdict"] != "not shown" for t in judge(results, draws=1000))
    assert alarms <= 3


def test_the_record_can_be_judged():
    try: results = load_run("explain")["results"]
    except FileNotFoundError: pytest.skip("the run `explain` is not recorded yet")
    assert list(results["methods"]) == list(METHODS) and len(results["right"]) >= 100
    rows = {row["method"]: row for row in trust_table(results, judge(results))}
    assert rows["attention"]["trust"] == rows["rollout"]["trust"] == "no"            # the head comes after them


# ---- the view

class Page(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.attributes = [], "", []
        self.feed(page)
    def handle_starttag(self, tag, attributes): self.tags.append(tag); self.attributes += attributes
    def handle_data(self, data): self.text += data


def test_nothing_of_a_text_becomes_html():
    bad = ["<script>alert(1)</script>", '"><img/src=x onerror=alert(1)>', "&lt;", "'", "☃"]
    shown = show_words(bad, [3, -2, 1, 0, 0.5], label='<i>"good"</i>', title="<u>m</u>")
    page = Page(shown._repr_html_())
    assert set(page.tags) <= {"div", "b", "small", "span", "br", "sub"} and all(word in page.text for word in bad)
    assert {name for name, _ in page.attributes} <= {"role", "aria-label", "style"}
    assert dict(page.attributes)["aria-label"] == repr(shown) and '<i>"good"</i>' in page.text and "<u>m</u>" in page.text


def test_signs_survive_grey_print_and_have_a_text_alternative():
    shown = show_words(["good", "but", "bad", "film"], [2.0, 0.1, -1.0, 0], label="positive", title="occlusion")
    page = shown._repr_html_()
    assert "4px solid" in page and "2px dashed" in page and "<sub>+2.00</sub>" in page and "<sub>-1.00</sub>" in page
    assert "speaks for positive" in page and "speaks against it" in page
    assert repr(shown) == "occlusion: for positive: good +2.00, but +0.10; against: bad -1.00; all other words less."
    assert "against it" not in show_words(["a"], [1.0])._repr_html_() and "no word" in repr(show_words(["a", "b"], [0, 0]))


# ---- bad input

@pytest.mark.parametrize("call, says", [
    (lambda c: occlusion(c, "one text"), "list with at least one text"),
    (lambda c: occlusion(c, []), "list with at least one text"),
    (lambda c: occlusion(c, ["good", None]), "Row 1"),
    (lambda c: occlusion(c, ["good", " \n"]), "has no word"),
    (lambda c: occlusion(c, ["good"], "wonderful"), "'wonderful' is no class"),
    (lambda c: occlusion(c, ["good"], 2), "2 is no class"),
    (lambda c: occlusion(c, ["good"], -1), "-1 is no class"),
    (lambda c: occlusion(c, ["good"], 0.5), "0.5 is no class"),
    (lambda c: occlusion(c, ["good", "bad"], ["positive"]), "2 texts and 1 targets"),
    (lambda c: attention(c, ["good"]), "use occlusion"),
    (lambda c: integrated_gradients(c, ["good"]), "use occlusion"),
    (lambda c: integrated_gradients(c, ["good"], steps=0), "steps = 0"),
    (lambda c: overlap([(["good"], [1.0])], ["good"], ["bad"]), "'bad' does not stand"),
    (lambda c: overlap([(["good"], [1.0])], ["good"], [None]), "does not stand"),
    (lambda c: overlap([(["good"], [1.0])], ["good"], []), "1 texts and 0 rationales"),
    (lambda c: overlap([(["good"], [1.0])], ["good film"], ["good"]), "Explanation 0"),
    (lambda c: overlap([(["good"], [np.nan])], ["good"], ["good"]), "Explanation 0"),
    (lambda c: overlap([], ["good"], ["good"]), "0 explanations and 1 texts"),
    (lambda c: faithfulness(c, ["good"], [(["good"], [1.0])], shares=(0, 0.5)), "shares"),
    (lambda c: faithfulness(c, ["good"], [(["good"], [1.0, 2.0])]), "Explanation 0"),
    (lambda c: chance_overlap(np.zeros(4, bool)), "No word is marked"),
    (lambda c: show_words(["a", "b"], [1.0]), "2 words"),
    (lambda c: show_words([], []), "0 words"),
    (lambda c: show_words(["a", "b"], [1.0, np.inf]), "word 1"),
    (lambda c: random_scores(c, ["  "]), "has no word"),
])
def test_bad_input_ends_in_one_sentence(call, says):
    with pytest.raises(EvaluateError, match=says) as error: call(Counter())
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_no_right_answer_no_judgement():
    results = planted()
    results["right"] = [False] * len(results["right"])
    with pytest.raises(EvaluateError, match="answered right"): judge(results)
