"""Counting operations, timing in rounds, and what `make bench` does with its options and its windows."""
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from tutorial_clf.speed import interleaved, layer_flops, matrix_rate, paired_ratio, plot_speed, rates, speed_table, step_flops, window

matplotlib.use("agg")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", ROOT / ".ci" / "bench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(**more):
    return BertConfig(**dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, vocab_size=50, attn_implementation="eager") | more)


# ---- operations

@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (8, 5)])
@pytest.mark.parametrize("sizes", [{}, dict(hidden_size=36, intermediate_size=20), dict(num_hidden_layers=5)])
def test_counts_are_those_of_torch(shape, sizes):
    c = config(**sizes)
    network = BertModel(c, add_pooling_layer=False)
    ids = torch.randint(0, 50, shape)
    with FlopCounterMode(display=False) as forward: network(input_ids=ids)
    with FlopCounterMode(display=False) as both: network(input_ids=ids).last_hidden_state.sum().backward()
    assert forward.get_total_flops() == step_flops(c, *shape, trained=False)
    assert both.get_total_flops() == step_flops(c, *shape)


def test_kept_layers_are_not_counted():
    c = config(num_hidden_layers=6)
    assert [step_flops(c, 2, 9, kept=k) for k in (0, 3, 6)] == [18 * layer_flops(c, 2, 9), 9 * layer_flops(c, 2, 9), 0]
    for wrong in (-1, 7):
        with pytest.raises(ValueError, match="6 layers"): step_flops(c, 2, 9, kept=wrong)


def test_matrix_rate():
    assert 1e6 < matrix_rate("float32", 128, 0.01) < 1e16
    for wrong in (dict(precision="int4"), dict(size=0)):
        with pytest.raises(ValueError, match="float32 or bf16"): matrix_rate(**wrong)


# ---- time

class Clock:
    "A clock that only steps move."

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("tutorial_clf.speed.perf_counter", lambda: self.now)

    def step(self, seconds, **counts):
        def step():
            self.now += seconds
            return counts
        return step


def test_window_counts_whole_steps_and_real_seconds(monkeypatch):
    clock = Clock(monkeypatch)
    assert window(clock.step(0.4, texts=3, tokens=30), 1.0) == dict(texts=9, tokens=90, seconds=pytest.approx(1.2))
    assert window(clock.step(5.0, texts=3), 1.0) == dict(texts=3, seconds=5.0), "one step at least, however long it takes"


def test_warm_up_is_not_counted(monkeypatch):
    clock, slow = Clock(monkeypatch), [100.0, 100.0]
    def step():
        clock.now += slow.pop() if slow else 1.0
        return dict(texts=1)
    assert window(step, 3.0, warmup=2) == dict(texts=3, seconds=3.0)


def test_rounds_begin_with_another_contender():
    order = []
    found = interleaved({name: lambda name=name: order.append(name) or {"n": len(order)} for name in "ab"}, repeats=3)
    assert "".join(order) == "abbaab" and found["a"] == [{"n": 1}, {"n": 4}, {"n": 5}]
    for contenders, repeats in (({}, 1), ({"a": dict}, 0)):
        with pytest.raises(ValueError, match="at least one"): interleaved(contenders, repeats)


def test_ratio_is_taken_within_rounds():
    ours = [dict(texts=100, tokens=900, seconds=s) for s in (1, 8, 9)]
    theirs = [dict(texts=100, tokens=900, seconds=s) for s in (5, 16, 4.5)]
    assert paired_ratio(ours, theirs) == dict(median=2.0, low=0.5, high=5.0)
    assert paired_ratio(ours, theirs, "tokens") == paired_ratio(ours, theirs)
    assert rates(theirs) == [20, 6.25, pytest.approx(22.2, abs=0.1)]
    for a, b in (([], []), (ours, theirs[:2])):
        with pytest.raises(ValueError, match="as many of both"): paired_ratio(a, b)


def windows(seconds): return [dict(texts=120, tokens=1200, flops=6e9, seconds=s) for s in seconds]


def test_table_compares_with_the_rung_above_and_the_first():
    table = speed_table(dict(slow=windows([6, 6]), middle=windows([3, 2]), quick=windows([1, 1])), dict(slow=2e9, middle=4e9, quick=1e10))
    assert [row["texts/s"] for row in table] == ["20", "50", "120"] and [row["of the limit"] for row in table] == ["50%", "62%", "60%"]
    assert table[0]["than above"] == "" and table[2]["than above"] == "2.50 (2.00-3.00)" and table[2]["than first"] == "6.00 (6.00-6.00)"


def test_plot_draws_bars_and_limits():
    results = dict(slow=windows([6, 6]), quick=windows([1, 2]))
    ax = plot_speed(results, dict(slow=2e9, quick=1e10))
    assert [bar.get_width() for bar in ax.patches] == [20, 90]
    marks = [line.get_xdata()[0] for line in ax.lines if line.get_linewidth() == 2.5]
    assert marks == [pytest.approx(40), pytest.approx(200)]                                    # limit: 20 and 50 thousand million a text


# ---- the bench

