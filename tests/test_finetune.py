"""`fine_tune` and `Classifier`: what is repeated exactly, what is kept, what survives the disk, and what is refused."""
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, POSITIONS

from tutorial_clf import finetune, training
from tutorial_clf.finetune import Classifier, fine_tune, plot_history
from tutorial_clf.pretrained import ModelError, load_classifier, load_tokenizer
from tutorial_clf.profile import ProfileError

TEXTS = ["the soup was good", "bad", "a book of the year, by far the best book and there is no other like it", "", "☃ 漢字 \x00 zzzz"]
SETTINGS = dict(train_rows=0, eval_rows=0, batch_size=8, epochs=1, learning_rate=1e-3, max_length=64)
PLAIN = dict(profile="smoke", **SETTINGS)
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
    class Spy(finetune.FineTuner):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)
    monkeypatch.setattr(finetune, "FineTuner", Spy)
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


# ---------------------------------------------------------------- batches, parts, processes

@pytest.fixture(scope="module")
def steady(tmp_path_factory, checkpoint):
    "family → folder of its small checkpoint without dropout, so that losses can be compared number by number."
    made = {}
    def get(family="bert"):
        if family not in made:
            folder = shutil.copytree(checkpoint(family), tmp_path_factory.mktemp("steady") / family)
            config = json.loads((folder / "config.json").read_text())
            assert (without := {key: 0.0 for key in config if "drop" in key and key != "classifier_dropout"})
            (folder / "config.json").write_text(json.dumps(config | without))
            made[family] = folder
        return made[family]
    return get


@pytest.mark.parametrize("rows, size", [(1, 4), (3, 8), (22, 4), (100, 16), (1000, 7)])
def test_epoch_batches_depend_on_seed_and_epoch_alone(rows, size):
    lengths = np.random.default_rng(0).integers(3, 60, size=rows)
    batches = training.EpochBatches(lengths, size, seed=42)
    for epoch in range(6):
        batches.set_epoch(epoch)
        plan = list(batches)
        assert plan == training.EpochBatches(lengths, size, seed=42).plan(epoch)
        assert sorted(i for batch in plan for i in batch) == list(range(rows)) and len(plan) == len(batches) and max(map(len, plan)) <= size
    if rows > 20:
        assert batches.plan(0) != batches.plan(1) and batches.plan(0) != training.EpochBatches(lengths, size, seed=43).plan(0)


@each_family
@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_accumulated_gradients_are_those_of_the_whole_batch(family, micro_batch, train, steady, toy_task):
    "26 rows in batches of 8: the last batch is smaller, and so is the last part of each."
    settings = dict(task=toy_task(train=26), model=str(steady(family)))
    whole, parts = fine_tune(**settings, **dict(PLAIN, epochs=2)), fine_tune(**settings, **dict(PLAIN, epochs=2), micro_batch=micro_batch)
    assert len(whole.losses) == 8 and np.allclose(whole.losses, parts.losses, atol=1e-5)
    assert np.allclose(whole.predict_proba(TEXTS), parts.predict_proba(TEXTS), atol=1e-4)


def test_the_gradient_itself_is_that_of_the_whole_batch(steady, toy_task):
    from accelerate import Accelerator
    model, tokenizer = load_classifier(steady(), toy_task().label_names), load_tokenizer(steady())
    inputs = {**tokenizer(toy_task().train["text"][:7], padding=True, return_tensors="pt"), "labels": torch.arange(7) % 3}
    def gradient(micro_batch):
        model.zero_grad()
        loss = training.add_gradient(Accelerator(cpu=True), model, inputs, micro_batch)
        return loss, [weight.grad.clone() for weight in model.parameters()]
    model(**inputs).loss.backward()
    plain = [weight.grad.clone() for weight in model.parameters()]
    for micro_batch in (0, 1, 2, 3, 6, 7, 50):
        loss, parts = gradient(micro_batch)
        assert torch.isclose(loss, model(**inputs).loss, atol=1e-6), micro_batch
        for a, b in zip(plain, parts, strict=True): assert torch.allclose(a, b, atol=1e-6), micro_batch


