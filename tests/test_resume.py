"""A run with a folder: killed anywhere and called again it ends in the very same weights; other runs, full disks and damage are told in one sentence."""
import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tutorial_clf import finetune, training
from tutorial_clf.data import Task
from tutorial_clf.finetune import Classifier, fine_tune
from tutorial_clf.pretrained import ModelError
from tutorial_clf.profile import ProfileError
from tutorial_clf.training import RunError, best_epoch, newest_checkpoint

SETTINGS = dict(train_rows=0, eval_rows=0, batch_size=4, eval_batch_size=8, epochs=3, patience=3, learning_rate=3e-3, max_length=32)
STEPS = 6                                                     # in an epoch: 22 rows in batches of 4, the last one smaller



# ---------------------------------------------------------------- one run in a process of its own

def deadly(function, number, before=lambda *_: None):
    "`function`, whose call of that number kills this process."
    calls = 0
    def wrapped(*arguments, **more):
        nonlocal calls
        calls += 1
        if calls == number:
            before(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **more)
    return wrapped


def arm(kind, number):
    "Kill this process at a training step, in the middle of a file, before a folder is sealed, or at a writing of run.json."
    if kind == "step": finetune.FineTuner.training_step = deadly(finetune.FineTuner.training_step, number)
    if kind == "save": torch.save = deadly(torch.save, number, lambda _, path: Path(path).write_bytes(b"half a file"))
    if kind == "seal": training._seal = deadly(training._seal, number)
    if kind == "finish": training.write_run = finetune.write_run = deadly(training.write_run, number)


def small_task():
    from datasets import ClassLabel, Dataset, Features, Value
    def rows(n, seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(2, size=n)
        texts = [" ".join(rng.choice(["the", "soup", "film", "was", "there"], size=rng.integers(1, 12))) + (" good" if label else " bad") for label in labels]
        return Dataset.from_dict({"text": texts, "label": labels}, features=Features(text=Value("string"), label=ClassLabel(names=["no", "yes"])))
    return Task("toy", ["no", "yes"], train=rows(22, 0), validation=rows(9, 1), test=rows(4, 2), card={})


def go(model, folder, kill, seconds, limit, settings, out):
    "The run itself, in its process: what came out goes to `out`, what it said to `out`.said."
    said = os.open(f"{out}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2): os.dup2(said, stream)
    torch.set_num_threads(1)
    training.CHECKPOINT_SECONDS = seconds
    if kill: arm(*kill)
    if limit:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    clf = fine_tune(small_task(), model=str(model), profile="smoke", folder=folder, **settings)
    weights = {name: weight.flatten().tolist() for name, weight in sorted(clf.model.state_dict().items())}
    Path(out).write_text(json.dumps({"weights": weights, "history": clf.history, "losses": clf.losses, "proba": clf.predict_proba(["good soup", "bad"]).tolist()}))


def start(model, folder, kill=None, seconds=0.0, limit=0, **settings):
    "(exit code, file of the results, what was said) of one run."
    context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":           # what takes long to import is imported once for all runs
        context.set_forkserver_preload(["tutorial_clf.finetune", "datasets", "pytest", "transformers.models.bert.modeling_bert"])
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "out.json")
        process = context.Process(target=go, args=(model, folder, kill, seconds, limit, SETTINGS | settings, out))
        process.start()
        process.join(120)
        return process.exitcode, json.loads(out.read_text()) if out.exists() else None, Path(f"{out}.said").read_text()


def run(*arguments, kill=None, **more):
    "What came out of the run, or None if it was killed as it was to be."
    code, result, said = start(*arguments, kill=kill, **more)
    assert code == (-signal.SIGKILL if kill else 0), said[-3000:]
    return result and result | {"said": said}


def same_run(one, other):
    for key in ("weights", "history", "losses", "proba"): assert one[key] == other[key], key


@pytest.fixture(scope="module")
def model(checkpoint): return checkpoint("bert")


@pytest.fixture(scope="module")
def whole_run(model, tmp_path_factory):
    "The run that nobody disturbed, in a folder; nothing is kept within an epoch."
    folder = tmp_path_factory.mktemp("whole") / "run"
    return run(model, folder, seconds=1e9) | {"folder": folder}


def names(folder): return sorted(path.name for path in Path(folder).iterdir())


posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")


# ---------------------------------------------------------------- killed and called again

def test_a_folder_changes_nothing_about_the_numbers(model, whole_run):
    same_run(run(model, None), whole_run)
    assert len(whole_run["losses"]) == 3 * STEPS and [row["epoch"] for row in whole_run["history"]] == [1, 2, 3]
    assert whole_run["losses"][0] != whole_run["losses"][STEPS]


@posix
@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 1, STEPS + 3, 2 * STEPS, 2 * STEPS + 5, 3 * STEPS])
def test_killed_at_a_step_and_called_again(step, model, whole_run, tmp_path):
    assert run(model, tmp_path / "run", kill=["step", step]) is None
    assert {name.split("-")[0] for name in names(tmp_path / "run")} <= {"run.json", "checkpoint", "best"}
    same_run(run(model, tmp_path / "run"), whole_run)


