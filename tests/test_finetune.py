"""`fine_tune` and `Classifier`: what is repeated exactly, what is kept, what survives the disk, and what is refused."""
import json
import os
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, POSITIONS

from tutorial_clf import finetune
from tutorial_clf.finetune import Classifier, fine_tune, plot_history
from tutorial_clf.pretrained import ModelError, load_classifier, load_tokenizer
from tutorial_clf.profile import ProfileError

TEXTS = ["the soup was good", "bad", "a book of the year, by far the best book and there is no other like it", "", "☃ 漢字 \x00 zzzz"]
SETTINGS = dict(train_rows=0, eval_rows=0, batch_size=8, epochs=1, learning_rate=1e-3, max_length=64)
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def train(checkpoint, toy_task):
    "train(family, task=None, **overrides) → Classifier, fine-tuned from the family's small checkpoint."
    def run(family="bert", task=None, **overrides):
        return fine_tune(task or toy_task(), model=str(checkpoint(family)), profile="smoke", **SETTINGS | overrides)
    return run


@pytest.fixture(scope="module")
def trained(train):
    "family → one Classifier for all tests that only look at it."
    made = {}
    def get(family="bert"):
        if family not in made: made[family] = train(family)
        return made[family]
    return get


def weights(classifier): return classifier.model.state_dict()


def same_weights(one, other): return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


# ---------------------------------------------------------------- families

@each_family
def test_family_from_training_to_pipeline(family, trained, tmp_path):
    import transformers
    classifier = trained(family)
    texts = [text for text in TEXTS if text]
    probabilities = classifier.predict_proba(texts)
    assert probabilities.shape == (4, 3) and np.allclose(probabilities.sum(1), 1, atol=1e-5) and probabilities.std(0).max() > 1e-4
    folder = classifier.save(tmp_path / "saved")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}
    loaded = Classifier.load(folder)
    assert loaded.label_names == classifier.label_names == ["a bad thing", "güt", "☃ neither"]
    assert np.abs(loaded.predict_proba(texts) - probabilities).max() < 1e-6 and loaded.max_length == classifier.max_length == 64
    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    for answers in (pipe(texts, truncation=True), pipe(texts, truncation=True, batch_size=4)):
        assert [a["label"] for a in answers] == classifier.predict(texts)
        assert np.allclose([a["score"] for a in answers], probabilities.max(1), atol=1e-5)
    assert np.isclose(pipe("good " * 500, truncation=True)[0]["score"], classifier.predict_proba(["good " * 500]).max(), atol=1e-5)


@each_family
def test_a_text_gets_the_same_answer_in_any_company(family, trained):
    classifier = trained(family)
    texts = [text for text in TEXTS if text] * 3
    together = classifier.predict_proba(texts)
    for text, row in zip(texts[:4], together): assert np.abs(classifier.predict_proba([text])[0] - row).max() < 1e-5


@each_family
def test_empty_text_has_an_answer(family, trained):
    alone, together = trained(family).predict_proba([""]), trained(family).predict_proba(["", "a book of the year"])
    assert np.isfinite(alone).all() and np.abs(alone[0] - together[0]).max() < 1e-5


# ---------------------------------------------------------------- training

def test_same_seed_same_weights_other_seed_others(train, trained):
    assert same_weights(train(), trained())
    assert train().history == trained().history
    assert not same_weights(train(seed=7), trained())


def test_it_learns(train, toy_task):
    classifier = train(task=toy_task(train=48), epochs=10, patience=10, learning_rate=5e-3)
    assert classifier.history[-1]["train_loss"] < classifier.history[0]["train_loss"] / 2
    assert classifier.predict(["the film was bad", "good soup", "book again"]) == classifier.label_names


def test_training_starts_from_the_checkpoints_weights(train, checkpoint):
    kept = train(learning_rate=0.0)
    start = load_classifier(checkpoint("bert"), kept.label_names).base_model.state_dict()
    assert all(torch.equal(start[name], weight) for name, weight in kept.model.base_model.state_dict().items() if "pooler" not in name)


def test_history_has_a_row_for_each_epoch(train):
    history = train(epochs=3, patience=3).history
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(row.keys() == {"epoch", "train_loss", "validation_loss", "validation_accuracy"} for row in history)
    assert all(type(value) in (int, float) for row in history for value in row.values())
    json.dumps(history)
    assert len(plot_history(history).axes) == 2


def test_stops_early_and_keeps_the_best_epoch(train, toy_task):
    task = toy_task(train=48, validation=24, noise=True)
    classifier = train(task=task, epochs=30, patience=1, learning_rate=5e-3)
    losses = [row["validation_loss"] for row in classifier.history]
    assert 1 < len(losses) < 30
    assert losses.index(min(losses)) == len(losses) - 2       # one epoch without gain, and no more, was waited for
    likelihood = classifier.predict_proba(task.validation["text"])[np.arange(24), task.validation["label"]]
    assert abs(-np.log(likelihood).mean() - min(losses)) < 1e-4


class Sealed:
    "A test split that nobody may look at."
    def refuse(self, *_, **__): raise AssertionError("the test split was read")
    __getattr__ = __getitem__ = __len__ = __iter__ = refuse


