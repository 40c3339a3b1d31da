"""Write the generated parts of README.md and data/README.md: learning path, score card, ladders, and the table of the shipped texts.

usage: python .ci/readme.py [--check]      (make readme; --check only says whether both are up to date)
"""
import base64
import csv
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from statistics import mean, median

from tutorial_clf.data import load_task, normalise
from tutorial_clf.evaluate import show_card
from tutorial_clf.runs import load_run

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = ("sst2", "trec", "sms", "banking77")        # their texts are not shipped; `TUTORIAL_CLF_REAL_DATA` says where they are


def learning_path() -> str:
    "A table row for each chapter: number and title with a link, subtitle, and how long a run took."
    seconds, total = load_run("minutes")["results"], 0
    lines = ["| chapter | what it is about | one run |", "|---|---|---|"]
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title, subtitle = re.search(r"^# (.+)$", first, re.M)[1], re.search(r"^> (.+)$", first, re.M)[1]
        took = seconds[path.stem]
        lines.append(f"| [{path.stem.split('_')[0]} {title}](nbs/{path.name}) | {subtitle} | {f'{took} s' if took < 100 else f'{took / 60:.0f} min'} |")
        total += took
    return "\n".join([*lines, f"| all of them | | {total / 60:.0f} min |"])


def score_card() -> str:
    "The recorded card of `make finetune`, and how far other seeds are from it."
    run = load_run("finetune")
    cards = run["results"]
    scores = [card["accuracy"] for card in cards]
    where = f"{run['hardware']['cores']} CPU cores ({run['hardware']['processor']}), torch {run['versions']['torch']}, transformers {run['versions']['transformers']}"
    return (f"```\n{show_card(cards[0])}\n```\n\n"
            f"Recorded {run['recorded']} on {where}. The card is that of seed {cards[0]['seed']}; {len(cards)} seeds gave accuracies from "
            f"{min(scores):.3f} to {max(scores):.3f}. No setting was chosen on the test rows.")


def ladders() -> str:
    """A row for each recorded ladder: accuracy of each rung from TF-IDF up, with its interval; and a sentence on what training the encoder adds.

    Bold: better than TF-IDF, by Holm's correction for all such comparisons of the table."""
    from tutorial_clf.compare import holm
    from tutorial_clf.ladder import RUNGS, verdict
    names = [path.stem.removeprefix("ladder-") for path in sorted((ROOT / "data" / "runs").glob("ladder-*.json"))]
    names.sort(key=lambda name: (name in PUBLIC, name))
    climbed = {name: {rung["name"]: rung for rung in load_run(f"ladder-{name}")["results"]} for name in names}
    def better(pairs: list, lower: str) -> set:
        "Those (task, rung) of `pairs` that are shown to be better than the rung `lower` of the same task."
        tests = [climbed[name][rung]["against"][lower] for name, rung in pairs]
        return {pair for pair, test, p in zip(pairs, tests, holm([test["p"] for test in tests])) if verdict(test["difference"], p) == "better"}
    shown = list(RUNGS)[list(RUNGS).index("TF-IDF"):]
    bold = better([(name, rung) for name in names for rung in shown[1:]], "TF-IDF")
    lines = ["| task | test rows | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for name in names:
        cells = ["{0}{1:.3f}{0} ({2:.3f} to {3:.3f})".format("**" * ((name, rung) in bold), climbed[name][rung]["accuracy"], *climbed[name][rung]["accuracy_interval"])
                 for rung in shown]
        lines.append(f"| `{name}` | {climbed[name]['TF-IDF']['n']:,} | " + " | ".join(cells) + " |")
    trained = better([(name, "fine-tuned") for name in names], "frozen encoder")
    def listed(some): return ", ".join(f"`{name}`" for name in some)
    told = [name for name in names if (name, "fine-tuned") in trained]
    return "\n".join([*lines, "", f"Fine-tuned against frozen: shown better on {listed(told)}; not on {listed(name for name in names if name not in told)}."])


def speed() -> str:
    "The medians of `make bench`: ours against the public ways of doing the same."
    train, predict = load_run("bench-train"), load_run("bench-predict")
    ratios, answers = train["results"]["train"]["ratios"] | predict["results"]["predict"]["ratios"], predict["results"]["predict"]["ours"]
    lines = [("training, against `Trainer` with every text padded to 128 tokens", "fast", "embeddings", "padded"),       # ours, ours in float32, peer
             ("training, against `Trainer` with batches of like length", "fast", "embeddings", "grouped"),
             ("prediction, against `pipeline`, one text at a time", answers, "float32", "one by one"),
             ("prediction, against `pipeline`, 32 texts at a time", answers, "float32", "batched")]
    def times(ours, peer): return "{median:.1f} ({low:.1f} to {high:.1f})".format(**ratios[f"{ours} against {peer}"])
    hardware, versions = train["hardware"], train["versions"]
    return "\n".join(["| texts per second under the profile `fast` | times as many | in float32 |", "|---|---|---|",
                      *(f"| {line} | {times(ours, peer)} | {times(plain, peer)} |" for line, ours, plain, peer in lines), "",
                      f"Medians of interleaved windows (lowest and highest in brackets), recorded {train['recorded']} (training) and {predict['recorded']} (prediction) on "
                      f"{hardware['cores']} cores of a server processor with bf16 ({hardware['processor']}), torch {versions['torch']}.", "", whole_runs()])


def whole_runs() -> str:
    "Sentences on the seconds of whole runs, and on the difference in accuracy."
    from tutorial_clf.ladder import difference_interval
    results = load_run("bench-accuracy")["results"]
    found = results["accuracy"]
    def one(kind, peer):
        test = found["paired_tests"][f"{kind} against {peer}"]
        low, high = difference_interval(test["only_a"], test["only_b"], test["n"])
        told = "not told apart" if test["p"] >= 0.05 else "told apart"
        return f"{found['times_faster'][f'{kind} against {peer}']:.1f} times as fast as the {peer} `Trainer` ({test['difference']:+.3f}, {low:+.3f} to {high:+.3f}, {told})"
    def both(kind): return f"{one(kind, 'padded')} and {one(kind, 'grouped')}"
    return (f"Whole runs on {found['train_rows']:,} of the {results['texts']}, one seed, with the difference in accuracy on {found['dev_rows']} others and its 95 % interval. "
            f"As it is, with three epochs against the two of its peers, `fast` is {both('ours')}; with the three lower layers kept as well, {both('ours, kept')}. "
            f"Held to two epochs, {both('fast')}; with the three lower layers kept, {both('kept')}.")


def picture() -> bytes:
    "The figure that the README shows: the one of chapter 01, as it is stored there."
    cells = json.loads((ROOT / "nbs" / "01_transfer_learning.ipynb").read_text(encoding="utf-8"))["cells"]
    cell = next(c for c in cells if "#| label: fig-transfer" in "".join(c["source"]))
    return base64.b64decode(next("".join(o["data"]["image/png"]) for o in cell["outputs"] if "image/png" in o.get("data", {})))


FILES = ("reviews", "messages", "intents", "headlines")     # data/NAME.csv
TAGS = {"reviews": "phenomenon", "intents": "kind", "headlines": "second"}


def distinct_words(texts: list, n: int = 10_000) -> float:
    "How many different words `n` running words of the shuffled texts hold, on average over ten shuffles."
    shuffles = (random.Random(seed).sample(texts, len(texts)) for seed in range(10))
    return mean(len(set([word for text in shuffled for word in normalise(text).split()][:n])) for shuffled in shuffles)


def cross_validated(name: str):
    "Accuracies (5,) of TF-IDF with logistic regression in five folds of the training split: no test row is looked at."
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    train = load_task(name).train
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000))
    return cross_val_score(model, train["text"][:], train["label"][:], cv=StratifiedKFold(5, shuffle=True, random_state=0))