@posix
@pytest.mark.parametrize("step", [STEPS + 3, 2 * STEPS + 5])
def test_killed_between_checkpoints(step, model, whole_run, tmp_path):
    "Nothing was kept within the epoch, so its beginning is done again, and gives the same."
    assert run(model, tmp_path / "run", kill=["step", step], seconds=1e9) is None
    assert names(tmp_path / "run")[-1] == "run.json" and any(name.startswith("checkpoint-") for name in names(tmp_path / "run"))
    same_run(run(model, tmp_path / "run", seconds=1e9), whole_run)


@posix
def test_killed_again_and_again(model, whole_run, tmp_path):
    rng = random.Random()
    kills = [["step", rng.randint(1, 5)] if rng.random() < 0.7 else ["save", rng.randint(1, 12)] for _ in range(3)]
    for kill in kills: assert run(model, tmp_path / "run", kill=kill) is None
    try: same_run(run(model, tmp_path / "run"), whole_run)
    except AssertionError as error: raise AssertionError(f"after {kills}") from error


@posix
@pytest.mark.parametrize("kill", [["save", 1], ["save", 2], ["save", 20], ["seal", 1], ["seal", STEPS + 2], ["finish", 1], ["finish", 2]])
def test_killed_while_writing(kill, model, whole_run, tmp_path):
    assert run(model, tmp_path / "run", kill=kill) is None
    assert kill[0] == "finish" or any(name.startswith(".") for name in names(tmp_path / "run")), "nothing half written: this test proves nothing"
    same_run(run(model, tmp_path / "run"), whole_run)
    assert names(tmp_path / "run") == names(whole_run["folder"])


@posix
@pytest.mark.parametrize("hurt", [lambda file: file.write_bytes(file.read_bytes()[:-7]), lambda file: file.unlink(), lambda file: file.write_bytes(b"")],
                         ids=["short", "gone", "empty"])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "track.json", "files.json"])
def test_a_damaged_checkpoint_is_passed_over(file, hurt, model, whole_run, tmp_path):
    folder = tmp_path / "run"
    if not (kept := whole_run["folder"].parent / "killed").exists(): assert run(model, kept, kill=["step", STEPS + 4]) is None
    shutil.copytree(kept, folder)
    newest, before = training.numbered(folder, "checkpoint")
    hurt(newest / file)
    assert newest_checkpoint(folder) == before
    again = run(model, folder)
    same_run(again, whole_run)
    assert f"{newest} is damaged" in again["said"]


@posix
def test_damaged_and_killed_again_before_that_step(model, whole_run, tmp_path):
    assert run(model, tmp_path / "run", kill=["step", STEPS + 5]) is None                   # checkpoints of steps 9 and 10 are there
    newest, _ = training.numbered(tmp_path / "run", "checkpoint")
    (newest / "track.json").write_bytes(b"")
    assert run(model, tmp_path / "run", kill=["save", 2]) is None
    assert newest.name not in names(tmp_path / "run"), "a damaged checkpoint is still there"
    same_run(run(model, tmp_path / "run"), whole_run)


@posix
def test_when_everything_is_damaged_it_begins_anew(model, whole_run, tmp_path):
    assert run(model, tmp_path / "run", kill=["step", STEPS + 3]) is None
    for best in training.numbered(tmp_path / "run", "best"): (best / "model.safetensors").write_bytes(b"")
    assert newest_checkpoint(tmp_path / "run") is None
    same_run(run(model, tmp_path / "run"), whole_run)


@posix
def test_early_stopping_and_the_best_weights_survive(model, tmp_path):
    settings = dict(learning_rate=3e-2, epochs=12, patience=2, seed=5)
    undisturbed = run(model, None, **settings)
    best = best_epoch(undisturbed["history"])
    assert 1 <= best < len(undisturbed["history"]) < 12, "this was to stop early: choose another rate"
    for step in (best * STEPS + 2, (best + 1) * STEPS + 3):
        folder = tmp_path / str(step)
        assert run(model, folder, kill=["step", step], **settings) is None
        same_run(run(model, folder, **settings), undisturbed)


