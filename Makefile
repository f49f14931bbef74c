# Two commands do everything on a fresh machine: `make demo` runs the product, `make test` the tests.
# Both make their own environments: .venv, and .venv-vllm where real vLLM is needed.

PYTHON ?= python3
ENGINE ?= vllm
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
ROUTER_VERSION := 0.1.17
SECONDS ?= 600
SOURCES := conserve_sdk server/conserve_server server/conserve_vllm integrations/conserve_integrations
TYPED := $(SOURCES) tests examples bench

# Modules are compiled once, not by every worker and by every engine that starts.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo
demo: env $(if $(filter vllm,$(ENGINE)),vllm-env) $(if $(DASHBOARD),$(DASHBOARD)-env)
	$(BIN)/conserve demo --engine $(ENGINE) $(if $(DASHBOARD),--dashboard $(DASHBOARD)) $(DEMO_FLAGS)

.PHONY: test
test: check vllm-env phoenix-env mlflow-env
	$(BIN)/python -m pytest -m "slow or real"

.PHONY: check
check: lint types unit site

.PHONY: lint
lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: format
format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: types
types: env
	$(BIN)/mypy $(TYPED)

.PHONY: unit
unit: env
	$(BIN)/python -m pytest -q -n auto -m "not slow and not real"

# Links, references and the pages made from docstrings: any warning fails.
.PHONY: site
site: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: bench-sdk
bench-sdk: env
	$(BIN)/python bench/sdk_overhead.py

.PHONY: energy
energy: env
	$(BIN)/python -m bench.energy

.PHONY: bench-identity
bench-identity: env
	$(BIN)/python bench/identity.py

# Goodput of all policies on real sessions and profiles; goes on where it was stopped.
.PHONY: bench-policies
bench-policies: env
	$(BIN)/python -m bench.policies $(POLICIES_FLAGS)

# The paper's experiment as published and as a user feels it: build/reproduction.json and .html.
.PHONY: reproduce
reproduce: env
	$(BIN)/python -m bench.reproduce

.PHONY: bench-simulator
bench-simulator: env
	$(BIN)/python bench/simulator.py

# Five policies on real vLLM engines of this machine, and simulated: about ten minutes, nothing else running.
.PHONY: bench-live
bench-live: env vllm-env
	$(BIN)/python bench/live.py

# The same with a model whose steps take longer than what is around them: how far off is the simulator?
.PHONY: validate-live
validate-live: env vllm-env
	$(BIN)/python bench/live.py --model smollm2-135m --policies conserve --rate 0.15 --conversations 12 \
		--output build/live-validation.json

# The engine model against a real vLLM run.
.PHONY: validate
validate: env
	$(BIN)/python bench/validate_timing.py

.PHONY: bench-gateway
bench-gateway: env .venv-router/.ready
	$(BIN)/python bench/gateway.py

.PHONY: soak
soak: env
	$(BIN)/python bench/soak.py --seconds $(SECONDS)

# What the gateway is compared with, in an environment of its own.
.venv-router/.ready: | $(VENV)/.ready
	$(PYTHON) -m venv --clear .venv-router
	$(BIN)/uv pip install --quiet --python .venv-router/bin/python vllm-router==$(ROUTER_VERSION)
	@touch $@

# Samples again the step time grids that the simulator ships with; the package it asks is large.
.PHONY: grids
grids: env
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints/dev.txt --editable '.[simulation]'
	$(BIN)/python tools/compile_grids.py

.PHONY: bench-kv
bench-kv: env vllm-env
	$(BIN)/python bench/kv.py $(BENCH_FLAGS)

# What attackers, broken engines and hasty operators do: build/attack.json, about three minutes.
.PHONY: attack
attack: env
	$(BIN)/python -m bench.attack $(ATTACK_FLAGS)

chaos: env
	$(BIN)/python -m bench.chaos $(CHAOS_FLAGS)

.PHONY: env chaos
env: $(VENV)/.ready

# uv resolves and installs in seconds what takes pip half a minute.
$(VENV)/.ready: pyproject.toml constraints/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints/dev.txt --editable '.[dev]'
	@touch $@

.PHONY: vllm-env
vllm-env:
	$(PYTHON) tools/install_vllm.py .venv-vllm

.PHONY: phoenix-env mlflow-env
phoenix-env mlflow-env: %-env: .venv-%/.ready

# Dashboards pin much of what they need: each has an environment of its own.
.venv-%/.ready: constraints/%.txt | $(VENV)/.ready
	$(PYTHON) -m venv --clear .venv-$*
	$(BIN)/uv pip install --quiet --no-deps --python .venv-$*/bin/python --requirements constraints/$*.txt
	@touch $@

.PHONY: clean
clean:
	rm -rf $(VENV) .venv-vllm .venv-phoenix .venv-mlflow .venv-router build
