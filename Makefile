# Every command a person types. Each builds .venv by itself when needed; `make` alone lists them.
# PIP_ARGS passes options to pip, such as the light CPU builds of PyTorch (see README.md).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
PIP_ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
CHAPTERS := $(sort $(wildcard nbs/*.ipynb))
CHAPTER ?= $(CHAPTERS)
ARGS ?=

help:
	@echo 'make lab        open the course in JupyterLab, at the first chapter'
	@echo 'make finetune   fine-tune the default model on the default task and print a score card (options: ARGS="--task ...")'
	@echo 'make test       run every chapter and every test under the profile smoke'
	@echo 'make export     write the package from the exported cells of the chapters'
	@echo 'make render     run the chapters under the profile cpu and store their outputs (CHAPTER=nbs/NN_name.ipynb for one)'
	@echo 'make record     make a recorded run again (RUN=name of a file in data/runs)'
	@echo 'make bench      measure the speed beside public peers, about an hour on a quiet machine (ARGS="train --window 10" for a part)'
	@echo 'make readme     write the generated parts of README.md from the chapters and data/runs'
	@echo 'make docs       build the site (needs Quarto)'

$(READY): pyproject.toml constraints.txt setup.py
	@test -n "$(PYTHON)" || { echo 'make: no Python 3.11, 3.12 or 3.13 found; install one, or say make PYTHON=/path/to/python' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $(READY)

lab: $(READY)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) nbs/00_start.ipynb

finetune: $(READY)
	$(BIN)/tutorial-clf finetune $(ARGS)

test: $(READY)
	TUTORIAL_CLF_PROFILE=smoke HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

export: $(READY)
	$(BIN)/nbdev-export

render: $(READY)
	$(BIN)/python .ci/render.py $(CHAPTER)

readme: $(READY)
	$(BIN)/python .ci/readme.py

record: $(READY)
	@test -n "$(RUN)" || { echo 'make record RUN=name: which? See data/runs' >&2; exit 1; }
	@chapter="$$(grep -l 'recording(\\"$(RUN)\\")' nbs/*.ipynb)"; \
	test -n "$$chapter" || { echo 'make record: no chapter makes the run $(RUN); `make bench` makes those that begin with bench-' >&2; exit 1; }; \
	TUTORIAL_CLF_RECORD=$(RUN) $(MAKE) render CHAPTER="$$chapter"

bench: $(READY)
	$(BIN)/python .ci/bench.py $(ARGS)

docs: $(READY)
	@command -v quarto >/dev/null || { echo 'make docs needs Quarto, which is not installed: https://quarto.org/docs/download/' >&2; exit 1; }
	$(BIN)/nbdev-docs

.PHONY: help lab finetune test export render readme record bench docs