@posix
@pytest.mark.parametrize("family", ["gpt2", "roberta", "distilbert", "modernbert"])
def test_other_families(family, checkpoint, tmp_path):
    assert run(checkpoint(family), tmp_path / "run", kill=["step", STEPS + 3], epochs=2) is None
    same_run(run(checkpoint(family), tmp_path / "run", epochs=2), run(checkpoint(family), None, epochs=2))


@posix
@pytest.mark.parametrize("settings", [dict(micro_batch=3, freeze="1"), dict(layer_decay=0.5, precision="bf16"), dict(lora_rank=2, freeze="1")],
                         ids=["frozen, in parts", "rates by depth, bf16 if there is", "low rank, frozen"])
def test_with_parts_of_the_network_treated_otherwise(settings, model, tmp_path):
    if "lora_rank" in settings: pytest.importorskip("peft")
    settings = settings | dict(epochs=2)
    assert run(model, tmp_path / "run", kill=["step", STEPS + 3], **settings) is None
    assert not any(name.startswith(".") for name in names(tmp_path / "run")), "a file of kept outputs is left"
    same_run(run(model, tmp_path / "run", **settings), run(model, None, **settings))


# ---------------------------------------------------------------- what a folder holds

@pytest.fixture
def short(toy_task, model):
    "short(folder, **settings): one epoch of the toy task."
    def go(folder, task=None, **settings):
        return fine_tune(task or toy_task(), model=str(model), profile="smoke", folder=folder, **SETTINGS | dict(epochs=1) | settings)
    return go


def contents(folder): return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_finished_folder_is_a_classifier_and_is_read_at_once(short, tmp_path, monkeypatch):
    first = short(tmp_path / "deep" / "run")
    assert "run.json" in names(tmp_path / "deep" / "run") and not [n for n in names(tmp_path / "deep" / "run") if n.startswith(("checkpoint", "best", "."))]
    def train(*_, **__): raise AssertionError("it was trained again")
    monkeypatch.setattr(finetune.FineTuner, "train", train)
    before = contents(tmp_path / "deep" / "run")
    again = short(str(tmp_path / "deep" / "run"))
    for clf in (again, Classifier.load(tmp_path / "deep" / "run")):
        assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), clf.model.state_dict().values(), strict=True))
    assert again.history == first.history and again.losses == first.losses and again.seconds == first.seconds and again.batch_size == first.batch_size
    assert contents(tmp_path / "deep" / "run") == before


def test_another_run_is_refused_and_the_folder_left_alone(short, toy_task, tmp_path):
    short(tmp_path / "run")
    before = contents(tmp_path / "run")
    for change, said in ((dict(seed=8), "seed = 42, not 8"), (dict(batch_size=8), "batch_size"), (dict(epochs=2), "epochs"), (dict(freeze="1"), "freeze"),
                         (dict(task=toy_task(seed=1)), "other texts"), (dict(task=toy_task(names=("a", "b", "c"))), "label_names")):
        with pytest.raises(RunError, match=said) as error: short(tmp_path / "run", **change)
        assert "\n" not in str(error.value) and "choose a new folder" in str(error.value)
    assert contents(tmp_path / "run") == before
    short(tmp_path / "run", eval_batch_size=5, micro_batch=2)                     # these do not change what is learned


