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


def test_stale_records_are_named():
    for name, modules in stale_runs(RUNS).items():
        warnings.warn(f"stale record {name}: {', '.join(modules)} changed since; `make record RUN={name}` makes it again", stacklevel=1)
