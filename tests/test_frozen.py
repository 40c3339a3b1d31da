"""Frozen layers computed once, rates by depth, updates of low rank: the same numbers as without the short cut, and a plain model at the end."""
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FAMILIES

from tutorial_clf import finetune, frozen, training
from tutorial_clf.finetune import Classifier, explain, fine_tune
from tutorial_clf.pretrained import load_classifier, load_tokenizer
from tutorial_clf.profile import ProfileError, load_profile

SETTINGS = dict(profile="smoke", train_rows=0, eval_rows=0, batch_size=8, eval_batch_size=8, epochs=3, patience=3, learning_rate=3e-3, max_length=64)
TEXTS = ["the soup was good", "bad", "a book of the year, by far the best book and there is no other like it", ""]
NAMES = ["a bad thing", "güt", "☃ neither"]
each_family = pytest.mark.parametrize("family", FAMILIES)
native = pytest.mark.skipif(not training.native_bf16("cpu"), reason="this processor does not multiply in bf16")


@pytest.fixture
def tune(checkpoint, toy_task):
    "tune(family, **overrides) → Classifier: 26 rows in batches of 8, so that the last batch of an epoch is smaller."
    def go(family="bert", **overrides): return fine_tune(toy_task(train=26), model=str(checkpoint(family)), **SETTINGS | overrides)
    return go


@pytest.fixture
def counted(monkeypatch):
    "Texts that went through the attention of each layer of the networks that `fine_tune` loads."
    load, seen = finetune.load_classifier, []
    def spy(*arguments):
        network = load(*arguments)
        seen.append([0] * len(frozen.layers_of(network)))
        for i, layer in enumerate(frozen.layers_of(network)):
            attention = getattr(layer, "attention", None) or layer.attn
            def count(module, given, named, output, i=i, of=seen[-1]): of[i] += len(given[0] if given else named["hidden_states"])
            attention.register_forward_hook(count, with_kwargs=True)
        return network
    monkeypatch.setattr(finetune, "load_classifier", spy)
    return seen


def same(one, other, tolerance):
    assert np.abs(np.subtract(one.losses, other.losses)).max() <= tolerance
    for a, b in zip(one.history, other.history, strict=True): assert abs(a["validation_loss"] - b["validation_loss"]) <= tolerance
    assert np.abs(one.predict_proba(TEXTS) - other.predict_proba(TEXTS)).max() <= 10 * tolerance


def not_kept(monkeypatch, why="told not to"): monkeypatch.setattr(frozen, "_hindrance", lambda *_: why)


# ---------------------------------------------------------------- kept outputs

@each_family
@pytest.mark.parametrize("layers", [1, 2])
def test_kept_outputs_give_the_same_numbers(family, layers, tune, counted, monkeypatch, capfd):
    "With dropout in the layers above; each row goes through the frozen layers once, and through the others in every epoch."
    kept = tune(family, freeze=layers)
    assert "computed anew" not in capfd.readouterr().err
    not_kept(monkeypatch)
    anew = tune(family, freeze=layers)
    assert "computed anew in each epoch, which gives the same numbers: told not to" in capfd.readouterr().err
    once, each = [list(texts) for texts in counted]
    same(kept, anew, 1e-6)
    assert once[:layers] == [26 + 12] * layers and min(each) >= 3 * (26 + 12)
    if layers == 1: assert 3 * 38 <= once[1] <= 3 * 38 + 4 + 8 + 8, "three epochs, the rows whose answers are checked, and the check"


def test_the_lower_layers_run_without_dropout_and_the_upper_with(tune, checkpoint):
    network = load_classifier(checkpoint("bert"), NAMES)
    lower = frozen._lower(network, 1)
    assert lower[0] is network.bert.embeddings and lower[-1] is network.bert.encoder.layer[0] and network.bert.encoder not in lower
    batch = dict(load_tokenizer(checkpoint("bert"))(TEXTS[:3], padding=True, return_tensors="pt"))
    kept, outputs = frozen.KeptLayers(network, 1), []
    frozen.layers_of(network)[0].register_forward_hook(lambda layer, given, output: outputs.append(output))
    network.train()
    logits = [network(**batch).logits for _ in range(2)]
    assert torch.equal(*outputs) and not torch.equal(*logits)
    kept.undo()