def test_the_test_split_is_never_read(train, toy_task, trained):
    assert same_weights(train(task=replace(toy_task(), test=Sealed())), trained())


@pytest.fixture
def trainers(monkeypatch):
    "The Trainers that `fine_tune` makes."
    made = []
    class Spy(finetune.Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)
    monkeypatch.setattr(finetune, "Trainer", Spy)
    return made


def test_rows_and_length_of_the_profile_hold(train, toy_task, trainers):
    task = toy_task()
    train(train_rows=9, eval_rows=6, max_length=8, task=task)
    rows, validation = trainers[0].train_dataset, trainers[0].eval_dataset
    assert (len(rows), len(validation)) == (9, 6) and (len(task.train), len(task.validation)) == (24, 12)
    assert np.bincount(rows["labels"]).tolist() == [3, 3, 3] and np.bincount(validation["labels"]).tolist() == [2, 2, 2]
    assert max(rows["length"]) == 8 and all(len(ids) == length for ids, length in zip(rows["input_ids"], rows["length"]))
    train(max_length=1000, task=toy_task(train=3, validation=3))                 # more than the model can take
    assert trainers[1].processing_class.model_max_length == POSITIONS


def test_text_longer_than_the_model_in_training(train, toy_task):
    from datasets import Dataset
    task = toy_task(train=6, validation=3)
    long = Dataset.from_dict({"text": ["good " * 400] * 6, "label": [0, 1, 2] * 2, "origin": [""] * 6}, features=task.train.features)
    for family in ("bert", "roberta", "gpt2"): train(family, task=replace(task, train=long), max_length=1000)


def test_training_leaves_no_files_and_says_little(train, monkeypatch, tmp_path, capfd):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    shutil.copy("settings.ini", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    train()
    assert not list((tmp_path / "temporary").iterdir()) and not list((tmp_path / "here").iterdir())
    out, err = capfd.readouterr()
    assert out == "" and "fine-tuning: 100%" in err and err.count("\n") == 1


def test_settings_and_models_are_refused_before_anything_is_trained(trainers, toy_task, tmp_path):
    with pytest.raises(ModelError, match="minilm"): fine_tune(toy_task(), model="no-such-model", profile="smoke")
    with pytest.raises(ModelError, match="config.json"): fine_tune(toy_task(), model=str(tmp_path), profile="smoke")
    with pytest.raises(ProfileError, match="did you mean 'epochs'"): fine_tune(toy_task(), profile="smoke", epoch=3)
    with pytest.raises(ProfileError, match="did you mean 'smoke'"): fine_tune(toy_task(), profile="smok")
    assert not trainers


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the card")
def test_cuda_without_a_card_is_refused_before_anything_is_loaded(monkeypatch, toy_task, checkpoint):
    def load(*_, **__): raise AssertionError("something was loaded")
    monkeypatch.setattr(finetune, "load_classifier", load)
    monkeypatch.setattr(finetune, "load_tokenizer", load)
    with pytest.raises(ProfileError, match="cuda.*device = auto") as error: fine_tune(toy_task(), model=str(checkpoint("bert")), profile="gpu", **SETTINGS)
    assert "\n" not in str(error.value)
    with pytest.raises(ProfileError, match="cuda"): fine_tune(toy_task(), model=str(checkpoint("bert")), profile="smoke", device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the card")
def test_loading_for_a_card_that_is_not_there(trained, tmp_path):
    with pytest.raises((ProfileError, ModelError), match="cuda"): Classifier.load(trained().save(tmp_path / "saved"), device="cuda")


def test_bf16_trains_and_answers_in_float32(train, tmp_path):
    classifier = train(precision="bf16")
    assert {weight.dtype for weight in classifier.model.parameters()} == {torch.float32} and np.isfinite(classifier.history[0]["validation_loss"])
    loaded = Classifier.load(classifier.save(tmp_path / "saved"))
    assert np.abs(loaded.predict_proba(TEXTS) - classifier.predict_proba(TEXTS)).max() < 1e-6


# ---------------------------------------------------------------- predicting

def test_odd_questions(trained):
    classifier = trained()
    assert classifier.predict([]) == [] and classifier.predict_proba([]).shape == (0, 3)
    with pytest.raises(TypeError, match=r"predict\(\[text\]\)"): classifier.predict("good")
    with pytest.raises(TypeError, match=r"predict\(\[text\]\)"): classifier.predict_proba("good")
    for wrong in (None, 3, float("nan"), b"good", ["good"]):
        with pytest.raises(TypeError, match=rf"texts\[1\] is .*{type(wrong).__name__}.* str"): classifier.predict(["good", wrong])
    long = " ".join(["good", "bread", "nobody"] * 1000)
    assert np.allclose(classifier.predict_proba([long]), classifier.predict_proba([" ".join(["good", "bread", "nobody"] * 100)]), atol=1e-6)
    assert all(name in classifier.label_names for name in classifier.predict(["\n", "\t ", "\u200b", "🦆" * 300, "a" * 5000]))


def test_any_iterable_and_the_order_of_the_questions(trained, toy_task):
    classifier = trained()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["good", "bad", "book", "soup", "the"], size=n)) for n in rng.integers(1, 40, size=100)]
    probabilities, order = classifier.predict_proba(texts), rng.permutation(100)
    assert np.abs(classifier.predict_proba([texts[i] for i in order]) - probabilities[order]).max() < 1e-5
    assert np.abs(classifier.predict_proba(text for text in texts) - probabilities).max() < 1e-6
    assert classifier.predict(texts) == [classifier.label_names[i] for i in probabilities.argmax(1)]
    column = toy_task().test["text"]
    assert len(classifier.predict(column)) == len(column)


