"""Write the generated parts of README.md: the learning path and the score card, from the chapters and data/runs.

usage: python .ci/readme.py [--check]      (make readme; --check only says whether README.md is up to date)
"""
import base64
import json
import re
import sys
from pathlib import Path

from tutorial_clf.evaluate import show_card
from tutorial_clf.runs import load_run

ROOT = Path(__file__).resolve().parent.parent


def learning_path() -> str:
    "A table row for each chapter: number and title with a link, subtitle, and how long a run took."
    seconds = load_run("minutes")["results"]
    lines = ["| chapter | what it is about | one run |", "|---|---|---|"]
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title, subtitle = re.search(r"^# (.+)$", first, re.M)[1], re.search(r"^> (.+)$", first, re.M)[1]
        took = seconds[path.stem]
        lines.append(f"| [{path.stem.split('_')[0]} {title}](nbs/{path.name}) | {subtitle} | {f'{took} s' if took < 100 else f'{took / 60:.0f} min'} |")
    return "\n".join(lines)


def score_card() -> str:
    "The recorded card of `make finetune`, and how far other seeds are from it."
    run = load_run("finetune")
    cards = run["results"]
    scores = [card["accuracy"] for card in cards]
    where = f"{run['hardware']['cores']} CPU cores ({run['hardware']['processor']}), torch {run['versions']['torch']}, transformers {run['versions']['transformers']}"
    return (f"```\n{show_card(cards[0])}\n```\n\n"
            f"Recorded {run['recorded']} on {where}. The card is that of seed {cards[0]['seed']}; {len(cards)} seeds gave accuracies from "
            f"{min(scores):.3f} to {max(scores):.3f}. No setting was chosen on the test rows.")


def picture() -> bytes:
    "The figure that the README shows: the one of chapter 01, as it is stored there."
    cells = json.loads((ROOT / "nbs" / "01_transfer_learning.ipynb").read_text(encoding="utf-8"))["cells"]
    cell = next(c for c in cells if "#| label: fig-transfer" in "".join(c["source"]))
    return base64.b64decode(next("".join(o["data"]["image/png"]) for o in cell["outputs"] if "image/png" in o.get("data", {})))


def generated(readme: str) -> str:
    "The README with what stands between its markers written anew."
    for name, write in (("path", learning_path), ("card", score_card)):
        readme = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + write() + "\n" + m[2], readme, flags=re.S)
    return readme


if __name__ == "__main__":
    file = ROOT / "README.md"
    old = file.read_text(encoding="utf-8")
    new, shown = generated(old), ROOT / "data" / "runs" / "transfer.png"
    if "--check" in sys.argv:
        sys.exit("README.md is out of date: run `make readme`" if new != old or shown.read_bytes() != picture() else 0)
    file.write_text(new, encoding="utf-8")
    shown.write_bytes(picture())
