"""The command line as a person uses it: in an empty folder, in processes of its own, without any network where the system can cut it."""
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

PROGRAM = Path(sysconfig.get_path("scripts")) / "tutorial-clf"
ALONE = ["unshare", "-n"]


def can_cut_the_network() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


def clf(folder, *words, prefix=(), **env):
    "What `tutorial-clf words` did in `folder` under the profile smoke."
    env = os.environ | {"TUTORIAL_CLF_PROFILE": "smoke", "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"} | env
    return subprocess.run([*prefix, PROGRAM, *words], cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", timeout=120)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A folder in which `tutorial-clf finetune` was run, and what it printed."
    folder = tmp_path_factory.mktemp("somewhere")
    run = clf(folder, "finetune", prefix=ALONE if can_cut_the_network() else (), HF_HUB_OFFLINE="")
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, run


def test_finetune_prints_a_card_and_three_predictions(done):
    _, run = done
    assert "TF-IDF" in run.stdout and "majority" in run.stdout and "95 % interval" in run.stdout
    assert "fine-tuning: 100%" in run.stderr, "no progress bar on the error stream"
    assert sum(line.split("\t")[0] in ("negative", "positive") for line in run.stdout.splitlines()) == 3


def test_card_has_what_it_promises(done):
    folder, _ = done
    card = json.loads((folder / "runs" / "latest" / "card.json").read_text(encoding="utf-8"))
    low, high = card["accuracy_interval"]
    assert 0 <= low <= card["accuracy"] <= high <= 1 and 0 <= card["macro_f1"] <= 1
    assert all(0 <= card["baselines"][name]["accuracy"] <= 1 for name in ("majority", "tfidf"))
    assert card["seconds"] > 0 and 100 < card["peak_memory_mb"] < 3000
    assert card["profile"]["name"] == "smoke" and card["seed"] == 42 and "torch" in card["versions"] and card["hardware"]["cores"] >= 1
    assert "commit" in card and card["n"] == card["rows"]["test"]


def test_run_folder_is_whole_and_latest_points_to_it(done):
    folder, _ = done
    names = {path.name for path in (folder / "runs").iterdir()}
    assert "latest" in names and len(names) == 2 and not any(name.startswith(".") for name in names), names
    kept = {path.name for path in (folder / "runs" / "latest").iterdir()}
    assert {"card.json", "history.png", "config.json", "model.safetensors", "tokenizer.json"} <= kept, kept
    assert not set('<>:"|?*') & set("".join(names)), "a name that Windows refuses"


def test_pipeline_loads_the_run_as_it_is(done):
    from transformers import pipeline
    answer = pipeline("text-classification", model=str(done[0] / "runs" / "latest"), device="cpu")("not bad at all")[0]
    assert answer["label"] in ("negative", "positive")


def test_predict_texts_and_files_agree(done):
    folder, _ = done
    texts = ["not bad at all", "cold, late and wrong", 'she said "never again", and I agree\nwith her']
    with open(folder / "mine.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "review"], *enumerate(texts)])
    said = clf(folder, "predict", "runs/latest", *texts)
    lines = [line.split("\t") for line in said.stdout.splitlines()]
    assert said.returncode == 0 and [line[2] for line in lines] == [" ".join(text.split()) for text in texts]
    filed = clf(folder, "predict", "runs/latest", "mine.csv", "--text", "review", "--out", "done.csv")
    assert filed.returncode == 0, filed.stderr
    with open(folder / "done.csv", encoding="utf-8", newline="") as file: rows = list(csv.DictReader(file))
    assert [row["review"] for row in rows] == texts and [row["id"] for row in rows] == ["0", "1", "2"]
    assert [row["predicted"] for row in rows] == [line[0] for line in lines]
    assert all(abs(float(row["probability"]) - float(line[1])) < 1e-3 for row, line in zip(rows, lines))
    assert clf(folder, "predict", "runs/latest", "mine.csv", "--text", "review").stdout.splitlines()[0] == "id,review,predicted,probability"
    short = clf(folder, "predict", "runs/latest", *texts, "--precision", "int8")
    assert short.returncode == 0 and not short.stderr, short.stderr
    assert all(abs(float(a.split("\t")[1]) - float(b[1])) < 0.1 for a, b in zip(short.stdout.splitlines(), lines))


def test_own_file_with_options(tmp_path):
    rows = [(f"{word} number {i} of the {thing}" + " and so on" * (60 if i == 0 else 0), label) for i in range(12) for thing in ("soup", "film")
            for word, label in (("lovely", "up"), ("dreadful", "down"))]
    (tmp_path / "mine.tsv").write_text("review\tstars\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    run = clf(tmp_path, "finetune", "--task", "mine.tsv", "--text", "review", "--label", "stars", "--out", "kept/here", "--seed", "7", "--train-rows", "16")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "warning:" in run.stderr and "cut by more than half" in run.stderr, "texts far longer than max_length went without a warning"
    card = json.loads((tmp_path / "kept" / "here" / "latest" / "card.json").read_text(encoding="utf-8"))
    assert card["task"] == "mine" and card["seed"] == 7 and card["rows"]["train"] == 16 and set(card["per_class"]) == {"up", "down"}


def test_duplicates_are_scored_both_ways(tmp_path):
    rows = [(f"{word} number {i} at the {place}", label) for i in range(10) for place in ("shop", "house", "mill")
            for word, label in (("a lovely soup", "up"), ("a dreadful film", "down"))]
    parts = {"train": rows[:40], "validation": rows[40:50], "test": rows[:10] + rows[50:]}
    def write(name, parts):
        lines = [f"{text},{label},{split}" for split, part in parts.items() for text, label in part]
        (tmp_path / name).write_text("text,label,split\n" + "\n".join(lines) + "\n", encoding="utf-8")
    write("some.csv", parts)
    write("all.csv", parts | {"test": rows[:10]})
    for name, said in (("some", "without the rows that repeat earlier ones: accuracy"), ("all", "no score without duplicates")):
        run = clf(tmp_path, "finetune", "--task", f"{name}.csv", "--train-rows", "0", "--out", name)
        assert run.returncode == 0 and said in run.stdout and "repeat" in run.stderr, run.stdout + run.stderr[-2000:]
        card = json.loads((tmp_path / name / "latest" / "card.json").read_text(encoding="utf-8"))
        assert ("refused" in card["without_duplicates"]) == (name == "all") and card["data"]["duplicates_across_splits"] >= 10


@pytest.mark.parametrize("words, hint", [
    (["finetune", "--profile", "smoky"], "smoke"), (["finetune", "--task", "reviewz"], "reviews"), (["finetune", "--epochs", "0"], "epochs"),
    (["finetune", "--model", "no/such-model"], "minilm"), (["finetune", "--device", "cuda"], "cpu"), (["finetune", "--task", "gone.csv"], "gone.csv"),
    (["predict", "runs/nothing", "a text"], "runs/latest"), (["predict", "runs/nothing", "a text", "--out", "x.csv"], "--out"),
    (["predict", "runs/nothing", "a text", "--precision", "int4"], "float32, bf16, int8")])
def test_a_mistake_gives_one_sentence(tmp_path, words, hint):
    run = clf(tmp_path, *words)
    assert run.returncode == 2 and len(run.stderr.strip().splitlines()) == 1 and hint in run.stderr, run.stderr
    assert not list(tmp_path.iterdir()), "something was left behind"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_an_interrupted_run_leaves_nothing(tmp_path):
    env = os.environ | {"TUTORIAL_CLF_PROFILE": "smoke"}
    with open(tmp_path / "log.txt", "w") as log:
        run = subprocess.Popen([PROGRAM, "finetune", "--epochs", "200", "--train-rows", "0"], cwd=tmp_path, env=env, stderr=log, stdout=log)
        for _ in range(600):
            if "1/" in (tmp_path / "log.txt").read_text(): break
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130, (tmp_path / "log.txt").read_text()[-2000:]
    assert "nothing was left half written" in (tmp_path / "log.txt").read_text()
    assert not list((tmp_path / "runs").iterdir()), "a half-written run"


def test_help_and_version_are_quick(tmp_path):
    def seconds(*command):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
        return time.perf_counter() - started
    spans = [(seconds(PROGRAM, "--help"), seconds(sys.executable, "-c", "pass")) for _ in range(5)]
    assert statistics.median(a - b for a, b in spans) < 0.5, spans
    assert clf(tmp_path, "--version").stdout.startswith("tutorial-clf ")
    assert all(name in clf(tmp_path, "tasks").stdout for name in ("reviews", "docstrings", "sst2"))
