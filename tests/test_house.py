"""What keeps the house in order, read from the files: floors, exports, clean notebooks with outputs, exercises, style."""
import ast
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {path.name: nbformat.read(path, as_version=4) for path in sorted((ROOT / "nbs").glob("*.ipynb"))}
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tutorial_clf").glob("[!_]*.py"))}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}
FLOOR = {module: int(m[1]) for module, source in SOURCES.items() if (m := re.search(r"File to edit: \.\./nbs/(\d\d)", source))}

each_module = pytest.mark.parametrize("module", SOURCES)
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


# ---- modules

def imports(tree):
    "Dotted names that `tree` imports, at any depth; what is relative begins with tutorial_clf."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["tutorial_clf" if node.level else "", node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


@each_module
def test_module_imports_only_from_its_own_chapter_and_earlier_ones(module):
    assert module in FLOOR, f"tutorial_clf/{module}.py is not exported from a chapter: write it as exported cells in nbs/ and run `make export`"
    used = {name.split(".")[1] for name in imports(TREES[module]) if name.startswith("tutorial_clf.")}
    later = sorted(name for name in used if FLOOR.get(name, 0) > FLOOR[module])
    assert not later, f"{module} (chapter {FLOOR[module]:02}) imports from later chapters: {later}. Move what it needs down, or the import up"


def runs_at_import(node):
    "Nodes below `node` that run when the module is imported: everything outside of functions."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): continue
        yield child
        yield from runs_at_import(child)


@each_module
def test_heavy_imports_stand_inside_functions(module):
    allowed = {"finetune": {"torch", "transformers"}, "training": {"torch", "transformers"}, "frozen": {"torch"}, "explain": {"torch"}, "improve": {"torch"}, "attention": {"torch"}, "encoder": {"torch"}, "losses": {"torch"}}.get(module, set())
    tops = [ast.Module([node], []) for node in runs_at_import(TREES[module]) if isinstance(node, (ast.Import, ast.ImportFrom))]
    heavy = {name.split(".")[0] for top in tops for name in imports(top)} & {"torch", "transformers", "matplotlib", "datasets", "pandas"}
    assert heavy <= allowed, f"{module} imports {sorted(heavy - allowed)} when it is imported itself: import inside the function that needs it"


@pytest.mark.parametrize("module", ["tutorial_clf", "tutorial_clf.profile", "tutorial_clf.cli"])
def test_import_costs_no_torch(module):
    if find_spec(module) is None: pytest.skip(f"{module} is not written yet")
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'datasets', 'pandas', 'matplotlib'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"`import {module}` fails:\n{done.stderr[-2000:]}"
    assert not done.stdout.strip(), f"`import {module}` also loads {done.stdout.strip()}: find who imports it with `python -X importtime -c 'import {module}'`"


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory):
    "A copy of the chapters after `nbdev-export` and `nbdev-clean`."
    copy = tmp_path_factory.mktemp("rewritten")
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns("[!0-9]*"))
    (copy / "tutorial_clf").mkdir()
    shutil.copy(ROOT / "tutorial_clf" / "__init__.py", copy / "tutorial_clf")
    env = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    for program in ("nbdev-export", "nbdev-clean"):
        subprocess.run([Path(sysconfig.get_path("scripts")) / program], cwd=copy, env=env, check=True, capture_output=True, timeout=120)
    return copy


def test_modules_are_what_the_chapters_export(rewritten):
    stored, fresh = ({path.name: path.read_text(encoding="utf-8") for path in (root / "tutorial_clf").glob("*.py")} for root in (ROOT, rewritten))
    differ = sorted(name for name in stored.keys() | fresh.keys() if stored.get(name) != fresh.get(name))
    assert not differ, f"tutorial_clf: {differ} differ from what nbs/ exports. Edit the chapter, run `make export`, remove modules without a chapter"


@each_notebook
def test_notebook_has_no_noise(name, rewritten):
    stored, clean = ((root / "nbs" / name).read_text(encoding="utf-8") for root in (ROOT, rewritten))
    assert stored == clean, f"nbs/{name} has metadata that nbdev removes: run `nbdev-clean --fname nbs/{name}`"


# ---- notebooks

def code_cells(name): return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]


def options(cell) -> dict:
    "The `#|` lines on top of a code cell: name → value."
    lines = takewhile(lambda line: line.startswith("#|"), cell.source.splitlines())
    return {m[1]: m[2].strip("\"' ") for line in lines if (m := re.match(r"#\|\s*([\w-]+):?(.*)", line))}


def place(cell) -> str:
    line = next((line for line in cell.source.splitlines() if line and not line.startswith("#|")), "")
    return f"cell {cell.id} (`{line[:60]}`)"


def no_problems(name, problems, mend):
    if problems: pytest.fail("\n  ".join([f"nbs/{name}: {mend}", *problems]), pytrace=False)