def test_stopwatch_leaves_the_warm_up_out(bench, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    watch = bench.Stopwatch(2.5, config(), kept=1, warmup=2)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    for step in range(1, 6):
        watch.count({"attention_mask": mask})
        now[0] += 1.0
        over = watch.step_ended()
        assert over == (step == 5), "two steps to warm up, and then three seconds, of a step each"
    assert watch.result == dict(texts=6, tokens=12, places=18, flops=3 * step_flops(config(), 2, 3, kept=1), steps=3, seconds=3.0)


def test_groups_of_operations(bench):
    names = {"aten::addmm": "products", "aten::_scaled_dot_product_flash_attention_for_cpu": "products", "aten::native_dropout": "dropout", "aten::bernoulli_": "dropout",
             "aten::_fused_adamw_": "optimiser", "aten::gelu_backward": "GELU", "aten::native_layer_norm": "layer norm", "aten::copy_": "conversion", "aten::mul": "dropout", "aten::mul_": "optimiser",
             "aten::native_layer_norm_backward": "layer norm", "aten::linalg_vector_norm": "optimiser", "aten::embedding": "other operations",
             "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__": "batches", "Optimizer.step#AdamW.step": "optimiser"}
    assert {name: bench.group(name) for name in names} == names


def test_many_texts_are_all_texts_in_turn(bench):
    from collections import Counter
    known = Counter(bench.read("train")[0])
    found = Counter(bench.many(2 * sum(known.values())))
    assert found == Counter({text: 2 * n for text, n in known.items()})


@pytest.mark.parametrize("arguments, said", [(["trian"], "no part 'trian'"), (["--window", "0"], "more than 0"), (["--repeats", "0"], "at least 1"), (["--rows", "-1"], "at least 0")])
def test_bad_options_end_in_a_sentence(bench, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop: bench.options_from(arguments)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_without_the_public_files_the_shipped_reviews_are_read(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    texts, labels = bench.read("train")
    assert len(texts) == len(labels) >= 6920 and set(labels) == {0, 1} and "not there" in bench.source()
    assert len(set(bench.read("dev")[0]) & set(texts)) == 0


def pretended(do, kind=None, **job):
    "What a worker would return: the speeds are known, and the second round is slow for all."
    rounds = pretended.rounds = getattr(pretended, "rounds", {})
    if do == "rates": return dict(float32=[1e11] * 5, bf16=[4e11] * 5, threads=1)
    if do == "labels": return dict(labels=["positive"] * 80 + ["negative" if kind == "int8" else "positive"] * 20)
    if do == "learn": return dict(seconds=10.0, predictions=[1] * 99 + [int(kind == "padded")], history=[], memory_mb=1)
    if do.startswith("grow"): return dict(texts_per_second=100.0 + (job["n"] == 1000), peak_mb=500.0, added_mb=1.0)
    if do == "fit": return {}
    rounds[kind] = rounds.get(kind, 0) + 1
    texts = {"padded": 10, "grouped": 50, "fast": 200, "one by one": 50, "batched": 80, "int8": 800, "bf16": 500}.get(kind, 100)
    return dict(texts=texts, tokens=10 * texts, places=20 * texts, flops=10**9 * texts, seconds=3.0 if rounds[kind] == 2 else 1.0, memory_mb=1, split={"products": 0.8}, largest={})


@pytest.fixture
def written(bench, monkeypatch, tmp_path):
    "A function that runs a part with pretended workers and returns the record's results."
    monkeypatch.setattr(bench, "alone", pretended)
    monkeypatch.setattr(bench, "read", lambda split: (["fine"] * 100, [1] * 90 + [0] * 10))
    monkeypatch.setattr(pretended, "rounds", {}, raising=False)
    def run(part):
        bench.PARTS[part](bench.options_from([part, "--repeats", "3", "--out", str(tmp_path)]))
        return json.loads((tmp_path / f"bench-{part}.json").read_text())["results"]
    return run


def test_record_of_training_has_median_ratios_and_the_repeats(written):
    train = written("train")["train"]
    assert (train["vs_padded"], train["vs_grouped"]) == (20.0, 4.0) and len(train["windows"]["padded"]) == 3
    assert train["ratios"]["fast against padded"] == dict(median=20.0, low=20.0, high=20.0)
    assert train["summary"]["padded"]["padding"] == 0.5 and train["profile"]["fast"]["split"] == {"products": 0.8}


def test_prediction_is_judged_by_the_fastest_way_that_says_the_same(written):
    predict = written("predict")["predict"]
    assert predict["same_labels"]["int8"] == 0.8 and predict["ours"] == "bf16", "int8 is faster, and says something else on 20 of 100 texts"
    assert (predict["vs_one_by_one"], predict["vs_batched"]) == (10.0, 6.25) and predict["accuracy"]["bf16"] == 0.9


def test_records_of_growth_and_accuracy(written):
    growth, accuracy = written("growth")["growth"], written("accuracy")["accuracy"]
    assert list(growth["data"]) == ["1000", "10000", "100000", "1000000"] and growth["data_speed_spread"] == pytest.approx(0.01)
    assert growth["predict_speed_spread_without_smallest"] == growth["data_memory_spread"] == 0
    assert accuracy["runs"]["fast"]["accuracy"] == 0.91 and accuracy["paired_tests"]["fast against padded"]["only_a"] == 1
    assert accuracy["times_faster"]["ours against padded"] == 1.0


@pytest.mark.parametrize("kind", ["grouped", "kept"])
def test_a_window_of_training_is_stopped_by_its_clock(tmp_path, kind):
    job = dict(do="train", kind=kind, seconds=0.5, rows=96, out=str(tmp_path / "out.json"))
    done = subprocess.run([sys.executable, ROOT / ".ci" / "bench.py", "--worker", json.dumps(job)], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["steps"] >= 1 and found["seconds"] >= 0.5 and 0 < found["tokens"] <= found["places"] and found["texts"] <= 32 * found["steps"]
