# Two commands on a fresh machine with Python 3.11 to 3.13: `make demo` and `make test`. Each makes the environment first.
PYTHON ?= python3
BIN := .venv/bin
export GPTLOOM_HOME ?= $(CURDIR)/.gptloom
# uv, where it is there, ignores pip's variables: hand it pip's find-links folder
UV := $(shell command -v uv)
INSTALL := $(if $(UV),UV_FIND_LINKS="$$PIP_FIND_LINKS" $(UV) pip install -q --python $(BIN)/python,$(BIN)/pip install -q --disable-pip-version-check)
# torch's default Linux wheel pulls gigabytes of CUDA: without an NVIDIA GPU take the CPU build, from a find-links folder
# where one offers it, else from PyTorch's own index
GPU := $(shell command -v nvidia-smi)
LOCAL_TORCH := $(firstword $(wildcard $(addsuffix /torch-*.whl,$(PIP_FIND_LINKS))))
TORCH_INDEX := $(if $(GPU)$(LOCAL_TORCH)$(filter-out Linux,$(shell uname -s)),,--index-url https://download.pytorch.org/whl/cpu)

.PHONY: demo test test-all lint clean help
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/ready  ## raw text to a chat model on this machine, servers included
	@$(BIN)/gptloom demo

test: .venv/ready lint  ## lint, types, layers, docs and the fast tests
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: .venv/ready lint  ## the same with the long suites
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --timeout 3600

lint: .venv/ready  ## lint, format, types, layers
	@$(BIN)/ruff check -q --no-cache .  # its cache misses that a module of ours has moved
	@$(BIN)/ruff format -q --check .
	@$(BIN)/ty check -q flows tasks gpt
	@$(BIN)/lint-imports --no-cache > /dev/null || { $(BIN)/lint-imports --no-cache; exit 1; }

.venv/ready: pyproject.toml constraints.txt
	@echo "gptloom: making the environment in .venv (some minutes with a cold cache)"
	@test -x $(BIN)/python || $(if $(UV),$(UV) venv -q --seed --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
	@$(if $(UV),,$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip)
	@$(INSTALL) $(TORCH_INDEX) 'torch>=2.10,<2.14'
	@$(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

clean:  ## remove the environment, the store and the servers' data
	@-test -x $(BIN)/gptloom && $(BIN)/gptloom down
	@rm -rf .venv store .gptloom
