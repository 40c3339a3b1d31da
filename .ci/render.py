"""Run chapters from a fresh kernel under the profile cpu and store their outputs; note the seconds of each in data/runs/minutes.json.

usage: python .ci/render.py nbs/NN_name.ipynb ...      (make render)
"""
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from tutorial_clf.runs import load_run, record

programs = Path(sysconfig.get_path("scripts"))
env = os.environ | {"TUTORIAL_CLF_PROFILE": "cpu", "HF_HUB_OFFLINE": "1"}
try: seconds = load_run("minutes")["results"]
except FileNotFoundError: seconds = {}

for chapter in sys.argv[1:]:
    started = time.perf_counter()
    subprocess.run([programs / "jupyter-nbconvert", "--to", "notebook", "--execute", "--inplace", "--log-level", "WARN", chapter], env=env, check=True)
    subprocess.run([programs / "nbdev-clean", "--fname", chapter], check=True)
    seconds[Path(chapter).stem] = round(time.perf_counter() - started)
    print(f"{chapter}: {time.perf_counter() - started:.0f} s", flush=True)
# a chapter that makes a record takes longer than its reader will wait
if "TUTORIAL_CLF_RECORD" not in os.environ: record("minutes", dict(sorted(seconds.items())), seed=None)
