# make demo      environment, build, export, both engines, drift table
# make wheel     source distribution and wheel into dist, and nothing else
# make test      environment, build, then lint, unit, engines and build-tests
# make evidence  the shipped students against their cards, and the other slow tests (hours)
# make docs      the documentation into build/docs
# make format    what lint demands of the layout

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := openmm,torchforce,lammps,distill,so3lr,dev
# Processes of pytest. The tests of a file share fixtures, so that one process runs them all.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
CPP := $(wildcard $(foreach folder,lammps openmm_integration plugin/csrc tests/build,\
  $(folder)/*.cpp $(folder)/*.h))

.PHONY: all demo wheel test lint unit engines build-tests evidence docs format clean
all: $(VENV)/.installed

# LAMMPS and torch come first: the plugin and its backend portable are compiled against them, in this
# environment.
$(VENV)/.requirements: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  extras = p['optional-dependencies']; \
	  print(*p['dependencies'], *(r for name in '$(EXTRAS)'.split(',') for r in extras[name]), sep='\n')" \
	  > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	touch $@

SOURCES := $(wildcard lammps/*.cpp lammps/*.h lammps/*.cmake plugin/CMakeLists.txt plugin/*.cmake plugin/csrc/*)
$(VENV)/.installed: $(VENV)/.requirements $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

wheel:
	tests/build/try_wheel.sh build dist $(PYTHON)

test: lint unit engines build-tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/ty check --python $(VENV)
	$(BIN)/codespell
	$(BIN)/clang-format --dry-run --Werror $(CPP)

unit: $(VENV)/.installed
	$(PYTEST) tests/unit

engines: $(VENV)/.installed
	$(PYTEST) tests/engines

build-tests: $(VENV)/.installed
	$(PYTEST) tests/build

evidence: $(VENV)/.installed
	$(BIN)/python -m pytest -m "" tests/evidence
	$(BIN)/python -m pytest -m slow

$(VENV)/.docs: $(VENV)/.requirements
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  print(*p['optional-dependencies']['docs'], sep='\n')" > $(VENV)/requirements-docs.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements-docs.txt
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=plugin PATH="$(abspath $(BIN)):$$PATH" \
	  $(BIN)/python -m mkdocs build --strict --config-file docs/mkdocs.yml

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist $(VENV)/.installed
