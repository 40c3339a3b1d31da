"""Remedies for a fine-tune: the loop equals `fine_tune`, each remedy does what it says and nothing else, costs are counted, bad input."""
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tutorial_clf.data import DataError
from tutorial_clf.finetune import fine_tune
from tutorial_clf.improve import (Averaged, Synonyms, curve, distil, drop_words, ensemble, fewer, fit_power, forecast, improve, learn, masked, misspell,
                                  mixed, neighbours, pretrain_further, remedies, remember, say_forecast, search, soft_labels, word_head)
from tutorial_clf.knobs import deal, known_rows
from tutorial_clf.pretrained import load_encoder
from tutorial_clf.profile import load_profile


@pytest.fixture
def small(checkpoint, tmp_path):
    "Profile of a small random checkpoint; `dropout` sets its dropout."
    def make(family="bert", dropout=None, **more):
        folder = checkpoint(family)
        if dropout is not None:
            import shutil
            folder = shutil.copytree(folder, tmp_path / f"{family}-{dropout}")
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "classifier_dropout": dropout}))
        return load_profile("smoke", model=str(folder), **{"batch_size": 8, "epochs": 3, "learning_rate": 1e-3, "patience": 3} | more)
    return make


def sure(seconds=0.0, p=(0.2, 0.3, 0.5)): return SimpleNamespace(seconds=seconds, predict_proba=lambda texts: np.tile(p, (len(texts), 1)))


# ---- the loop

@pytest.mark.parametrize("more", [{}, {"freeze": "embeddings"}, {"layer_decay": 0.5, "weight_decay": 0.3}, {"precision": "bf16"}])
def test_with_nothing_asked_for_it_is_fine_tune(toy_task, small, more):
    task, profile = toy_task(train=30, validation=9, noise=True), small(dropout=0.0, **more)
    ours, theirs = learn(task, 42, profile), fine_tune(task, profile=profile)
    tolerance = 1e-4 if profile.precision == "float32" else 2e-2
    assert np.allclose(ours.losses, theirs.losses, atol=tolerance) and len(ours.losses) == 12
    assert np.allclose([row["validation_loss"] for row in ours.history], [row["validation_loss"] for row in theirs.history], atol=tolerance)
    assert np.allclose(ours.predict_proba(task.test["text"][:]), theirs.predict_proba(task.test["text"][:]), atol=tolerance)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert", "gpt2"])
def test_the_loop_takes_every_family(toy_task, small, family):
    task, profile = toy_task(train=16, validation=6), small(family, epochs=1)
    assert np.isfinite(learn(task, 1, profile, mix=0.5, smoothing=0.1, dropout=0.3).losses).all()


def test_the_seed_decides_and_the_best_weights_stay(toy_task, small):
    task, profile = toy_task(train=30, validation=9, noise=True), small(epochs=6, patience=2, learning_rate=5e-3)
    one, same, other = (learn(task, seed, profile) for seed in (1, 1, 2))
    assert one.losses == same.losses != other.losses
    losses = [row["validation_loss"] for row in one.history]
    p = one.predict_proba(task.validation["text"][:])
    assert -np.log(p[np.arange(9), task.validation["label"][:]]).mean() == pytest.approx(min(losses), abs=1e-5)
    assert len(losses) == 6 or len(losses) - 1 - losses.index(min(losses)) == 2


def test_texts_are_changed_anew_in_each_epoch_and_keep_their_places(toy_task, small):
    task, seen = toy_task(train=12, validation=6), []
    def change(text, rng):
        seen.append((text, rng.random()))
        return text
    clf = learn(task, 3, small(epochs=2), change=change)
    texts = [text for text, _ in seen]
    assert texts[:12] == texts[12:] == task.train["text"][:] and len({number for _, number in seen}) == 24
    assert clf.losses == learn(task, 3, small(epochs=2)).losses, "a change that changes nothing changes nothing"


