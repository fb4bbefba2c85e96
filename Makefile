# Run `make` to see what there is. PYTHON picks the interpreter that .venv is made with (3.11 or newer).
.DEFAULT_GOAL := help
.PHONY: help demo test quick same golden lint format clean

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
QUICK := tests/objectives tests/methods tests/sampling/test_rollout.py tests/sampling/test_teacher.py tests/measures \
	tests/distillation/test_step.py tests/distillation/test_step_gradient.py tests/distillation/test_gradients.py \
	tests/distillation/monitoring/test_alarms.py tests/distillation/monitoring/test_statistics.py tests/engine/test_loop.py \
	tests/engine/test_checkpoint.py tests/engine/test_randomness.py tests/engine/test_ema.py tests/engine/test_run_folder.py \
	tests/data/test_batches.py tests/data/test_cache.py tests/evaluation/test_rows.py tests/models/test_interpolator.py \
	tests/test_config.py tests/test_files.py tests/test_flow.py tests/test_imports.py tests/test_layout.py tests/test_sizes.py \
	tests/test_unused.py tests/test_words.py tests/test_docs.py tests/contracts/test_suite.py

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## Distil the built-in miniature, measure it, write runs/demo/report.html
	$(VENV)/bin/avd demo --output runs/demo

test: $(STAMP) ## Run the tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadfile

quick: $(STAMP) ## Run the core's tests: maths, step, methods, engine, files, and the checks of the code (about a minute)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadfile $(QUICK)

same: $(STAMP) ## Compare the numbers with those of commit REF, byte for byte: make same REF=main [ONLY=dmd]
	@PYTHONPATH=src:tests $(VENV)/bin/python tools/same.py "$(REF)" "$(ONLY)"

golden: $(STAMP) ## Write tests/golden again, after a change that moves numbers on purpose
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=src:tests $(VENV)/bin/python tools/golden.py

lint: $(STAMP) ## Check format, style and types
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy src/avd

format: $(STAMP) ## Format the code and fix what ruff can fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix

clean: ## Remove caches and build outputs; .venv and runs stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for every target, made once and updated when a requirement changes. Torch is named with its pin, so
# that pip takes a CPU build of that version wherever its configuration offers one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"avd needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Set PYTHON=... to choose another.")'
	@test -x $(VENV)/bin/pip || { echo "Making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing avd and what it needs into $(VENV) (several minutes the first time, most of it PyTorch)"
	@$(VENV)/bin/python -m pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)" -e '.[dev,footage]'
	@touch $@
