"""Every chapter runs from top to bottom under the profile smoke, offline, in a process and a cache of its own."""
import os
import subprocess
import sysconfig
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb"))
SECONDS = 300


def run(notebook: Path, scratch: Path) -> tuple:
    "Exit code and output of `nbdev-test` on `notebook`; the code is None where the time ran out."
    env = os.environ | {"TUTORIAL_CLF_PROFILE": "smoke", "HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hub"),
                        "TUTORIAL_CLF_CACHE": str(scratch / "cache"), "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"}
    for name in ("TUTORIAL_CLF_RECORD", "IN_TEST", "HF_DATASETS_CACHE", "HF_HUB_CACHE"): env.pop(name, None)   # nbdev sets IN_TEST
    program = Path(sysconfig.get_path("scripts")) / "nbdev-test"
    log = scratch / "output.txt"          # a file: a pipe could be held open by a grandchild
    with log.open("wb") as out:
        try: code = subprocess.run([program, notebook], cwd=ROOT, env=env, stdout=out, stderr=out, timeout=SECONDS).returncode
        except subprocess.TimeoutExpired: code = None
    return code, log.read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs(notebook, tmp_path):
    code, output = run(notebook, tmp_path)
    end = f"did not end within {SECONDS} s" if code is None else f"ended with exit code {code}"
    again = f"TUTORIAL_CLF_PROFILE=smoke HF_HUB_OFFLINE=1 nbdev-test nbs/{notebook.name}"
    if code != 0: pytest.fail(f"nbs/{notebook.name} {end}; run it again with `{again}`. Its last lines:\n{output[-4000:]}", pytrace=False)


def test_a_failing_cell_is_noticed(tmp_path):
    cells = [nbformat.v4.new_code_cell("assert 1 + 1 == 3")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "wrong.ipynb")
    code, output = run(tmp_path / "wrong.ipynb", tmp_path)
    assert code not in (0, None), f"nbdev-test let a failing cell pass, so test_chapter_runs proves nothing; its output:\n{output}"
    assert "AssertionError" in output, f"nbdev-test no longer shows the error of a failing cell; its output:\n{output}"
