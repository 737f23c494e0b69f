# make venv | test | demo | camvid | docs | lint | types | style | clean. Everything runs in an own .venv; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
# pip would compile every module of torch and its like, a minute of one core; Python compiles those
# that it imports, when it does.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile
# One thread per process: pytest runs WORKERS of them.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: venv test demo camvid docs lint types links style clean

venv: $(STAMP)

$(STAMP): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --editable '.[test,docs]'
	@touch $@

lint: venv types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy and mkdocs read the packages under the one name they have, hmsa, to which links lead.
links:
	@mkdir -p .mypy_tree/hmsa
	@for part in hmsa/__init__.py hmsa/__main__.py engine network datasets loss utils; do \
	  ln -sfn "../../$$part" .mypy_tree/hmsa/; done

types: venv links
	$(BIN)/mypy

# The documentation, into .site/; any broken link or unknown name ends it. (With --quiet none would.)
docs: venv links
	$(BIN)/python scripts/write_configuration_page.py --check
	$(BIN)/python -m mkdocs build --strict

# How the code reads: paragraphs, comments, widths, names.
style: venv
	$(BIN)/python scripts/style_report.py

# The documentation too, so that a broken link fails CI. mypy and mkdocs have one core each.
test: venv
	@$(MAKE) --no-print-directory --jobs 2 lint docs
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10

demo: venv
	PATH="$(abspath $(BIN)):$$PATH" bash scripts/demo.sh

# A checkpoint on CamVid in about an hour of one core: make camvid DATA=/path/to/camvid (docs/camvid.md)
camvid: venv
	@test -d "$(DATA)/images/train" || \
	  { echo "error: name CamVid's folder, with images/ and labels/: make camvid DATA=/path/to/camvid"; exit 2; }
	$(ONE_THREAD) $(BIN)/hmsa train configs/camvid/efficientnet.yaml --resume data.root="$(DATA)"
	$(ONE_THREAD) $(BIN)/hmsa attach --checkpoint runs/camvid_efficientnet --resume

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .mypy_tree .ruff_cache .hypothesis .site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
