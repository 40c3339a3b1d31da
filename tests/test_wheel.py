"""The wheel carries what a person without a clone needs: data, records and profiles."""
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, built from a copy so that the tree stays as it is."
    copy = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "_docs", "_proc", "build", "dist", "*.egg-info", "nbs", "tests"))
    shutil.copytree(ROOT / "data" / "runs", copy / "data" / "runs")
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return next((copy / "dist").glob("*.whl"))


def test_wheel_holds_modules_data_records_and_profiles(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"tutorial_clf/{path.name}" for path in (ROOT / "tutorial_clf").glob("*.py")} | {"tutorial_clf/shipped/settings.ini"}
    wanted |= {f"tutorial_clf/shipped/{path.relative_to(ROOT / 'data').as_posix()}" for kind in ("*.csv", "runs/*.json") for path in (ROOT / "data").glob(kind)}
    assert wanted <= names, sorted(wanted - names)
    assert zipfile.ZipFile(wheel).read("tutorial_clf/shipped/settings.ini") == (ROOT / "settings.ini").read_bytes()


def test_wheel_works_in_an_empty_folder(wheel, tmp_path):
    place, empty = tmp_path / "place", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(place)
    code = ("import tutorial_clf, sys; from tutorial_clf.data import load_task; from tutorial_clf.profile import load_profile, settings_file\n"
            "from tutorial_clf.runs import environment; assert environment()['commit'] is None\n"
            "print(tutorial_clf.__file__, settings_file(), len(load_task('reviews').train), load_profile().epochs, sep='\\n')")
    env = os.environ | {"PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    package, settings, rows, epochs = done.stdout.splitlines()
    assert Path(package).is_relative_to(place) and Path(settings).is_relative_to(place) and int(rows) > 400 and int(epochs) >= 1