def output_text(cell) -> str:
    "All text in the outputs of a cell."
    data = [text for out in cell.outputs for kind, text in out.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join([*data, *(out.get("text", "") for out in cell.outputs)])


def pictures(cell) -> bool: return any(kind.startswith("image/") for out in cell.outputs for kind in out.get("data", {}))


def should_print(cell) -> bool:
    "Whether the last statement of a cell that readers see is a call of print, or a figure is drawn."
    if "hide" in options(cell): return False
    try: last = ast.parse(cell.source).body[-1:]
    except SyntaxError: return False      # magics
    return "fig-cap" in options(cell) or any(isinstance(node, ast.Expr) and ast.unparse(node).startswith("print(") for node in last)


@each_notebook
def test_stored_outputs(name):
    machine = [re.escape(str(path)) for path in (ROOT, Path.home(), tempfile.gettempdir())] + [r"(?<![\w.])/(?:home|root|Users|tmp|var)/", r"[A-Z]:\\Users"]
    problems = [] if any(cell.outputs for cell in code_cells(name)) else ["no output at all: the chapter was never rendered"]
    for cell in code_cells(name):
        text, widget = output_text(cell), "application/vnd.jupyter.widget-view+json"
        if any(out.output_type == "error" for out in cell.outputs) or "Traceback" in text: problems.append(f"{place(cell)}: ends in an error")
        if found := re.search("|".join(machine), text): problems.append(f"{place(cell)}: shows a path of one machine, {text[found.start():][:50]!r}")
        if any(set(out.get("data", {})) - {"text/plain"} == {widget} for out in cell.outputs): problems.append(f"{place(cell)}: a widget without a static twin")
        if "fig-cap" in options(cell) and not pictures(cell): problems.append(f"{place(cell)}: has a caption, and no picture")
        elif should_print(cell) and not cell.outputs: problems.append(f"{place(cell)}: prints or draws, and has no output")
    no_problems(name, problems, f"mend the cell, then `make render CHAPTER=nbs/{name}`:")


@each_notebook
def test_cells_are_short(name):
    long = [f"{place(cell)}: {n} lines" for cell in code_cells(name) if (n := len(cell.source.splitlines())) > 40]
    no_problems(name, long, "no code cell over 40 lines; split these:")
    seen = [len(cell.source.splitlines()) for cell in code_cells(name) if not {"hide", "default_exp"} & options(cell).keys()]
    assert statistics.median(seen) <= 10, f"nbs/{name}: the median code cell has {statistics.median(seen)} lines, more than 10: make smaller steps"


@each_notebook
def test_figures_have_caption_and_alt_text(name):
    figures = [cell for cell in code_cells(name) if pictures(cell) or {"fig-cap", "fig-alt"} & options(cell).keys()]
    wanted = {"label": "fig-", "fig-cap": "", "fig-alt": ""}
    problems = [f"{place(cell)}: `#| {key}` is missing" for cell in figures if "hide" not in options(cell) for key, start in wanted.items()
                if not options(cell).get(key) or not options(cell)[key].startswith(start)]
    labels = [options(cell).get("label") for cell in figures]
    problems += [f"the label {label} stands twice" for label in {label for label in labels if label and labels.count(label) > 1}]
    no_problems(name, problems, 'a figure begins with `#| label: fig-...`, `#| fig-cap: "..."` and `#| fig-alt: "..."`:')


# ---- exercises

def test_chapter_ends_with_its_exercises_asserted():
    for name in NOTEBOOKS:
        cells = code_cells(name)
        if any(re.search(r"(?m)^@exercise\(", cell.source) for cell in cells):
            assert "hide" in options(cells[-1]) and "assert_exercises(globals())" in cells[-1].source, \
                f"nbs/{name}: the last code cell should be hidden and call assert_exercises(globals())"


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name != "00a_exercises.ipynb"])      # which takes an exercise apart
def test_exercises_are_three_cells(name):
    cells, problems = NOTEBOOKS[name].cells, []
    checks = [i for i, cell in enumerate(cells) if cell.cell_type == "code" and re.search(r"(?m)^@exercise\(", cell.source)]
    for i in checks:
        what = re.findall(r"(?m)^def check_(\w+)\(", cells[i].source)
        if len(what) != 1:
            problems.append(f"{place(cells[i])}: should define one function check_NAME")
            continue
        stub, check, solution = (cell.source.rstrip().splitlines() for cell in cells[i - 1:i + 2])
        rules = {
            f"the cell before should define {what[0]} and end with `raise NotYet`": any(line.startswith(f"def {what[0]}(") for line in stub) and stub[-1].strip() == "raise NotYet",
            f"should end with `check_{what[0]}({what[0]})`": check[-1] == f"check_{what[0]}({what[0]})",
            f"the cell after should define {what[0]}_solution and end with `check_{what[0]}({what[0]}_solution)`":
                any(line.startswith(f"def {what[0]}_solution(") for line in solution) and solution[-1] == f"check_{what[0]}({what[0]}_solution)",
            'the solution should begin with `#| code-fold: true` and `#| code-summary: "Solution"`': solution[:2] == ["#| code-fold: true", '#| code-summary: "Solution"'],
            "the solution should be folded in JupyterLab (cell metadata jupyter.source_hidden)": cells[i + 1].metadata.get("jupyter", {}).get("source_hidden") is True,
        }
        problems += [f"{place(cells[i])}: {rule}" for rule, holds in rules.items() if not holds]
    no_problems(name, problems, "an exercise is three cells, stub, check and solution:")
    least = 2 if re.match(r"\d\d_", name) else 0           # with a letter, such as 00a: the machinery behind a chapter, or a part of one
    assert least <= len(checks) <= 6, f"nbs/{name} has {len(checks)} exercises; a chapter has two to six"