def second_reading(name: str, column: str) -> str:
    "How often a second reader, who saw the texts alone, chose the same `column` (label or tag) as the first; and Cohen's kappa."
    from sklearn.metrics import cohen_kappa_score
    with open(ROOT / "data" / "second_reading.csv", encoding="utf-8", newline="") as file:
        pairs = [(row[column], row[f"{column}_again"]) for row in csv.DictReader(file) if row["file"] == f"{name}.csv"]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}, kappa {cohen_kappa_score(*zip(*pairs)):.2f}"


def texts() -> str:
    "A table with a column for each shipped file: counts, variety, difficulty, agreement."
    rows = {"": [f"`{name}.csv`" for name in FILES]}
    def put(title, value): rows.setdefault(title, []).append(value)
    for name in FILES:
        with open(ROOT / "data" / f"{name}.csv", encoding="utf-8", newline="") as file: read = list(csv.DictReader(file))
        labels, splits = (Counter(row[column] for row in read) for column in ("label", "split"))
        put("rows", f"{len(read):,}")
        put("training, validation, test", ", ".join(f"{splits[split]:,}" for split in ("train", "validation", "test")))
        put("labels", f"{len(labels)}")
        put("rows of a label", f"{min(labels.values())} to {max(labels.values())}")
        put("words of a text, in the middle", f"{median(len(normalise(row['text']).split()) for row in read):.0f}")
        put("different words in 10,000", f"{distinct_words([row['text'] for row in read]):,.0f}")
        put("second reading: same label", second_reading(name, "label"))
        put("second reading: same tag", f"`{TAGS[name]}`: {second_reading(name, 'tag')}" if name in TAGS else "-")
        put("TF-IDF, five folds of training", f"{cross_validated(name).mean():.2f}")
    first, *others = ("| " + " | ".join([title, *values]) + " |" for title, values in rows.items())
    return "\n".join([first, "|---" * (len(FILES) + 1) + "|", *others])


PAGES = {"README.md": {"path": learning_path, "card": score_card, "ladder": ladders, "speed": speed}, "data/README.md": {"texts": texts}}


def generated(page: str) -> str:
    "The page with what stands between its markers written anew."
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, write in PAGES[page].items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + write() + "\n" + m[2], text, flags=re.S)
    return text


if __name__ == "__main__":
    new, shown = {ROOT / page: generated(page) for page in PAGES}, ROOT / "data" / "runs" / "transfer.png"
    if "--check" in sys.argv:
        old = [page.name for page, text in new.items() if page.read_text(encoding="utf-8") != text] + ["transfer.png"] * (shown.read_bytes() != picture())
        sys.exit(f"out of date: {', '.join(old)}; run `make readme`" if old else 0)
    for page, text in new.items(): page.write_text(text, encoding="utf-8")
    shown.write_bytes(picture())
