"""The site without Quarto: sidebar, links, pictures, and what nbdev hands to Quarto."""
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOTEBOOKS = {f"nbs/{path.name}": nbformat.read(path, as_version=4) for path in sorted((ROOT / "nbs").glob("*.ipynb"))}
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (*sorted(ROOT.glob("*.md")), ROOT / "index.qmd")} | {
    name: "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown") for name, nb in NOTEBOOKS.items()}
each_page = pytest.mark.parametrize("page", PAGES)


def entries(contents: list):
    "The pages of a sidebar from top to bottom, as (file, text)."
    for entry in contents:
        if isinstance(entry, str): yield entry, None
        else:
            if "href" in entry: yield entry["href"], entry.get("text") or entry.get("section")
            yield from entries(entry.get("contents", []))


def test_sidebar_has_every_chapter_in_learning_order():
    sidebar = yaml.safe_load((ROOT / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]
    (first, _), *chapters = entries(sidebar["contents"])
    wanted = [(name, f"{name[4:].split('_')[0]} {nb.cells[0].source.splitlines()[0].removeprefix('# ')}") for name, nb in NOTEBOOKS.items()]
    assert first == "index.qmd", "sidebar.yml should begin with index.qmd"
    assert chapters == wanted, "sidebar.yml should list each chapter once, in this order:\n" + "\n".join(f"{text} -> {name}" for name, text in wanted)


def without_code(text: str) -> str:
    return re.sub(r"(?ms)^(```+|~~~+).*?^\1|(`+)[^`].*?\2|\$\$.*?\$\$", "", text)


def targets(text: str) -> list:
    "Targets of the links and pictures in a Markdown text, those written in HTML too."
    patterns = (r"\]\(\s*<?([^)\s>]+)", r"(?m)^\s*\[[^\]]+\]:\s*<?(\S+?)>?\s*$", r"(?i)<(?:a|img|source)\b[^>]*?(?:href|src|srcset)=[\"']([^\"']+)")
    return [target for pattern in patterns for target in re.findall(pattern, without_code(text))]


@each_page
def test_links_and_pictures_resolve(page):
    problems = []
    for target in targets(PAGES[page]):
        if re.match(r"(?i)[a-z][a-z+.-]*:|//|#", target): continue          # elsewhere on the web, or on the same page
        path = (ROOT / page).parent / re.sub(r"[?#].*", "", target)
        if not path.is_file() or not path.resolve().is_relative_to(ROOT): problems.append(f"{target}: there is no such file")
        elif path.suffix == ".py" or any(part[0] in "._" for part in path.resolve().relative_to(ROOT).parts):
            problems.append(f"{target}: nbdev leaves this file out of the site; name it in code type instead")
    assert not problems, f"{page}, mend these links (relative to the page; chapters link as NN_name.ipynb):\n" + "\n".join(problems)


@each_page
def test_every_picture_has_alt_text(page):
    text = without_code(PAGES[page])
    bare = re.findall(r"!\[\s*\]\([^)]*\)", text)
    bare += [tag for tag in re.findall(r"(?is)<img\b[^>]*>", text) if not re.search(r"(?i)\balt=([\"'])\s*[^\"'\s]", tag)]
    assert not bare, f"{page}: say in the alt text what these pictures show: {bare}"


SKIPPED = "FrontmatterProc,add_show_docs,exec_show_docs,rm_export,add_links"


def test_settings_of_the_site():
    quarto, nbdev = (yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in ("_quarto.yml", "nbdev.yml"))
    assert quarto["execute"] == {"enabled": False}, "_quarto.yml: pages show the stored outputs, so `execute` must be `enabled: false`"
    assert quarto["project"]["render"] == ["index.qmd", "nbs/*.ipynb"], "_quarto.yml: `render` should be the front page and the chapters"
    assert nbdev["website"]["description"] == PYPROJECT["project"]["description"], "nbdev.yml should have the description of pyproject.toml: run `make docs`"
    assert PYPROJECT["tool"]["nbdev"].get("skip_procs") == SKIPPED, (
        f'pyproject.toml, [tool.nbdev], needs `skip_procs = "{SKIPPED}"`: without it nbdev drops first cells and exported code from the pages and runs cells')


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_page_shows_lesson_and_package_but_no_tests(name, monkeypatch):
    if PYPROJECT["tool"]["nbdev"].get("skip_procs") != SKIPPED: pytest.skip("test_settings_of_the_site has to pass first")
    from fastcore.nbio import read_nb
    from nbdev.processors import FilterDefaults
    monkeypatch.chdir(ROOT)           # where nbdev looks for its settings
    page = read_nb(ROOT / name)
    FilterDefaults()(page)
    shown = {cell.id: cell.source for cell in page.cells}
    for cell in NOTEBOOKS[name].cells:
        hidden = cell.cell_type == "code" and re.search(r"(?m)^#\|\s*hide\s*$", cell.source) is not None
        assert (cell.id in shown) != hidden, f"{name}: cell {cell.id} would be {'shown' if hidden else 'missing'} on the site:\n{cell.source[:200]}"
        folded = cell.source.startswith("#| code-fold: true")
        assert not folded or shown[cell.id].startswith("#| code-fold: true"), f"{name}: the solution {cell.id} would not be folded on the site"


def test_readme_shows_the_chapters_and_the_records_as_they_are():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "readme.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
