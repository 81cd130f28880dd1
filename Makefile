# Each target works alone on a fresh machine with Python >= 3.11; set-up happens once.
VENV    ?= .venv
PYTHON  ?= python3
PROFILE ?= quick
OUT     ?= out
BIN      = $(VENV)/bin
SIDE_BY_SIDE = -n 2 --dist loadfile
STAMP    = $(VENV)/.resnotes-installed

.PHONY: run test lint coverage mutants lab notebooks figures benchmarks clean

run: $(STAMP)  ## execute every notebook at PROFILE; ends with the path of the HTML index
	"$(BIN)/python" -m resnotes run --profile $(PROFILE) --out "$(OUT)"

test: $(STAMP) lint  ## lint, types, unit tests, nbval on the committed notebooks, and those in JupyterLab
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest $(SIDE_BY_SIDE)
	RESNOTES_OUT="$$(mktemp -d)" "$(BIN)/python" -m pytest $(SIDE_BY_SIDE) --nbval-lax notebooks  # not what was executed last
	"$(BIN)/python" -m pytest -n 2 -m browser

lint: $(STAMP)  ## style, types, who imports whom, and how much there is to read
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"
	"$(BIN)/python" -m benchmarks.size

coverage: $(STAMP)  ## lines of the package that unit tests execute; fails below 90 %
	"$(BIN)/python" -m coverage erase
	"$(BIN)/python" -m coverage run -m pytest
	"$(BIN)/python" -m coverage combine --quiet
	"$(BIN)/python" -m coverage report

mutants: $(STAMP)  ## change the mathematics bit by bit, and list the changes that no test notices: an hour
	"$(BIN)/python" -m pip install --quiet 'mutmut>=3.8'
	OMP_NUM_THREADS=1 "$(BIN)/mutmut" run
	"$(BIN)/mutmut" results

lab: $(STAMP)  ## JupyterLab on the notebooks
	"$(BIN)/jupyter" lab notebooks --ContentsManager.pre_save_hook=resnotes.book.tidy.before_saving $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS)

notebooks: $(STAMP)  ## refresh the committed outputs of the notebooks
	"$(BIN)/python" -m resnotes.book.tidy

figures: $(STAMP)  ## refresh the committed figures and claims
	"$(BIN)/python" -m resnotes run --format png,pdf --out "$(OUT)"
	"$(BIN)/python" -m resnotes figures --format png,pdf --results "$(OUT)" --out figures
	cp "$(OUT)/claims.json" data/recorded/claims.json

benchmarks: $(STAMP)  ## measure against references and refresh the committed report: a quarter of an hour
	"$(BIN)/python" -m benchmarks

clean:
	rm -rf "$(OUT)" .mypy_cache .ruff_cache .pytest_cache

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "resnotes needs Python >= 3.11, found $$($(PYTHON) --version 2>&1); name another with PYTHON=..." >&2; exit 1; }
	test -x "$(BIN)/python" || $(PYTHON) -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --editable '.[cluster,test]'
	@touch "$(STAMP)"
