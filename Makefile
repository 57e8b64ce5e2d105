# Two commands need nothing but Python 3.11 or 3.12: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(abspath $(VENV))/bin
WORKERS ?= 2
NOTEBOOK_WORKERS ?= $(WORKERS)

# One thread for each worker: two two-thread jobs on two cores slow each other several-fold.
TEST_ENVIRONMENT = PATH="$(BIN):$$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
# Modules are compiled when they are first imported, as most of them never are, and what is compiled is kept, also where the environment
# says otherwise: half of the time of importing PyTorch and transformers is compiling them.
export PYTHONDONTWRITEBYTECODE =
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# First what has a hash in hashes/, in three shares side by side, as one pip takes one core; then PyTorch and this folder, which have none: pip asks for a hash of everything or of nothing.
install = seq 0 2 | xargs -P 3 -I @ sh -c 'grep -hv "^-r" $(1:%=hashes/%.txt) | awk "/^[a-z]/ {n++} n % 3 == @" | $(PIP_INSTALL) --no-deps --require-hashes -r /dev/stdin' && $(PIP_INSTALL) --no-build-isolation -c constraints.txt -e $(2)

.PHONY: help quickstart playground test notebooks pytest smoke check export docs readme wheel clean
.DEFAULT_GOAL := help

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo "  Variables: PYTHON (now $(PYTHON)), VENV (now $(VENV)), WORKERS (now $(WORKERS)), NOTEBOOK_WORKERS (now $(NOTEBOOK_WORKERS))."

quickstart: $(VENV)/installed ## set up, then compare the six cells on a small task with the embedded backbone
	$(BIN)/sftdpo quickstart

playground: $(VENV)/installed-playground ## set up, then serve the form for a study as a page: open the link that it prints
	$(BIN)/voila nbs/study/playground.ipynb

test: check notebooks pytest ## set up, then run every test: in step, notebooks, pytest

notebooks: $(VENV)/installed-dev ## run every notebook
	$(TEST_ENVIRONMENT) python tools/notebooks.py --workers $(NOTEBOOK_WORKERS)

pytest: $(VENV)/installed-dev ## run the tests of the package and of the tools
	$(TEST_ENVIRONMENT) python -m pytest -n $$(($(WORKERS) + 1)) --dist worksteal  # one more: some wait for a browser or for processes

smoke: $(VENV)/installed-dev ## a few tests of each kind, for a further version of Python
	$(TEST_ENVIRONMENT) python -m pytest -n $(WORKERS) --dist worksteal tests/test_loss.py tests/test_config.py tests/test_data.py tests/test_house.py tests/test_cli.py tests/test_study.py
	$(BIN)/sftdpo --help >/dev/null

check: $(VENV)/installed-dev ## are notebooks clean, package and README in step, the code free of lint, the types right?
	$(BIN)/python tools/check_in_step.py
	$(BIN)/ruff check sftdpo nbs tests tools
	$(BIN)/mypy
	$(BIN)/python tools/notebook_style.py --check

export: $(VENV)/installed-dev ## notebooks -> package, clean notebooks, README
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

docs: $(VENV)/installed-dev ## the site, into _docs: with Quarto if it is installed, else with smalldocs
	$(TEST_ENVIRONMENT) python tools/docs.py

readme: $(VENV)/installed-dev ## README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

wheel: $(VENV)/installed-dev ## the package as a wheel, into dist
	$(BIN)/python -m build --outdir dist

clean: ## delete what can be made again, the environment included
	rm -rf $(VENV) _docs _proc build dist *.egg-info .pytest_cache .hypothesis nbs/nbdev.yml nbs/sidebar.yml
	find sftdpo tests tools nbs -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sftdpo needs Python 3.11 or later, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/installed: settings.ini setup.py constraints.txt $(wildcard hashes/*.txt) | $(VENV)/bin/python
	@echo "Installing sftdpo into $(VENV) (some minutes the first time) ..."
	@$(call install,base,.)
	@touch $@

$(VENV)/installed-playground: settings.ini setup.py constraints.txt $(wildcard hashes/*.txt) | $(VENV)/bin/python
	@echo "Installing sftdpo and what its page needs into $(VENV) (some minutes the first time) ..."
	@$(call install,base playground,'.[playground]')
	@touch $(VENV)/installed $@

$(VENV)/installed-dev: settings.ini setup.py constraints.txt $(wildcard hashes/*.txt) | $(VENV)/bin/python
	@echo "Installing sftdpo and what its development needs into $(VENV) (some minutes the first time) ..."
	@$(call install,base playground dev,'.[dev]')
	@touch $(VENV)/installed $(VENV)/installed-playground $@