@pytest.mark.parametrize("family, freeze", [("bert", "none"), ("roberta", "none"), ("distilbert", "1"), ("gpt2", "embeddings"), ("modernbert", "none")])
def test_the_losses_are_those_of_a_loop_by_hand(family, freeze, steady, toy_task):
    "Three epochs, 26 rows in batches of 8, warm-up, decay of matrices alone, clipping: the same loss at each of the twelve steps."
    task, rate, epochs = toy_task(train=26), 3e-3, 3
    clf = fine_tune(task, model=str(steady(family)), **dict(PLAIN, epochs=epochs, patience=epochs, learning_rate=rate, weight_decay=0.1, warmup=0.25, freeze=freeze))
    from tutorial_clf.profile import set_seed
    set_seed(42)
    model, tokenizer = load_classifier(steady(family), task.label_names), load_tokenizer(steady(family))
    finetune.freeze(model, freeze)
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [dict(params=[w for w in weights if w.ndim > 1], weight_decay=0.1), dict(params=[w for w in weights if w.ndim == 1], weight_decay=0.0)]
    optimiser, losses = torch.optim.AdamW(groups, lr=rate), []
    codes = tokenizer(task.train["text"][:], truncation=True, max_length=64)["input_ids"]
    plan = training.EpochBatches([len(ids) for ids in codes], 8, seed=42)
    batches = [rows for epoch in range(epochs) for rows in plan.plan(epoch)]
    rising = int(np.ceil(0.25 * len(batches)))
    for step, rows in enumerate(batches):
        for group in optimiser.param_groups: group["lr"] = rate * (step / rising if step < rising else (len(batches) - step) / (len(batches) - rising))
        inputs = tokenizer.pad({"input_ids": [codes[i] for i in rows]}, return_tensors="pt")
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, torch.tensor([task.train["label"][i] for i in rows]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step(), optimiser.zero_grad()
        losses.append(loss.item())
    assert len(losses) == len(clf.losses) == 12 and np.abs(np.array(losses) - clf.losses).max() < 1e-5


def test_every_process_takes_its_share():
    for rows in range(1, 9):
        inputs = {"labels": torch.arange(rows), "input_ids": torch.arange(rows)[:, None]}
        for world in (1, 2, 3, 5, 8):
            shares = [training._share(inputs, rank, world) for rank in range(world)]
            assert sum((mine["labels"].tolist() for mine, weight in shares if weight), []) == list(range(rows))
            assert all(len(mine["labels"]) == len(mine["input_ids"]) >= 1 for mine, _ in shares)
            assert np.isclose(sum(len(mine["labels"]) * weight for mine, weight in shares) / world, 1)


def test_out_of_memory_goes_on_with_smaller_parts(monkeypatch, steady, toy_task, capfd):
    "A model that has no memory for more than 3 texts at once: batches of 8 go through in parts of 2, evaluation too."
    load, sizes = finetune.load_classifier, []
    def limited(*arguments):
        model = load(*arguments)
        forward = model.forward
        def checked(**inputs):
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 3: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return forward(**inputs)
        model.forward = wraps(forward)(checked)               # Trainer looks at the names of its arguments
        return model
    settings = dict(task=toy_task(train=26), model=str(steady()), **PLAIN)
    plain = fine_tune(**settings)
    monkeypatch.setattr(finetune, "load_classifier", limited)
    saved = fine_tune(**settings)
    said = capfd.readouterr().err
    assert sizes[:3] == [8, 4, 2] and sizes.count(8) == 2 and said.count("out of memory") == 2 and "going on with 2 texts at a time" in said
    assert np.allclose(plain.losses, saved.losses, atol=1e-5) and np.isclose(plain.history[0]["validation_loss"], saved.history[0]["validation_loss"], atol=1e-5)


def test_several_processes_are_told_what_to_set_when_memory_ends():
    error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(ProfileError, match="set micro_batch = 4"): training._fit(lambda size: (_ for _ in ()).throw(error), 8, "micro_batch", 2, print)


def test_no_memory_for_a_single_text(monkeypatch, steady, toy_task):
    load = finetune.load_classifier
    def none(*arguments):
        model = load(*arguments)
        @wraps(model.forward)
        def forward(**inputs): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        model.forward = forward
        return model
    monkeypatch.setattr(finetune, "load_classifier", none)
    with pytest.raises(ProfileError, match="lower max_length") as error: fine_tune(toy_task(), model=str(steady()), **PLAIN)
    assert "\n" not in str(error.value)


def test_another_error_of_the_model_is_not_taken_for_lack_of_memory(monkeypatch, steady, toy_task):
    load = finetune.load_classifier
    def broken(*arguments):
        model = load(*arguments)
        @wraps(model.forward)
        def forward(**inputs): raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        model.forward = forward
        return model
    monkeypatch.setattr(finetune, "load_classifier", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"): fine_tune(toy_task(), model=str(steady()), **PLAIN)


@each_family
def test_frozen_weights_stay_and_the_others_move(family, checkpoint, toy_task):
    start = load_classifier(checkpoint(family), ["a bad thing", "güt", "☃ neither"])
    parts = {what: finetune.freeze(load_classifier(checkpoint(family), start.config.id2label.values()), what) for what in ("none", "embeddings", "1", "2")}
    assert parts["none"] == start.num_parameters() > parts["embeddings"] > parts["1"] > parts["2"] > 0
    clf = fine_tune(toy_task(), model=str(checkpoint(family)), **PLAIN, freeze="1")
    before, moved = start.base_model.state_dict(), set()
    for name, weight in clf.model.base_model.named_parameters():
        if not torch.equal(weight, before[name]): moved.add(name)
    layer = lambda name: next((int(part) for part in name.split(".") if part.isdecimal()), None)
    assert {layer(name) for name in moved} <= {1, None} and 1 in {layer(name) for name in moved}
    assert not [name for name in moved if any(word in name for word in ("embedding", "wte", "wpe"))]
    with pytest.raises(ProfileError, match="2 layers"): fine_tune(toy_task(), model=str(checkpoint(family)), **PLAIN, freeze=3)


def test_losses_that_are_no_numbers_end_in_a_sentence(steady, toy_task):
    with pytest.raises(ProfileError, match="lower learning_rate"):
        fine_tune(toy_task(), model=str(steady()), **dict(PLAIN, learning_rate=1e30, epochs=2))


PROCESSES = """
import json, os, sys
sys.path.insert(0, {tests!r})
import torch
from test_finetune import PLAIN, processes_task
from tutorial_clf.finetune import fine_tune

torch.set_num_threads(1)
clf = fine_tune(processes_task(), model={model!r}, folder={folder!r}, **dict(PLAIN, epochs=2, batch_size=5, freeze={freeze!r}))
clf.save({folder!r} + "-saved")
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
with open({folder!r} + "-" + os.environ.get("RANK", "0") + ".json", "w") as file: json.dump(dict(losses=clf.losses, history=clf.history), file)
"""


def processes_task():
    "16 rows in batches of 5: the last batch has a single row, fewer than there are processes."
    from datasets import ClassLabel, Dataset, Features, Value
    from tutorial_clf.data import Task
    def rows(n):
        texts = [f"the {'good' if i % 2 else 'bad'} {'soup ' * (i % 5)}" for i in range(n)]
        return Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(n)]}, features=Features(text=Value("string"), label=ClassLabel(names=["no", "yes"])))
    return Task("two", ["no", "yes"], train=rows(16), validation=rows(7), test=rows(2), card={})