def test_a_batch_in_parts_and_a_run_gone_on_with(tune, tmp_path, monkeypatch):
    whole = tune(freeze=1)
    steps = 0
    def stop(trainer, *batch, do=finetune.FineTuner.training_step):
        nonlocal steps
        steps += 1
        if steps == 7: raise KeyboardInterrupt
        return do(trainer, *batch)
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(finetune.FineTuner, "training_step", stop)
        with pytest.raises(KeyboardInterrupt): tune(freeze=1, folder=tmp_path / "run")
    assert {path.name.split("-")[0] for path in (tmp_path / "run").iterdir()} == {"run.json", "best", "checkpoint"}, "the kept outputs are left behind"
    again = tune(freeze=1, folder=tmp_path / "run")
    assert again.losses == whole.losses and all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True))


def test_the_network_is_left_as_it_was(tune, checkpoint):
    clf, plain = tune(freeze=2), load_classifier(checkpoint("bert"), NAMES)
    assert clf.model.state_dict().keys() == plain.state_dict().keys() and not clf.model._forward_pre_hooks
    assert all("forward" not in vars(layer) for layer in frozen.layers_of(clf.model))
    before = plain.base_model.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in clf.model.base_model.state_dict().items() if "embeddings" in name or "layer" in name.split("."))


def test_without_room_on_the_disk_it_is_computed_anew(tune, monkeypatch, capfd):
    kept = tune(freeze=1)
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    same(kept, tune(freeze=1), 1e-6)
    assert "not the room on the disk" in capfd.readouterr().err


def test_a_disk_that_fills_up_while_it_is_written(tune, monkeypatch, capfd):
    class Full:
        def write(self, data): raise OSError(28, "No space left on device")
    kept = tune(freeze=1)
    monkeypatch.setattr(frozen.tempfile, "TemporaryFile", lambda dir: Full())
    same(kept, tune(freeze=1), 1e-6)
    assert "No space left on device" in capfd.readouterr().err


def test_a_network_whose_upper_layers_need_more_is_not_cut(tune, monkeypatch, capfd):
    "An upper layer that looks at what a lower one has left elsewhere: the check notices, and everything is computed."
    load, plain = finetune.load_classifier, tune(freeze=1)
    def linked(*arguments):
        network = load(*arguments)
        low, high = frozen.layers_of(network)
        low.attention.register_forward_hook(lambda module, given, output: setattr(network, "left", output[0][:, :1]))
        high.register_forward_pre_hook(lambda layer, given: (given[0] + 3 * network.left.mean(0), *given[1:]))
        return network
    monkeypatch.setattr(finetune, "load_classifier", linked)
    kept = tune(freeze=1)
    assert "need more than those outputs" in capfd.readouterr().err and kept.losses != plain.losses
    not_kept(monkeypatch)
    same(kept, tune(freeze=1), 1e-6)


def test_layers_that_depend_on_trained_weights_are_not_kept(tune, monkeypatch, capfd):
    choose = finetune.choose_trained
    def but_one(network, profile):
        choose(network, profile)
        network.get_parameter("bert.embeddings.LayerNorm.bias").requires_grad_(True)
    monkeypatch.setattr(finetune, "choose_trained", but_one)
    tune(freeze=1, epochs=1)
    assert "depend on weights that are trained" in capfd.readouterr().err


def test_rows_in_any_order_and_padding_on_either_side(checkpoint, tmp_path):
    from datasets import Dataset
    network, tokenizer = load_classifier(checkpoint("bert"), NAMES), load_tokenizer(checkpoint("bert"))
    finetune.freeze(network, "1")
    ids = tokenizer(TEXTS)["input_ids"]
    rows, collate = Dataset.from_dict({"input_ids": ids, "row": range(4)}), lambda chosen: dict(tokenizer.pad(chosen, return_tensors="pt"))
    kept = frozen.KeptLayers(network, 1)
    assert frozen.keep(kept, rows, [len(i) for i in ids], collate, 2, tmp_path) == "" and not list(tmp_path.iterdir())
    batch = collate(rows.__getitems__([3, 0, 2]))
    with torch.no_grad(): short = network(**batch).logits
    right, left = kept.outputs(batch["row"], batch["attention_mask"]), kept.outputs(batch["row"], batch["attention_mask"].flip(1))
    for i, row in enumerate([3, 0, 2]):
        n = len(ids[row])
        assert torch.equal(right[i, :n], left[i, -n:]) and not right[i, n:].any() and not left[i, :-n].any()
    kept.undo()
    with torch.no_grad(): full = network(**{key: values for key, values in batch.items() if key != "row"}).logits
    assert torch.allclose(short, full, atol=1e-5)