def test_dropout_is_set_everywhere_and_only_where_asked(toy_task, small):
    def rates(**more): return {m.p for m in learn(toy_task(train=8, validation=3), 0, small(epochs=1), **more).model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates(dropout=0.25) == {0.25} and 0.25 not in rates()


@pytest.mark.parametrize("more, said", [(dict(texts=["a", "b"], targets=np.zeros((3, 3))), "2 texts"), (dict(texts=["a", "b"]), "shape"),
                                        (dict(texts=["a"], targets=np.zeros((1, 2))), "3 classes")])
def test_targets_that_do_not_fit_are_refused(toy_task, small, more, said):
    with pytest.raises(DataError, match=said): learn(toy_task(), 0, small(), **more)


def test_a_loss_that_is_no_number_ends_in_one_sentence(toy_task, small):
    with pytest.raises(DataError, match="lower learning_rate"): learn(toy_task(), 0, small(learning_rate=1e30, epochs=1))


# ---- more labels

@pytest.mark.parametrize("a, b, c", [(20, 1, 0.2), (3, 0.5, 0.05), (1.5, 0.3, 0.0), (0.4, 0.7, 0.1)])
def test_a_true_power_law_is_found_again(a, b, c):
    sizes = np.array([40, 80, 160, 320, 640])
    got = fit_power(sizes, a * sizes ** -float(b) + c)
    assert got[0] * 5000.0 ** -got[1] + got[2] == pytest.approx(a * 5000.0**-b + c, abs=2e-3)


@pytest.mark.parametrize("errors", [[0.3, 0.3, 0.3], [0.2, 0.3, 0.4], [0.0, 0.0, 0.0], [0.5, 0.1, 0.1]])
def test_errors_that_are_no_power_law_are_fitted_within_the_bounds(errors):
    a, b, c = fit_power([10, 20, 40], errors)
    assert a >= 0 and 0 <= b <= 2 and 0 <= c <= max(min(errors), 1e-9) and math.isfinite(a)


@pytest.mark.parametrize("sizes, errors", [([10, 20], [0.3, 0.2]), ([10, 10, 20], [0.3, 0.3, 0.2]), ([0, 10, 20], [0.3, 0.2, 0.1]), ([1, 2, 3], [0.1])])
def test_too_few_sizes_are_refused(sizes, errors):
    with pytest.raises(DataError, match="three different"): fit_power(sizes, errors)


def test_the_interval_of_a_forecast_holds_the_truth_mostly():
    "Rows that are independent at every size, a known law: the interval for the expected error holds it in nearly all of 40 worlds."
    sizes, held, rng = [50, 100, 200, 400], 400, np.random.default_rng(0)
    def error(n): return 2 * n**-0.6 + 0.08
    inside = 0
    for world in range(40):
        found = forecast({n: (rng.random(held) > error(n)).astype(int) for n in sizes}, 800, draws=60, seed=world)
        inside += found["interval"][0] <= error(800) <= found["interval"][1]
    assert 33 <= inside <= 40


def test_forecast_takes_texts_of_signs_and_says_what_it_found():
    rights = {n: "1" * k + "0" * (100 - k) for n, k in ((50, 60), (100, 70), (200, 75))}
    found = forecast(rights, 400, "1" * 77 + "0" * 23, draws=50)
    assert found["error"] == pytest.approx(0.225, abs=0.003) and found["nearest"] == 0.25 and found["seen"] == 0.23
    assert found["off"] == pytest.approx(found["error"] - 0.23) and json.loads(json.dumps(found)) == found
    assert "not shown wrong" in say_forecast(found | {"off_interval": [-0.1, 0.1]}) and "so the forecast was wrong" in say_forecast(found | {"off_interval": [0.01, 0.1]})
    assert "no help" in say_forecast(found | {"interval": [0.1, 0.3]}) and "promised" in say_forecast(found | {"interval": [0.1, 0.2]})


def test_fewer_labels_have_the_same_validation_rows_and_more_epochs(toy_task, monkeypatch):
    calls = []
    monkeypatch.setattr("tutorial_clf.improve.learn", lambda part, seed, profile: calls.append((part, profile.epochs)))
    task = toy_task(train=48, validation=12)
    for share in (1 / 16, 1 / 4, 1 / 2): fewer(task, 1, load_profile("smoke", epochs=4), share)
    assert [(len(part.train), len(part.validation), epochs) for part, epochs in calls] == [(3, 12, 16), (12, 12, 16), (24, 12, 8)]
    assert set(calls[0][0].train["text"]) <= set(task.train["text"])


# ---- search

def test_a_search_never_sees_the_held_out_fold_and_begins_with_the_start(toy_task, monkeypatch):
    part, calls = deal(toy_task(train=60, validation=30, noise=True), 3)[0].part, []
    def fake(inner, profile=None, **settings):
        calls.append((inner, settings))
        p = 1 / (1 + abs(settings["learning_rate"] - 3e-4) / 1e-4)                # the nearer to 3e-4, the surer of class 0
        return SimpleNamespace(predict_proba=lambda texts: np.tile([p, (1 - p) / 2, (1 - p) / 2], (len(texts), 1)))
    monkeypatch.setattr("tutorial_clf.finetune.fine_tune", fake)
    clf = search(part, 7, load_profile("fast", learning_rate=2e-4, epochs=5), trials=5)
    assert len(calls) == 6 and len(clf.searched) == 5 and clf.seconds > 0
    first = {key: clf.searched[0][key] for key in ("learning_rate", "epochs", "freeze", "layer_decay")}
    assert first == dict(learning_rate=2e-4, epochs=5, freeze="embeddings", layer_decay=1.0)
    inside, all_rows = (sorted(known_rows(some)["text"]) for some in (calls[0][0], part))
    assert set(inside) <= set(all_rows) and 40 <= len(inside) <= 48 and 55 <= len(all_rows) <= 65 and calls[-1][0] is part, "trials learn from three quarters, the winner from all"
    best = min(clf.searched, key=lambda t: t["loss"])
    assert {key: value for key, value in calls[-1][1].items() if key != "seed"} == {key: value for key, value in best.items() if key != "loss"}


# ---- augmentation and mixing

def test_words_are_dropped_at_the_share_and_the_text_is_never_empty():
    rng = np.random.default_rng(0)
    assert 870 < len(drop_words("word " * 1000, rng).split()) < 930 and drop_words("a b", rng, 0.0) == "a b"
    assert all(drop_words("one two", rng, 0.99) for _ in range(50)) and drop_words("", rng) == ""


def test_misspelling_moves_letters_and_loses_none():
    rng, text = np.random.default_rng(0), "the battery lasted, oddly enough, 1000 days in Straße 12"
    for _ in range(30):
        noisy = misspell(text, rng, 0.5)
        assert sorted(noisy.lower().replace("ss", "ß")) == sorted(text.lower()) and noisy.split()[0] == "the"
    assert misspell(text, rng, 0.0) == text


def test_neighbours_are_the_nearest_and_never_the_word_itself():
    near = neighbours(["good", "three", "zzqx"])
    assert set(near) == {"good", "three"} and all(len(words) == 3 and word not in words for word, words in near.items())
    matrix = torch.nn.functional.normalize(load_encoder("minilm").get_input_embeddings().weight.detach(), dim=1)
    from tutorial_clf.pretrained import load_tokenizer
    ids = load_tokenizer("minilm").get_vocab()
    sims = [float(matrix[ids["good"]] @ matrix[ids[word]]) for word in near["good"]]
    assert sims == sorted(sims, reverse=True) and sims[0] > float(matrix[ids["good"]] @ matrix[ids["violin"]])


def test_synonyms_replace_only_words_with_neighbours():
    change, rng = Synonyms(["The soup was good, three times."], share=1.0), np.random.default_rng(0)
    text = change("The soup was good, zzqx 12!", rng)
    assert text.endswith(", zzqx 12!") and text.split()[1] in change.near["soup"] and Synonyms([], share=1.0)("The soup", rng) == "The soup"


def test_mixing_is_linear_in_both():
    z, y = torch.randn(5, 3), torch.from_numpy(soft_labels([0, 1, 2, 0, 1], 3))
    partner = torch.tensor([4, 3, 2, 1, 0])
    logits, targets = mixed(z, y, 0.25, partner)
    assert torch.allclose(logits, 0.25 * z + 0.75 * z[partner]) and torch.allclose(targets.sum(1), torch.ones(5)) and targets[0].tolist() == [0.25, 0.75, 0.0]


# ---- further pretraining

def test_masking_chooses_its_shares_and_spares_special_tokens():
    rng, ids = np.random.default_rng(0), torch.randint(1000, 2000, (200, 100))
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0] = True
    inputs, labels = masked(ids, special, 103, 30_000, rng)
    chosen = labels >= 0
    assert not chosen[:, 0].any() and chosen[:, 1:].float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (labels[chosen] == ids[chosen]).all() and (inputs[~chosen] == ids[~chosen]).all()
    assert (inputs[chosen] == 103).float().mean().item() == pytest.approx(0.8, abs=0.03) and (inputs[chosen] == ids[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_the_word_head_begins_as_the_embedding_matrix(checkpoint):
    encoder = load_encoder(str(checkpoint("bert")))
    head, h = word_head(encoder), torch.randn(4, 32)
    assert torch.allclose(head(h), h @ encoder.get_input_embeddings().weight.T, atol=1e-5) and head[1].weight is encoder.get_input_embeddings().weight


def test_guessing_gets_better_respects_what_is_frozen_and_is_taken_over(toy_task, small):
    profile = small(learning_rate=1e-2, freeze="embeddings")
    texts = ["the soup was good and the bread was warm"] * 24
    encoder, losses = pretrain_further(texts, profile, epochs=20)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5]) and losses == pretrain_further(texts, profile, epochs=20)[1]
    before = load_encoder(profile.model)
    assert torch.equal(encoder.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert not torch.equal(encoder.encoder.layer[0].output.dense.weight, before.encoder.layer[0].output.dense.weight)
    clf = learn(toy_task(train=8, validation=3), 0, small(learning_rate=0.0, epochs=1), encoder=encoder)
    assert torch.equal(clf.model.base_model.encoder.layer[0].output.dense.weight, encoder.encoder.layer[0].output.dense.weight)


# ---- ensembles

def test_an_average_is_the_mean_and_its_cost_the_sum():
    pair = Averaged([sure(2.0, (0.2, 0.3, 0.5)), sure(3.0, (0.6, 0.3, 0.1))])
    assert pair.seconds == 5 and np.allclose(pair.predict_proba(["a", "b"]), [[0.4, 0.3, 0.3]] * 2)
    seeds = []
    ensemble(None, 42, lambda part, seed: seeds.append(seed) or sure())
    assert seeds == [42, 142, 242]


def test_a_student_learns_from_label_and_answer_and_pays_for_its_teacher(toy_task, monkeypatch):
    given = {}
    monkeypatch.setattr("tutorial_clf.improve.learn", lambda part, seed, profile, **more: given.update(more) or SimpleNamespace(seconds=0.0))
    task = toy_task(train=6, validation=3)
    clf = distil(task, 1, load_profile("smoke"), sure(100.0), ["new"])
    assert given["texts"] == [*task.train["text"], "new"] and clf.seconds >= 100
    assert np.allclose(given["targets"][0], (np.eye(3)[task.train["label"][0]] + [0.2, 0.3, 0.5]) / 2) and np.allclose(given["targets"][-1], [0.2, 0.3, 0.5])


def test_what_is_remembered_is_learned_once_for_rows_and_seed(toy_task):
    runs, (a, b, *_) = [], deal(toy_task(train=40, validation=20, noise=True), 3)
    way = remember(lambda part, seed: runs.append(seed) or sure())
    first = way(a.part, 1)
    assert way(a.part, 1) is first and way(b.part, 1) is not first and way(a.part, 2) is not first and runs == [1, 1, 2]


# ---- together

def test_costs_count_what_was_taken_over(toy_task):
    start = remember(lambda part, seed: sure(10.0))
    rows = improve(toy_task(train=30, validation=15), {"start": start, "three": lambda part, seed: ensemble(part, seed, start), "again": start})
    assert [round(row["seconds"]) for row in rows] == [30, 90, 30] and json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_every_remedy_runs_and_answers_every_row(toy_task, small, monkeypatch):
    monkeypatch.setattr("tutorial_clf.improve.search_space", None)
    task, profile = toy_task(train=36, validation=12), small(epochs=1)
    ways = remedies(profile, ["a good film", "a bad one"], trials=1)
    ways.pop("search, 1 trials")
    rows = improve(task, ways, folds=2)
    assert list(ways)[0] == "start" and len(ways) == 12 and all(len(row["right"]) == 48 and row["seconds"] > 0 and np.isfinite(row["loss"]) for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["three averaged"]["seconds"] > 2 * by_name["start"]["seconds"] * 0.5 and by_name["three in one"]["seconds"] > by_name["three averaged"]["seconds"]


def test_a_search_of_a_network_gives_a_classifier(toy_task, small):
    clf = search(toy_task(train=32, validation=12), 1, small(epochs=1), trials=2, space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3, log=True)})
    assert clf.predict_proba(["a good film"]).shape == (1, 3) and len(clf.searched) == 2 and clf.searched[0]["learning_rate"] == 1e-3


def test_a_curve_is_named_by_its_labels(toy_task, small):
    found = curve(toy_task(train=40, validation=20), small(epochs=1), shares=(1 / 4, 1 / 2, 1), folds=2)
    sizes = [int(n) for n in found]
    assert sizes == sorted(sizes) and len(found) == 3 and all(len(right) == 60 for right in found.values())
    assert forecast({int(n): right for n, right in found.items()}, 100, draws=5)["at"] == 100