@pytest.mark.parametrize("freeze", ["none", "1"])
def test_two_processes_give_the_losses_of_one(freeze, steady, tmp_path):
    """`accelerate launch` with the script as it is: same losses, one folder written once, one bar.

    (Its --cpu starts a single process whatever --num_processes says; --multi_gpu starts two, and the profile puts them on the CPU.)
    """
    def result(name, *launcher):
        script = tmp_path / f"{name}.py"
        script.write_text(PROCESSES.format(tests=str(Path(__file__).parent), model=str(steady()), folder=str(tmp_path / name), freeze=freeze))
        done = subprocess.run([sys.executable, *launcher, str(script)], capture_output=True, text=True, timeout=110, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(path.read_text()) for path in sorted(tmp_path.glob(f"{name}-?.json"))], done.stdout, done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (one,), *_ = result("one")
    two, out, said = result("two", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                       "--dynamo_backend", "no", "--main_process_port", str(port))
    assert len(two) == 2 and two[0] == two[1] and len(one["losses"]) == 8
    assert np.allclose(one["losses"], two[0]["losses"], atol=1e-4)
    for a, b in zip(one["history"], two[0]["history"], strict=True): assert a["epoch"] == b["epoch"] and np.isclose(a["validation_loss"], b["validation_loss"], atol=1e-4)
    assert out == "" and said.count("0/8") == 1, "only the first process has a bar"
    for name in ("two", "two-saved"): assert {p.name for p in (tmp_path / name).iterdir()} == {p.name for p in (tmp_path / name.replace("two", "one")).iterdir()}
    a, b = (Classifier.load(tmp_path / name).predict_proba(TEXTS) for name in ("one", "two"))
    assert np.allclose(a, b, atol=1e-4)