# ---------------------------------------------------------------- bf16

@native
def test_bf16_on_this_processor(tune, monkeypatch):
    kept, plain = tune(freeze=1, precision="bf16"), tune(freeze=1)
    assert kept.losses != plain.losses and np.allclose(kept.losses, plain.losses, atol=0.1)
    assert {weight.dtype for weight in kept.model.parameters()} == {torch.float32}
    not_kept(monkeypatch)
    same(kept, tune(freeze=1, precision="bf16"), 2e-2)


def test_bf16_only_where_the_processor_has_it(tune, monkeypatch):
    plain = tune(epochs=1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "avx512_f": True})
    assert training.usable_precision(load_profile("fast"), "cpu") == "float32" and "this processor has no bf16 of its own" in explain("fast")
    assert tune(epochs=1, precision="bf16").losses == plain.losses
    for key in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {key: True})
        assert training.usable_precision(load_profile("fast"), "cpu") == "bf16" and "products in 16 bits" in explain("fast")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert training.usable_precision(load_profile("fast"), "cpu") == "float32"


# ---------------------------------------------------------------- rates by depth

@each_family
def test_depths_and_rates(family, checkpoint):
    network = load_classifier(checkpoint(family), NAMES)
    depth = frozen.depths(network)
    number = lambda name: next((int(part) for part in name.split(".") if part.isdecimal()), None)
    for name, level in depth.items():
        low = any(word in name for word in ("embedding", "wte", "wpe"))
        assert level == (0 if low else number(name) + 1 if number(name) is not None else 3), name
    groups = [{"params": [w for w in network.parameters() if (w.ndim > 1) == many], "lr": 0.8, "weight_decay": decay} for many, decay in ((True, 0.1), (False, 0.0))]
    split = frozen.by_depth(network, groups, 0.5)
    rates = {id(w): (group["lr"], group["weight_decay"]) for group in split for w in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in split) == len(list(network.parameters()))
    for name, weight in network.named_parameters():
        assert rates[id(weight)] == pytest.approx((0.8 * 0.5 ** (3 - depth[name]), 0.1 if weight.ndim > 1 else 0.0)), name


def test_layer_decay_moves_the_lower_layers_less(tune, checkpoint):
    start = load_classifier(checkpoint("bert"), NAMES).base_model.state_dict()
    def moved(clf, part): return max((weight - start[name]).abs().max().item() for name, weight in clf.model.base_model.state_dict().items() if part in name)
    flat, steep = tune(weight_decay=0.0), tune(weight_decay=0.0, layer_decay=0.1)
    assert tune(weight_decay=0.0, layer_decay=1.0).losses == flat.losses != steep.losses
    for part, share in (("layer.1.", 0.1), ("layer.0.", 0.01), ("word_embeddings", 0.001)):
        assert 0 < moved(steep, part) < 3 * share * moved(flat, part), part


# ---------------------------------------------------------------- updates of low rank

@each_family
def test_low_rank_updates_are_merged_into_a_plain_model(family, tune, checkpoint, tmp_path):
    pytest.importorskip("peft")
    clf, start = tune(family, lora_rank=2, learning_rate=1e-2), load_classifier(checkpoint(family), NAMES)
    assert clf.model.state_dict().keys() == start.state_dict().keys() and all(type(a) is type(b) for a, b in zip(clf.model.modules(), start.modules(), strict=True))
    before, depth = start.state_dict(), frozen.depths(start)
    change = {name: weight - before[name] for name, weight in clf.model.state_dict().items()}
    moved = {name for name in depth if change[name].abs().max() > 0}
    assert all(depth[name] == 3 or change[name].ndim == 2 and 1 <= torch.linalg.matrix_rank(change[name], atol=1e-6) <= 2 for name in moved)
    assert {depth[name] for name in moved} == {1, 2, 3}
    loaded = Classifier.load(clf.save(tmp_path / "saved"))
    assert np.abs(loaded.predict_proba(TEXTS) - clf.predict_proba(TEXTS)).max() < 1e-6