def test_something_else_than_a_run_is_refused(short, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    (tmp_path / "file").write_text("important")
    for place in ("mine", "file"):
        with pytest.raises(RunError, match="something else than a run"): short(tmp_path / place)
    assert contents(tmp_path) == {os.path.join("mine", "thesis.txt"): b"important", "file": b"important"}
    (tmp_path / "mine" / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"): short(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    short(tmp_path / "empty")


def test_a_wrong_model_leaves_no_folder(short, toy_task, tmp_path):
    with pytest.raises(ModelError): fine_tune(toy_task(), model="no-such-model", profile="smoke", folder=tmp_path / "run")
    with pytest.raises(ProfileError, match="freeze"): short(tmp_path / "run", freeze="9")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the disk

def test_a_full_disk_is_one_sentence_and_the_run_goes_on_from_before(short, tmp_path, monkeypatch):
    calls, save = [], torch.save
    def full(thing, path, **more):
        calls.append(path)
        if len(calls) == 7:                                  # in the third checkpoint
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(thing, path, **more)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="checkpoint-3 could not be written .No space left on device.: make room") as error: short(tmp_path / "run")
    assert "\n" not in str(error.value) and names(tmp_path / "run") == ["checkpoint-1", "checkpoint-2", "run.json"]
    monkeypatch.setattr(torch, "save", save)
    clf, undisturbed = short(tmp_path / "run"), short(None)
    assert clf.losses == undisturbed.losses
    assert all(torch.equal(a, b) for a, b in zip(clf.model.state_dict().values(), undisturbed.model.state_dict().values(), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize("folder", [True, False])
def test_a_disk_that_really_ends(folder, model, tmp_path):
    "No file may grow beyond 100 kB: the writers in C++ and Rust meet a real error of the disk."
    code, _, said = start(model, tmp_path / "run" if folder else None, limit=100_000)
    last = said.strip().splitlines()[-1]
    assert code == 1 and "RunError" in last and "could not be written" in last and "make room" in last, said[-2000:]
    assert not folder or names(tmp_path / "run") == ["run.json"]


def test_a_folder_that_cannot_be_made_or_vanishes(short, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written") as error: short(tmp_path / "file" / "run")
    assert "\n" not in str(error.value)
    step = finetune.FineTuner.training_step
    def vanish(self, *arguments, **more):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return step(self, *arguments, **more)
    monkeypatch.setattr(finetune.FineTuner, "training_step", vanish)
    with pytest.raises(RunError, match="could not be written") as error: short(tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(short, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RunError, match="Permission denied"): short(tmp_path / "locked" / "run")


def test_nothing_but_data_is_read_from_a_checkpoint(short, tmp_path, monkeypatch):
    "A pickle that would run code is refused: the checkpoint is read with weights_only=True."
    class Bomb:
        def __reduce__(self): return (os.mkdir, (str(tmp_path / "boom"),))
    def stop(self, *_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(finetune.FineTuner, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt): short(tmp_path / "run")
    for path in training.numbered(tmp_path / "run", "checkpoint"):
        torch.save(Bomb(), path / "optimizer.pt")
        training._seal(path)
    with pytest.raises(Exception, match="[Ww]eights"): short(tmp_path / "run")
    assert not (tmp_path / "boom").exists()


# ---------------------------------------------------------------- the command line

@posix
def test_the_command_line_says_how_to_go_on_and_does(model, tmp_path):
    settings = re.sub(r"(epochs|patience) = 1\n", r"\1 = 80\n", Path(__file__).resolve().parents[1].joinpath("settings.ini").read_text())
    (tmp_path / "settings.ini").write_text(settings.replace("train_rows = 32", "train_rows = 0"))
    rows = [f"{'good' if i % 2 else 'bad'} {'soup ' * (i % 7)}{i} {split},{'yes' if i % 2 else 'no'},{split}"
            for split, n in (("train", 30), ("validation", 10), ("test", 10)) for i in range(n)]
    (tmp_path / "mine.csv").write_text("\n".join(["words,label,split", *rows]) + "\n")
    program = Path(sysconfig.get_path("scripts")) / "tutorial-clf"
    env = os.environ | {"TUTORIAL_CLF_PROFILE": "smoke", "OMP_NUM_THREADS": "1"}
    words = [program, "finetune", "--task", "mine.csv", "--text", "words", "--model", str(model)]
    def call(*words): return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    with open(tmp_path / "log.txt", "w") as log, subprocess.Popen(words, cwd=tmp_path, env=env, stdout=log, stderr=log) as broken:
        for _ in range(2000):
            if list(tmp_path.glob("runs/unfinished/*/run/checkpoint-*")): break
            time.sleep(0.02)
        broken.send_signal(signal.SIGINT)
        assert broken.wait(60) == 130
    last = (tmp_path / "log.txt").read_text().strip().splitlines()[-1]
    assert "stopped; nothing was left half written. Go on with: tutorial-clf finetune --resume runs/unfinished/" in last, last
    assert call(program, "finetune", "--resume", "runs", "--epochs", "3").stderr == \
        "tutorial-clf: --resume goes on with the settings of that run: leave out --epochs.\n"
    again = call(program, *last.split("Go on with: tutorial-clf ")[1].split())
    assert again.returncode == 0 and "kept in" in again.stdout, again.stderr[-2000:]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"latest", (tmp_path / "runs" / "latest").resolve().name}, "the unfinished run is still there"
    assert "card.json" in (kept := names(tmp_path / "runs" / "latest")) and not {"run.json", "command.json", "run"} & set(kept)
    assert call(*words, "--out", "undisturbed").returncode == 0
    one, other = (tmp_path / place / "latest" / "model.safetensors" for place in ("runs", "undisturbed"))
    assert one.read_bytes() == other.read_bytes()
    for folder, said in (("runs/latest", "is finished"), ("runs", "holds no interrupted run"), ("nowhere", "holds no interrupted run")):
        wrong = call(program, "finetune", "--resume", folder)
        assert wrong.returncode == 2 and said in wrong.stderr and len(wrong.stderr.splitlines()) == 1
