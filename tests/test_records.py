"""The recorded runs in data/runs are complete; those made by older code are named in the summary of pytest."""
import json
import warnings
from pathlib import Path

import pytest

from tutorial_clf.runs import stale_runs

RUNS = Path(__file__).resolve().parents[1] / "data" / "runs"
RECORDS = sorted(RUNS.glob("*.json"))
KEYS = {"name", "recorded", "seed", "commit", "versions", "hardware", "code", "results"}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_record_is_complete(path):
    def refuse(constant): raise ValueError(f"{path.name} holds {constant}, which is not JSON: mend what records it, then make it again")
    run = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert KEYS <= run.keys(), f"{path.name} lacks {sorted(KEYS - run.keys())}: make it again with `make record RUN={path.stem}`"
    assert run["name"] == path.stem, f"{path.name} calls itself {run['name']}: name the file after the run"
    empty = [key for key in ("recorded", "versions", "hardware", "code", "results") if not run[key]]
    assert not empty, f"{path.name} says nothing under {empty}: make it again with `make record RUN={path.stem}`"


# ---- no difference without its doubt

def comparisons(results, place="results"):
    "(place, dictionary) of each recorded comparison, however deep: what calls something a `difference` or a `gain`, or gives a `verdict`."
    if isinstance(results, dict):
        if {"difference", "gain", "verdict"} & results.keys(): yield place, results
        for key, value in results.items(): yield from comparisons(value, f"{place}[{key!r}]")
    if isinstance(results, list):
        for i, value in enumerate(results): yield from comparisons(value, f"{place}[{i}]")


def bare(results) -> list[str]:
    "Comparisons that no page may quote: without p and interval, with an interval that does not hold the difference, or with a verdict that p does not allow."
    found = []
    for place, c in comparisons(results):
        number, (low, high) = c.get("difference", c.get("gain")), c.get("interval") or (None, None)
        if not isinstance(number, (int, float)): continue                            # a column of a table, or a dictionary of gains
        if low is None and not {"p", "p_holm"} & c.keys(): found.append(f"{place}: neither p nor an interval")
        if low is not None and not low - 1e-9 <= number <= high + 1e-9: found.append(f"{place}: {number} lies outside {low} to {high}")
        if c.get("verdict") in ("better", "worse") and (c.get("p_holm", c.get("p", 0)) >= 0.05 or (number > 0) != (c["verdict"] == "better")):
            found.append(f"{place}: {c['verdict']!r} is more than p allows")
    return found


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_no_recorded_difference_stands_alone(path): assert not bare(json.loads(path.read_text(encoding="utf-8"))["results"])


def test_a_bare_difference_is_found():
    assert len(bare([{"a": {"difference": 0.1}}, {"gain": 0.2}])) == 2 and bare({"difference": 0.1, "interval": [0.2, 0.3]})
    assert bare({"difference": 0.1, "p": 0.2, "verdict": "better"}) and bare({"difference": -0.1, "p": 0.01, "verdict": "better"}) and bare({"difference": 0.1, "p": 0.01, "p_holm": 0.06, "verdict": "better"})
    assert not bare([{"difference": 0.1, "p": 0.01, "verdict": "better"}, {"gain": 0.1, "interval": [0.0, 0.2]}, {"difference": 0.1, "p": 0.3, "verdict": "not shown"}])


def test_stale_records_are_named():
    for name, modules in stale_runs(RUNS).items():
        warnings.warn(f"stale record {name}: {', '.join(modules)} changed since; `make record RUN={name}` makes it again", stacklevel=1)