def test_low_rank_with_frozen_layers(tune, checkpoint):
    pytest.importorskip("peft")
    start, clf = load_classifier(checkpoint("bert"), NAMES).bert.encoder.layer, tune(lora_rank=2, freeze=1).model.bert.encoder.layer
    same = [all(torch.equal(a, b) for a, b in zip(start[i].parameters(), clf[i].parameters(), strict=True)) for i in (0, 1)]
    assert same == [True, False]


def test_without_peft_one_sentence(tune, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ProfileError, match=r'pip install "tutorial-clf\[lab\]"') as error: tune(lora_rank=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [dict(layer_decay=0.9), dict(lora_rank=2)])
def test_layers_that_cannot_be_told_apart(settings, tune, monkeypatch, tmp_path):
    monkeypatch.setattr(frozen, "layers_of", lambda network: [])
    with pytest.raises(ProfileError, match="cannot be told apart"): tune(**settings, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- answers in other precisions

@each_family
@pytest.mark.parametrize("precision", ["int8", pytest.param("bf16", marks=native)])
def test_answers_in_other_precisions(family, precision, checkpoint, tmp_path):
    torch.manual_seed(0)
    plain = Classifier(load_classifier(checkpoint(family), NAMES), load_tokenizer(checkpoint(family)), max_length=64)
    folder = plain.save(tmp_path / "saved")
    short = Classifier.load(folder, precision=precision)
    wanted, got = plain.predict_proba(TEXTS), short.predict_proba(TEXTS)
    assert 0 < np.abs(wanted - got).max() < 0.1 and np.allclose(got.sum(1), 1, atol=1e-5)
    assert finetune._answering(short) is finetune._answering(short) is not short.model, "one copy, made once"
    assert {weight.dtype for weight in short.model.parameters()} == {torch.float32}
    again = short.save(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_profile_says_how_to_answer(tune, tmp_path, recwarn):
    clf = tune(epochs=1, predict_precision="int8", folder=tmp_path / "run")
    assert clf.precision == "int8" and tune(epochs=1, predict_precision="int8", folder=tmp_path / "run").precision == "int8"
    plain = tune(epochs=1, folder=tmp_path / "run")          # the same run: it changes nothing that is learned
    assert plain.precision == "float32" and plain.losses == clf.losses
    assert 0 < np.abs(clf.predict_proba(TEXTS) - plain.predict_proba(TEXTS)).max() < 0.1
    assert not [warning for warning in recwarn if "quantiz" in str(warning.message)]


def test_precision_falls_back_and_wrong_ones_are_named(checkpoint, monkeypatch, tmp_path):
    model, tokenizer = load_classifier(checkpoint("bert"), NAMES), load_tokenizer(checkpoint("bert"))
    for wrong in (lambda: Classifier(model, tokenizer, precision="int4"), lambda: Classifier.load(tmp_path, precision="int4")):
        with pytest.raises(ProfileError, match="int4 is none of float32, bf16, int8"): wrong()
    monkeypatch.setattr(finetune, "native_bf16", lambda device: False)
    clf = Classifier(model, tokenizer, precision="bf16")
    assert finetune._answering(clf) is model and "no means for bf16" in explain(load_profile("cpu", predict_precision="bf16"))


@pytest.mark.parametrize("wrong, said", [(dict(layer_decay=0), "above 0 and at most 1"), (dict(layer_decay=1.01), "above 0 and at most 1"), (dict(lora_rank=-1), "too small"),
                                         (dict(lora_rank=1.5), "whole number"), (dict(predict_precision="int4"), "none of float32, bf16, int8")])
def test_a_wrong_value_is_named(wrong, said):
    with pytest.raises(ProfileError, match=said): load_profile("cpu", **wrong)


def test_explain_names_each_choice():
    said = explain(load_profile("cpu", freeze=2, layer_decay=0.9, predict_precision="int8"))
    assert "lowest 2 layers, whose outputs are computed once and kept" in said and "0.9 times that of the layer above" in said and "int8" in said
    assert "updates of rank 4" in explain(load_profile("cpu", lora_rank=4)) and "answers    in float32\n" in explain("cpu") + "\n"