def test_predicting_changes_no_weights_and_keeps_no_gradients(trained):
    before = {name: weight.clone() for name, weight in weights(trained()).items()}
    trained().predict(TEXTS)
    assert all(torch.equal(before[name], weight) for name, weight in weights(trained()).items())
    assert not trained().model.training


def test_repr_names_the_labels(trained):
    assert "bert" in repr(trained()) and "☃ neither" in repr(trained())


# ---------------------------------------------------------------- the disk

def test_save_into_a_new_nested_folder_and_over_an_old_one(trained, tmp_path):
    folder = tmp_path / "with space" / "größe" / "saved"
    assert trained("gpt2").save(str(folder)) == folder
    (folder / "notes.txt").write_text("mine")
    trained("bert").save(folder)                              # another family: nothing of the first may shine through
    assert np.abs(Classifier.load(folder).predict_proba(TEXTS) - trained("bert").predict_proba(TEXTS)).max() < 1e-6
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_a_saved_folder_is_as_readable_as_any_new_one(trained, tmp_path):
    (tmp_path / "any").mkdir()
    folder = trained().save(tmp_path / "saved")
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_a_full_disk_leaves_nothing_behind(part, trained, tmp_path, monkeypatch):
    classifier = Classifier(trained().model, trained().tokenizer)
    def full(folder, *_, **__):
        Path(folder, "half.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    classifier.save(tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    monkeypatch.setattr(getattr(classifier, part), "save_pretrained", full)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space left"): classifier.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_saving_changes_nothing_about_the_classifier(trained, tmp_path):
    before, limit = trained().predict_proba(TEXTS), trained().tokenizer.model_max_length
    trained().save(tmp_path / "saved")
    assert np.array_equal(trained().predict_proba(TEXTS), before) and trained().tokenizer.model_max_length == limit


def test_folders_that_hold_no_classifier(tmp_path, checkpoint, trained):
    with pytest.raises(ModelError, match="config.json"): Classifier.load(tmp_path)
    with pytest.raises(ModelError, match="config.json"): Classifier.load(tmp_path / "missing")
    with pytest.raises(ModelError, match="fine-tune it first"): Classifier.load(checkpoint("bert"))
    headless = shutil.copytree(checkpoint("bert"), tmp_path / "headless")       # names but no head: a random one would guess
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"id2label": {"0": "no", "1": "yes"}}))
    with pytest.raises(ModelError): Classifier.load(headless)


@pytest.mark.parametrize("change", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: b"{"], ids=["half", "empty", "brace"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_folder_is_a_model_error(file, change, trained, tmp_path):
    folder = trained().save(tmp_path / "saved")
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(ModelError) as error: Classifier.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_folder_without_one_of_its_files_is_a_model_error(file, trained, tmp_path):
    folder = trained().save(tmp_path / "saved")
    (folder / file).unlink()
    with pytest.raises(ModelError) as error: Classifier.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1"], ["0", "1"], ["10", "2"], ["no", "\"yes\", 'maybe' <b>\\"], [f"class {i}" for i in range(12)]],
                         ids=["default", "digits", "unsorted", "signs", "twelve"])
def test_label_names_survive(names, checkpoint, tmp_path):
    classifier = Classifier(load_classifier(checkpoint("bert"), names), load_tokenizer(checkpoint("bert")))
    loaded = Classifier.load(classifier.save(tmp_path / "saved"))
    assert loaded.label_names == names and loaded.predict(TEXTS) == classifier.predict(TEXTS)


def test_a_length_above_512_survives(checkpoint, tmp_path):
    "GPT-2 takes 1,024 tokens, ModernBERT 8,192: a classifier trained on 700 has to read 700 after it is loaded."
    torch.manual_seed(0)
    model = checkpoint("gpt2", positions=1024)
    classifier = Classifier(load_classifier(model, ["no", "yes"]), load_tokenizer(model), max_length=700)
    loaded = Classifier.load(classifier.save(tmp_path / "saved"))
    texts = ["good " * 600 + "bad book by far"]
    assert loaded.max_length == 700 and np.abs(loaded.predict_proba(texts) - classifier.predict_proba(texts)).max() < 1e-6


def test_a_folder_of_somebody_else_without_a_length(trained, tmp_path):
    "Older folders name no length, and transformers then says 10**30: what the model can take has to count."
    folder = trained("roberta").save(tmp_path / "saved")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert np.isfinite(Classifier.load(folder).predict_proba(["good " * 1000])).all()
