"""Measure the course's own speed beside public peers on this machine; each part writes data/runs/bench-<part>.json.

usage: python .ci/bench.py [part ...] [options]        (make bench ARGS="train --window 10"); no part means all of them
Every measurement runs in a process of its own, one after another; speeds are taken in windows, in rounds, each round begun by another
contender. Texts: the SST-2 sentences in the folder TUTORIAL_CLF_REAL_DATA (default ../shared/data), else the shipped reviews, repeated.
"""
import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("TUTORIAL_CLF_REAL_DATA") or ROOT.parent / "shared" / "data")
SEED, MAX_LENGTH, NAMES = 42, 128, ["negative", "positive"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What is measured. A peer is `transformers.Trainer`; ours is `fine_tune` with fields of a profile. `main`: full windows, else short ones.
PEERS = {"padded": dict(pad=True), "longest": dict(), "grouped": dict(train_sampling_strategy="group_by_length")}
OURS = {"batch 32": dict(precision="float32", freeze="none"), "embeddings": dict(precision="float32", freeze="embeddings"),
        "fast": dict(), "kept": dict(freeze="3")}
MAIN = ("padded", "grouped", "fast", "one by one", "batched", "int8")
RUNGS = {"padded": "Trainer, padded to 128", "longest": "padded to the longest", "grouped": "batches by length", "batch 32": "32 texts a batch, by fine_tune",
         "embeddings": "embeddings frozen", "fast": "bf16 products", "kept": "three lower layers kept"}
PEER_ARGUMENTS = dict(per_device_train_batch_size=16, learning_rate=5e-5, num_train_epochs=2)      # batch, rate and epochs of the peers
PREDICT = {"one by one": dict(pipeline=1), "batched": dict(pipeline=32), "float32": dict(precision="float32"), "bf16": dict(precision="bf16"),
           "int8": dict(precision="int8")}


# ---- texts

def read(split: str) -> tuple:
    "(texts, label numbers) of the `split` train, dev or test."
    if (FOLDER / f"sst2.{split}").is_file():
        lines = [line.split(" ", 1) for line in (FOLDER / f"sst2.{split}").read_text(encoding="latin-1").splitlines() if line]
        return [text for _, text in lines], [int(label) for label, _ in lines]
    from tutorial_clf.data import load_task
    rows = load_task("reviews").splits[{"dev": "test"}.get(split, split)]
    times = -(-6920 // len(rows)) if split == "train" else 1
    return list(rows["text"]) * times, list(rows["label"]) * times


def source() -> str:
    return "SST-2 sentences" if (FOLDER / "sst2.train").is_file() else "reviews of the course, training rows repeated (the SST-2 files are not there)"


def some(split: str, n: int, seed: int = SEED) -> tuple:
    "`n` texts of the `split` in random order with their labels; 0 = all."
    import numpy as np
    texts, labels = read(split)
    rows = np.random.default_rng(seed).permutation(len(texts))[:n or None]
    return [texts[i] for i in rows], [labels[i] for i in rows]


def dataset(texts, labels):
    from datasets import ClassLabel, Dataset, Features, Value
    return Dataset.from_dict({"text": texts, "label": labels}, features=Features({"text": Value("string"), "label": ClassLabel(names=NAMES)}))


# ---- one process: training

class Stopwatch:
    "Counts the texts, tokens, places and operations of each training step, and stops the training when the window is over."

    def __init__(self, seconds, config, kept=0, warmup=4, profiler=None):
        self.seconds, self.config, self.kept, self.warmup, self.profiler = seconds, config, kept, warmup, profiler
        self.steps, self.began, self.result = [], None, None

    def count(self, inputs):
        from tutorial_clf.speed import step_flops
        mask = inputs["attention_mask"]                                                 # (texts, width)
        self.steps.append(dict(texts=mask.shape[0], tokens=int(mask.sum()), places=mask.numel(), flops=step_flops(self.config, *mask.shape[:2], kept=self.kept)))

    def step_ended(self) -> bool:
        "Whether the window is over."
        if len(self.steps) == self.warmup:
            if self.profiler: self.profiler.start()
            self.began = time.perf_counter()
        elif self.began is not None and self.result is None and (taken := time.perf_counter() - self.began) >= self.seconds:
            if self.profiler: self.profiler.stop()
            seen = self.steps[self.warmup:]
            self.result = {key: sum(step[key] for step in seen) for key in seen[0]} | dict(steps=len(seen), seconds=taken)
        return self.result is not None


def timed(base, watch):
    "A subclass of the trainer `base` that `watch` looks at."
    from transformers import TrainerCallback
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if watch.step_ended(): control.should_training_stop = True
        def on_evaluate(self, args, state, control, **_):           # after fine_tune's own, which has another opinion
            if watch.result: control.should_training_stop = True
    class Timed(base):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            self.add_callback(Stop())
        def training_step(self, model, inputs, *more):
            watch.count(inputs)
            return super().training_step(model, inputs, *more)
    return Timed


def train_peer(texts, labels, kind, watch=None, pad=False, **more):
    "A model and tokenizer from `Trainer` as its documentation uses it, with dynamic padding unless `pad`."
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, default_data_collator
    from tutorial_clf.pretrained import load_classifier, load_tokenizer, quiet
    from tutorial_clf.profile import set_seed
    tokenizer = load_tokenizer("minilm")
    set_seed(SEED)
    model = load_classifier("minilm", NAMES)
    def encoded(batch): return tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH, padding="max_length" if pad else False)
    rows = dataset(texts, labels).map(encoded, batched=True, remove_columns=["text"])
    if "train_sampling_strategy" in more: rows = rows.add_column("length", [len(ids) for ids in rows["input_ids"]])
    with tempfile.TemporaryDirectory() as folder, quiet():
        arguments = TrainingArguments(folder, use_cpu=True, seed=SEED, save_strategy="no", disable_tqdm=True, **PEER_ARGUMENTS | more | (dict(num_train_epochs=1000) if watch else {}))
        trainer = (timed(Trainer, watch) if watch else Trainer)(
            model=model, args=arguments, processing_class=tokenizer, train_dataset=rows, data_collator=default_data_collator if pad else DataCollatorWithPadding(tokenizer))
        trainer.train()
    return model, tokenizer


def train_ours(texts, labels, kind, watch=None, held=None, **fields):
    "A classifier from `fine_tune` under the profile fast with `fields`; the last `held` of the texts, a tenth, choose the epoch."
    from tutorial_clf import finetune
    from tutorial_clf.data import Task
    held = held or len(texts) // 10
    if watch: finetune.FineTuner, held, fields = timed(finetune.FineTuner, watch), 8, fields | dict(epochs=1000, patience=1000)
    train, held_out = (dataset(texts[rows], labels[rows]) for rows in (slice(None, -held), slice(-held, None)))
    return finetune.fine_tune(Task("bench", NAMES, train, held_out, held_out.select([]), {}), profile="fast", **fields)


def do_train(kind, seconds, rows, profile=False):
    "One window of training."
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler
    from transformers import AutoConfig
    from tutorial_clf.pretrained import find_model
    texts, labels = some("train", rows)
    fields = PEERS.get(kind) or OURS.get(kind, {})
    kept = fields.get("freeze", "none")
    watch = Stopwatch(seconds, AutoConfig.from_pretrained(find_model("minilm")), int(kept) if kept.isdecimal() else 0,
                      profiler=profiler(activities=[ProfilerActivity.CPU]) if profile else None)
    (train_peer if kind in PEERS else train_ours)(texts, labels, kind, watch, **fields)
    return watch.result | dict(memory_mb=peak_memory()) | (shares(watch.profiler, watch.result["seconds"]) if profile else {})


def do_learn(kind, rows, **fields):
    "A whole run: seconds from texts to a trained model, and its predictions on the dev split."
    from tutorial_clf.finetune import Classifier
    texts, labels = some("train", rows)
    began = time.perf_counter()
    clf = Classifier(*train_peer(texts, labels, kind, **PEERS[kind])) if kind in PEERS else train_ours(texts, labels, kind, **fields)
    seconds = time.perf_counter() - began
    return dict(seconds=seconds, predictions=clf.predict_proba(read("dev")[0]).argmax(1).tolist(), history=clf.history, memory_mb=peak_memory())


# ---- where the time goes

GROUPS = {"batches": ("dataloader",), "dropout": ("bernoulli", "dropout"), "GELU": ("gelu",), "layer norm": ("layer_norm",), "optimiser": ("adam", "foreach", "vector_norm", "aten::mul_"),
          "products": ("mm", "linear", "matmul", "attention"), "conversion": ("copy_", "aten::to", "to_copy")}


def group(name: str) -> str:
    "The group of GROUPS that an operation of torch's profiler belongs to. A factor for each activation is dropout's; one in place is that of clipping."
    if name in ("aten::mul", "aten::div_"): return "dropout"
    return next((title for title, words in GROUPS.items() if any(word in name.lower() for word in words)), "other operations")


def shares(profiler, seconds: float) -> dict:
    "`split`: the share of the `seconds` that each group of operations took; `largest`: that of single operations."
    own = {event.key: event.self_cpu_time_total / 1e6 / seconds for event in profiler.key_averages()}
    split = {}
    for name, share in own.items(): split[group(name)] = split.get(group(name), 0.0) + share
    split["outside of operations"] = max(0.0, 1 - sum(split.values()))
    return dict(split=split, largest=dict(sorted(own.items(), key=lambda item: -item[1])[:15]))


def do_rates(seconds):
    "Operations per second in large float32 products, and in bf16 where the processor has it."
    import torch
    from tutorial_clf.speed import matrix_rate
    from tutorial_clf.training import native_bf16
    return {precision: [matrix_rate(precision, 1536, seconds) for _ in range(5)] for precision in ["float32"] + ["bf16"] * native_bf16("cpu")} | dict(threads=torch.get_num_threads())


# ---- one process: prediction

def predictor(folder, pipeline=0, precision=None):
    "A function from texts to label names."
    if not pipeline:
        from tutorial_clf.finetune import Classifier
        return Classifier.load(folder, precision=precision).predict
    from transformers import pipeline as make
    pipe = make("text-classification", model=folder, tokenizer=folder, device="cpu", truncation=True, max_length=MAX_LENGTH, batch_size=pipeline)
    return lambda texts: [row["label"] for row in pipe(list(texts))]


def work_of(lengths, pipeline) -> dict:
    "Counts of a pass over texts of these `lengths`: in the order given in batches of `pipeline`, or in ours where that is 0."
    from transformers import AutoConfig
    from tutorial_clf.data import length_batches
    from tutorial_clf.pretrained import find_model
    from tutorial_clf.speed import step_flops
    batches = [range(i, min(i + pipeline, len(lengths))) for i in range(0, len(lengths), pipeline)] if pipeline else length_batches(lengths, 32)
    shapes, config = [(len(rows), max(lengths[i] for i in rows)) for rows in batches], AutoConfig.from_pretrained(find_model("minilm"))
    return dict(texts=len(lengths), tokens=sum(lengths), places=sum(rows * width for rows, width in shapes),
                flops=sum(step_flops(config, *shape, trained=False) for shape in shapes))


def do_predict(kind, folder, seconds, rows):
    "One window of prediction. `pipeline` gets its texts 128 at a time, or the window would never end in time; ours all at once."
    from tutorial_clf.pretrained import load_tokenizer
    from tutorial_clf.speed import window
    texts = some("train", rows or 3000)[0]
    predict, pipeline = predictor(folder, **PREDICT[kind]), PREDICT[kind].get("pipeline", 0)
    size = 128 if pipeline else len(texts)
    lengths = [len(ids) for ids in load_tokenizer("minilm")(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]]
    counts = {i: work_of(lengths[i:i + size], pipeline) for i in range(0, len(texts), size)}
    turn = iter(range(10**9))
    def step():
        i = next(turn) % len(counts) * size
        predict(texts[i:i + size])
        return counts[i]
    predict(texts[:64])
    return window(step, seconds, warmup=0) | dict(memory_mb=peak_memory())


def do_labels(kind, folder): return dict(labels=predictor(folder, **PREDICT[kind])(read("dev")[0]))


def do_fit(folder, rows):
    "Fine-tune the model that all predict with."
    texts, labels = some("train", rows or 4000)
    train_ours(texts, labels, "fast", epochs=2).save(folder)
    return {}


# ---- one process: growth

class Memory:
    "Most memory of this process (MB) inside the `with`, and how much more that is than before; without mapped files where the system tells them apart. Seconds of CPU, too."

    def __enter__(self):
        self.before, self.stop, self.peak, self.cpu = held_mb(), threading.Event(), 0, time.process_time()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self

    def look(self):
        while not self.stop.wait(0.02): self.peak = max(self.peak, held_mb())

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join()
        self.cpu = time.process_time() - self.cpu
        self.peak = max(self.peak, held_mb())


def held_mb() -> float:
    try: return next(int(line.split()[1]) / 1e3 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        import psutil
        return psutil.Process().memory_info().rss / 1e6


def peak_memory() -> int:
    from tutorial_clf.runs import peak_memory_mb
    return peak_memory_mb()


def small_model(folder):
    "Write a classifier with two narrow layers, random weights and MiniLM's tokenizer."
    from transformers import BertConfig, BertForSequenceClassification
    from tutorial_clf.pretrained import load_tokenizer
    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, id2label=dict(enumerate(NAMES)))
    BertForSequenceClassification(config).save_pretrained(folder)
    load_tokenizer("minilm").save_pretrained(folder)


def many(n: int):
    "`n` texts: those of the training split repeated and shuffled."
    import numpy as np
    texts = read("train")[0]
    return [texts[i] for i in np.random.default_rng(SEED).permutation(n) % len(texts)]


def do_grow_predict(n, folder):
    "`n` texts through `Classifier.predict`, in a process that has predicted before."
    from tutorial_clf.finetune import Classifier
    texts, clf = many(n), Classifier.load(folder)
    clf.predict(many(10_000))
    times = []
    with Memory() as memory:
        for _ in range(max(1, 10_000 // n)):
            began = time.perf_counter()
            clf.predict(texts)
            times.append(time.perf_counter() - began)
    return dict(texts_per_second=n / median(times), texts_per_cpu_second=n * len(times) / memory.cpu, peak_mb=memory.peak, added_mb=memory.peak - memory.before, passes=len(times))


def data_path(rows, tokenizer):
    "One epoch of everything that training does before the model: encode, plan the batches, fetch and pad them; the seconds of both parts."
    import torch
    from transformers import DataCollatorWithPadding
    from tutorial_clf.finetune import _encoded
    from tutorial_clf.training import EpochBatches
    began = time.perf_counter()
    encoded = _encoded(rows, tokenizer, MAX_LENGTH)
    coded = time.perf_counter()
    batches = EpochBatches(encoded["length"][:], 32, SEED)
    loader = torch.utils.data.DataLoader(encoded.remove_columns("length"), batch_sampler=batches, collate_fn=DataCollatorWithPadding(tokenizer))
    assert sum(len(batch["labels"]) for batch in loader) == len(rows)
    return coded - began, time.perf_counter() - coded


def do_grow_data(n):
    "`n` texts of a file, memory-mapped, through the data path of one epoch, in a process that has done so before."
    import datasets
    from tutorial_clf.pretrained import load_tokenizer
    datasets.disable_progress_bars()
    tokenizer, texts = load_tokenizer("minilm"), read("train")[0]
    with tempfile.TemporaryDirectory() as folder:
        def on_disk(n, name):
            rows = lambda: ({"text": text, "label": i % 2} for i, text in enumerate(many(n)))
            return datasets.Dataset.from_generator(rows, cache_dir=f"{folder}/{name}", fingerprint=f"{name}-{n}")
        data_path(on_disk(10_000, "first"), tokenizer)
        files = [on_disk(n, f"{i}") for i in range(max(1, 10_000 // n))]
        with Memory() as memory: times = [data_path(rows, tokenizer) for rows in files]
    return dict(texts_per_second=n / median(map(sum, times)), texts_per_cpu_second=n * len(times) / memory.cpu, encode_per_second=n / median(t[0] for t in times),
                batch_per_second=n / median(t[1] for t in times), peak_mb=memory.peak, added_mb=memory.peak - memory.before, passes=len(times))


# ---- all processes

WORK = {name[3:]: value for name, value in list(globals().items()) if name.startswith("do_")}


def alone(do: str, **job) -> dict:
    "What the worker `do` returns, from a process of its own; a process that fails is tried once more, so that an hour is not lost."
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out.json"
        command = [sys.executable, __file__, "--worker", json.dumps(dict(do=do, out=str(out), **job))]
        for last in (False, True):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode == 0: return json.loads(out.read_text())
            problem = f"{do} {job} failed:\n{done.stderr[-3000:]}"
            if last: sys.exit(f"bench: {problem}")
            say(f"{problem}\ntrying again")


def say(text: str): print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def write(part: str, results: dict, options):
    from tutorial_clf.profile import load_profile
    from tutorial_clf.runs import record
    import torch, tutorial_clf.finetune, tutorial_clf.speed      # so that their versions and hashes stand in the record
    results |= dict(texts=source(), threads=torch.get_num_threads(), options={key: value for key, value in vars(options).items() if key not in ("parts", "worker", "out")})
    say(f"written: {record(f'bench-{part}', results, SEED, load_profile('fast'), options.out).name}")


def measure(do: str, kinds, options, **more) -> dict:
    "Name → windows, in rounds."
    from tutorial_clf.speed import interleaved, rates
    def one(kind):
        result = alone(do, kind=kind, seconds=options.window if kind in MAIN else options.short, rows=options.rows, **more)
        say(f"{do} {kind}: {rates([result])[0]:,.1f} texts/s, {rates([result], 'tokens')[0]:,.0f} tokens/s")
        return result
    return interleaved({kind: partial(one, kind) for kind in kinds}, options.repeats)


def summary(windows: dict, limits: dict) -> dict:
    from tutorial_clf.speed import rates
    def one(kind, each):
        return dict(texts_per_second=median(rates(each)), tokens_per_second=median(rates(each, "tokens")), share_of_rate=median(rates(each, "flops")) / limits[kind],
                    padding=1 - sum(w["tokens"] for w in each) / sum(w["places"] for w in each), memory_mb=max(w["memory_mb"] for w in each))
    return {kind: one(kind, each) for kind, each in windows.items()}


def ratios(windows: dict, pairs: dict) -> dict:
    "Median ratios under the names of `pairs` (name → peer) for the first contender of each, and all of them in full."
    from tutorial_clf.speed import paired_ratio
    ours, peers = pairs
    full = {f"{name} against {peer}": paired_ratio(windows[name], windows[peer]) for name in ours for peer in peers.values()}
    return {key: full[f"{ours[0]} against {peer}"]["median"] for key, peer in peers.items()} | dict(ratios=full)


def with_limits(kinds, precision, options, measured) -> tuple:
    "(what `measured()` returns, name → operations per second, the rates): the rates are measured before and after."
    before, windows, after = alone("rates", seconds=min(2.0, options.window)), measured(), alone("rates", seconds=min(2.0, options.window))
    found = {key: before[key] + after[key] for key in ("float32", "bf16") if key in before}
    return windows, {kind: median(found.get(precision(kind), found["float32"])) for kind in kinds}, found


def fast_precision() -> str:
    from tutorial_clf.profile import load_profile
    from tutorial_clf.training import usable_precision
    return usable_precision(load_profile("fast"), "cpu")


def part_train(options):
    kinds = [*PEERS, *OURS]
    def precision(kind): return OURS[kind].get("precision", fast_precision()) if kind in OURS else "float32"
    windows, limits, found = with_limits(kinds, precision, options, lambda: measure("train", kinds, options))
    split = {kind: {key: value for key, value in alone("train", kind=kind, seconds=min(5.0, options.window), rows=options.rows, profile=True).items() if key in ("split", "largest")}
             for kind in ("padded", "grouped", "fast", "kept")}
    write("train", dict(train=ratios(windows, (["fast", "kept", "embeddings"], {"vs_padded": "padded", "vs_grouped": "grouped"})) | dict(
        rungs=RUNGS, summary=summary(windows, limits), limits=limits, matrix_rates=found, precision=fast_precision(), profile=split, windows=windows)), options)


def part_accuracy(options):
    from tutorial_clf.evaluate import paired_test, wilson_interval
    labels, rows = read("dev")[1], min(2000, options.rows or 2000)
    import numpy as np
    runs, passes = {}, dict(epochs=2, patience=2)                                # as many passes as the peers make
    jobs = {kind: {} for kind in PEERS} | {kind: fields | passes for kind, fields in OURS.items()} | {"ours": {}, "ours, kept": OURS["kept"]}
    for kind, fields in jobs.items():
        runs[kind] = alone("learn", kind=kind, rows=rows, **fields)
        right = int((np.array(runs[kind]["predictions"]) == labels).sum())
        runs[kind] |= dict(accuracy=right / len(labels), accuracy_interval=list(wilson_interval(right, len(labels))))
        say(f"learn {kind}: {runs[kind]['seconds']:.1f} s, accuracy {runs[kind]['accuracy']:.3f}")
    tests = {f"{a} against {b}": paired_test(np.array(labels), np.array(runs[a]["predictions"]), np.array(runs[b]["predictions"]))
             for a in runs for b in ("padded", "grouped") if a != b}
    faster = {f"{a} against {b}": runs[b]["seconds"] / runs[a]["seconds"] for a in ("fast", "kept", "ours", "ours, kept") for b in ("padded", "grouped")}
    write("accuracy", dict(accuracy=dict(train_rows=rows, dev_rows=len(labels), runs=runs, paired_tests=tests, times_faster=faster)), options)


def part_predict(options):
    with tempfile.TemporaryDirectory() as folder:
        alone("fit", folder=folder, rows=options.rows)
        said = {kind: alone("labels", kind=kind, folder=folder)["labels"] for kind in PREDICT}
        windows, limits, found = with_limits(PREDICT, lambda kind: "bf16" if kind == "bf16" else "float32", options,
                                             lambda: measure("predict", PREDICT, options, folder=folder))
    truth, short = [NAMES[label] for label in read("dev")[1]], summary(windows, limits)
    def share(kind, other): return sum(a == b for a, b in zip(said[kind], other)) / len(truth)
    same = {kind: share(kind, said["one by one"]) for kind in PREDICT}
    # ours is the fastest way that says the same, so it comes first
    ours = sorted(["float32", "bf16", "int8"], key=lambda kind: (same[kind] >= 0.99, short[kind]["texts_per_second"]), reverse=True)
    write("predict", dict(predict=ratios(windows, (ours, {"vs_one_by_one": "one by one", "vs_batched": "batched"})) | dict(
        ours=ours[0], same_labels=same, accuracy={kind: share(kind, truth) for kind in PREDICT}, dev_rows=len(truth),
        summary=short, limits=limits, matrix_rates=found, windows=windows)), options)


def part_growth(options):
    from tutorial_clf.speed import interleaved
    sizes, grown = [1000, 10_000, 100_000, 1_000_000], {"predict": {}, "data": {}}
    if options.rows: sizes = [options.rows * 10**i for i in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        small_model(folder)
        def one(path, n):
            found = alone(f"grow_{path}", n=n, **(dict(folder=folder) if path == "predict" else {}))
            say(f"growth, {path}, {n:,} texts: {found['texts_per_second']:,.0f} texts/s, peak {found['peak_mb']:.0f} MB, added {found['added_mb']:.0f} MB")
            return found
        rounds = interleaved({(path, n): partial(one, path, n) for path, n in [("predict", n) for n in sizes[:3]] + [("data", n) for n in sizes]}, options.repeats)
    for (path, n), found in rounds.items(): grown[path][str(n)] = {key: median(each[key] for each in found) for key in found[0]} | dict(rounds=found)
    for path in list(grown):
        each = list(grown[path].values())
        for key, name in (("texts_per_second", "speed_spread"), ("peak_mb", "memory_spread")):
            values = [size[key] for size in each]
            grown[f"{path}_{name}"] = max(values) / min(values) - 1
            grown[f"{path}_{name}_without_smallest"] = max(values[1:]) / min(values[1:]) - 1      # the smallest pays what each call costs, however short
    write("growth", dict(growth=grown), options)


def part_import(options):
    program = Path(sysconfig.get_path("scripts")) / "tutorial-clf"
    commands = {"bare": [sys.executable, "-c", "pass"], "import": [sys.executable, "-c", "import tutorial_clf"], "help": [program, "--help"]}
    times = {name: [] for name in commands}
    for turn in range(16):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            if turn: times[name].append(time.perf_counter() - began)                # the first round warms the disk's cache
    middle = {name: median(each) for name, each in times.items()}
    more = {f"{name}_more": middle[name] - middle["bare"] for name in ("import", "help")}
    say(f"import: {more['import_more']:.3f} s more than a bare interpreter; --help: {more['help_more']:.3f} s more")
    write("import", {"import": middle | more | dict(seconds=times)}, options)


PARTS = {name[5:]: value for name, value in list(globals().items()) if name.startswith("part_")}


def options_from(arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--window", type=float, default=60, help="seconds of a window")
    parser.add_argument("--short", type=float, default=15, help="seconds of a window of the rungs between")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of windows")
    parser.add_argument("--rows", type=int, default=0, help="training texts to use; 0 = all (a small number: for a trial)")
    parser.add_argument("--out", type=Path, help="folder for the records; default: data/runs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for part in options.parts:
        if part not in PARTS: parser.error(f"there is no part {part!r}; known are {', '.join(PARTS)}")
    if options.window <= 0 or options.short <= 0 or options.repeats < 1 or options.rows < 0: parser.error("windows take more than 0 seconds, repeats are at least 1, rows at least 0")
    return options


if __name__ == "__main__":
    options = options_from(sys.argv[1:])
    if options.worker:
        job = json.loads(options.worker)
        do, out = job.pop("do"), Path(job.pop("out"))
        out.write_text(json.dumps(WORK[do](**job)))
    else:
        for part in options.parts or PARTS: PARTS[part](options)