# ---------------------------------------------------------------- what is shown

class Screen:
    "A stand-in for a notebook's display: what is shown last in each place."
    def __init__(self): self.shown, self.updates = [], 0
    def __call__(self, data, raw, display_id):
        self.shown.append(data)
        return self
    def update(self, data, raw): self.shown[-1], self.updates = data, self.updates + 1


@pytest.mark.parametrize("watch", [False, True])
def test_a_notebook_shows_one_thing_and_rewrites_it(watch, train, monkeypatch, capfd):
    import base64
    import IPython.display
    screen = Screen()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(IPython.display, "display", screen)
    evaluate = finetune.FineTuner.evaluate
    monkeypatch.setattr(finetune.FineTuner, "evaluate", lambda self, *a, **k: self.progress.note("a note that stays") or evaluate(self, *a, **k))
    train(watch=watch, epochs=3, patience=3)
    (last,) = screen.shown
    assert "a note that stays" in last["text/plain"] and "9 steps in" in last["text/plain"] and "after epoch 3: validation loss" in last["text/plain"] and screen.updates >= (1 if watch else 9)
    assert ("image/png" in last) == watch and (not watch or base64.b64decode(last["image/png"]).startswith(b"\x89PNG"))
    assert capfd.readouterr() == ("", "")


def test_watching_changes_no_number(train, trained, monkeypatch):
    import IPython.display
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(IPython.display, "display", Screen())
    assert same_weights(train(watch=True), trained())


def test_the_picture_of_a_training_that_has_just_begun():
    for losses, history in (([], []), ([0.7], []), ([0.7] * 100, [{"epoch": 1, "validation_loss": 0.6}])):
        axes, = training.plot_training(losses, history, 50).axes
        assert [len(line.get_xdata()) for line in axes.lines] == [len(losses), len(losses), len(history)]
        assert np.allclose(axes.lines[1].get_ydata(), losses)           # the mean of equal losses


def test_explain_says_what_is_chosen():
    said = finetune.explain("cpu")
    assert "device     cpu" in said and "float32" in said and "16 texts" in said and "tf32" not in said
    assert "lowest 3 layers" in finetune.explain(finetune.load_profile("cpu", freeze=3))
    if not torch.cuda.is_available(): assert "does not have" in finetune.explain("gpu") and "bf16" in finetune.explain("gpu") and "pinned" in finetune.explain("gpu")
    with pytest.raises(ProfileError, match="did you mean 'smoke'"): finetune.explain("smok")


@pytest.mark.parametrize("wrong, said", [(dict(micro_batch=-1), "too small"), (dict(optimizer="sgd"), "adamw_torch, adamw_torch_fused"), (dict(compile="perhaps"), "yes or no"),
                                         (dict(freeze="half"), "neither none, embeddings"), (dict(freeze=-1), "neither none, embeddings"), (dict(tf32=2), "yes or no")])
def test_a_wrong_value_is_named(wrong, said, toy_task):
    with pytest.raises(ProfileError, match=said): fine_tune(toy_task(), profile="smoke", **wrong)
    assert finetune.load_profile("cpu", compile=True, tf32="no", pin_memory="Yes", freeze=2).freeze == "2"


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


def test_more_texts_than_are_tokenised_at_once(trained):
    texts = [["good", "bad soup", "the book was bad there"][i % 3] for i in range(10_007)]
    probabilities = trained().predict_proba(texts)
    assert np.abs(probabilities - trained().predict_proba(texts[:3])[np.arange(10_007) % 3]).max() < 1e-5


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
