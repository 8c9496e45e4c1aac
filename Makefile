# Everything a user or contributor runs. `make` alone lists the targets.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed
BENCH := .venv-peers/bin/python
BENCH_STAMP := .venv-peers/.installed
TIA := .venv-tiatoolbox/bin/python
TIA_STAMP := .venv-tiatoolbox/.installed
SHELL := /bin/sh

.PHONY: help setup viewer viewer-check demo test check slow cluster-test kernels kernels-update speed peers tiatoolbox cpu-bench bench-train read-bench view-bench archive-bench rivals rivals-memory kills handover-bench papers folds tta-bench precision-bench gpu-bench wheel-test clean

help:
	@echo "make demo        set up, then segment a real slide and a real scene (a minute or two)"
	@echo "make test        set up, then run the tests"
	@echo "make check       format, lint, types and import contracts"
	@echo "make slow        long checks: memory against image size, more types in the kernels' interpreter"
	@echo "make cluster-test  Slurm, Ray on two hosts, nights on MLflow with PostgreSQL and S3, for real (root; 15 minutes)"
	@echo "make kernels     compile every fused kernel for every GPU, check it against gate.json (20 minutes on two cores)"
	@echo "make kernels-update  the same, and write gate.json"
	@echo "make speed       measure engines and segmentation, update the README (quiet machine, 10 minutes)"
	@echo "make cpu-bench   compare CPU engines with other libraries, update the README (quiet machine, UNETPP_DATA, 10 minutes)"
	@echo "make bench-train measure training beside other libraries and with two workers, update the README (quiet machine, 25 minutes)"
	@echo "make archive-bench  measure segment on 0.1 and 1 gigapixel, update the README (quiet machine, UNETPP_DATA, half an hour)"
	@echo "make rivals      segment a slide beside MONAI, TIAToolbox and a plain loop, update the README (quiet machine, UNETPP_DATA, 15 minutes)"
	@echo "make rivals-memory  the same for peak memory on 1 gigapixel (an hour and a half; ONLY=unetpp for one of them)"
	@echo "make kills       kill 20 workers and 5 drivers of a segmentation of 1 gigapixel, compare, update the README (UNETPP_DATA; FOLDER=, resumable, half an hour)"
	@echo "make handover-bench  measure our actors beside Ray Data, update workflows/README.md (quiet machine, UNETPP_DATA, 10 minutes)"
	@echo "make read-bench  measure reading slides beside OpenSlide, update the README (UNETPP_DATA, one minute)"
	@echo "make papers      repeat the papers' comparisons on nuclei and EM (UNETPP_DATA; a day on a CPU, resumable)"
	@echo "make precision-bench  what fp32, bf16 and int8 gain and cost (UNETPP_DATA, six minutes)"
	@echo "make tta-bench   what the mean over orientations gains and costs (UNETPP_DATA, ten minutes)"
	@echo "make folds       judge the land cover recipe on every scene by a model that never saw it (UNETPP_DATA; FOLDS=, resumable, 2 hours)"
	@echo "make gpu-bench   measure the kernels on this machine's GPU beside torch, update the README (20 minutes)"
	@echo "make peers       make the environment of cpu-bench and rivals, .venv-peers (1.6 GB), apart from ours"
	@echo "make tiatoolbox  make the environment of TIAToolbox for rivals, .venv-tiatoolbox (6.5 GB), apart from ours"
	@echo "make wheel-test  build the wheel and run the demo from it in an empty environment"
	@echo "make viewer      build the page of unetpp view (needs npm; part of make setup where npm is)"
	@echo "make view-bench  measure unetpp view on a drawn gigapixel result, update the README (two minutes)"
	@echo "make clean       remove the environment and caches"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else f'Python {sys.version.split()[0]} is too old: unetpp needs 3.11 or newer; run make PYTHON=/path/to/python3.11')"
	@echo "Installing into .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed: install your system's python3-venv package"; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,server,cluster,export,video]"
	@touch $(STAMP)
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory viewer; \
	else echo "npm is not here: all but \`unetpp view\` works; install npm, then run make viewer"; fi

VIEWER := workflows/unetpp_workflows/viewer/static/app.js

viewer: $(VIEWER)

$(VIEWER): workflows/viewer/package-lock.json workflows/viewer/build.mjs $(wildcard workflows/viewer/src/*)
	@cd workflows/viewer && npm ci --no-fund --no-audit --silent && npm run --silent build

demo: $(STAMP)
	@$(PY) -m unetpp_workflows demo

test: $(STAMP)
	@$(PY) tests/run.py

check: $(STAMP)
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) tests/readme.py --check
	@$(PY) -c "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory viewer-check; \
	elif [ -n "$$UNETPP_NO_SKIP" ]; then echo "npm is not here: the types of the viewer's page cannot be checked"; exit 1; \
	else echo "npm is not here: the types of the viewer's page were not checked"; fi

viewer-check:
	@cd workflows/viewer && { [ node_modules/.package-lock.json -nt package-lock.json ] || \
	npm ci --no-fund --no-audit --silent; } && npm run --silent check

slow: $(STAMP)
	@TRITON_INTERPRET=1 $(PY) -m pytest -m slow --timeout 3600 tests/kernels/computed
	@$(PY) -m pytest -m slow --timeout 3600 --ignore tests/kernels/computed

cluster-test: $(STAMP)
	@$(PY) -m pytest tests/cluster tests/workflows/test_nightly_server.py --timeout 3600

kernels: $(STAMP)
	@$(PY) tests/kernels/gate.py

kernels-update: $(STAMP)
	@$(PY) tests/kernels/gate.py --update

speed: $(STAMP)
	@$(PY) tests/benchmarks/speed.py
	@$(PY) tests/readme.py

bench-train: $(STAMP) $(BENCH_STAMP)
	@PYTHONPATH=.:kernels:tests/benchmarks $(BENCH) tests/benchmarks/train.py
	@$(PY) tests/benchmarks/scaling.py
	@$(PY) tests/readme.py

archive-bench: $(STAMP)
	@PYTHONPATH=tests/benchmarks $(PY) tests/benchmarks/archive.py
	@$(PY) tests/readme.py

rivals: $(STAMP) $(BENCH_STAMP) $(TIA_STAMP)
	@PYTHONPATH=tests/benchmarks $(PY) tests/benchmarks/rivals.py
	@$(PY) tests/readme.py

rivals-memory: $(STAMP) $(BENCH_STAMP) $(TIA_STAMP)
	@PYTHONPATH=tests/benchmarks $(PY) tests/benchmarks/rivals.py --memory $(if $(ONLY),--only $(ONLY))
	@$(PY) tests/readme.py

FOLDER ?= runs/kills

kills: $(STAMP)
	@PYTHONPATH=tests/benchmarks $(PY) tests/benchmarks/kills.py $(FOLDER)
	@$(PY) tests/readme.py

handover-bench: $(STAMP)
	@PYTHONPATH=tests/benchmarks $(PY) tests/benchmarks/handover.py
	@$(PY) tests/readme.py

read-bench: $(STAMP)
	@PYTHONPATH=tests/benchmarks $(PY) tests/benchmarks/read.py
	@$(PY) tests/readme.py

view-bench: $(STAMP) $(VIEWER)
	@PYTHONPATH=.:kernels:workflows $(PY) tests/benchmarks/view.py
	@$(PY) tests/readme.py

FOLDS ?= runs/folds

papers: $(STAMP)
	@PYTHONPATH=.:kernels $(PY) tests/benchmarks/papers.py
	@$(PY) tests/readme.py

precision-bench: $(STAMP)
	@PYTHONPATH=tests/benchmarks $(PY) tests/benchmarks/precisions.py
	@$(PY) tests/readme.py

tta-bench: $(STAMP)
	@PYTHONPATH=tests/benchmarks $(PY) tests/benchmarks/tta.py
	@$(PY) tests/readme.py

folds: $(STAMP)
	@PYTHONPATH=tests/benchmarks $(PY) tests/benchmarks/folds.py --work $(FOLDS)
	@$(PY) tests/readme.py

gpu-bench: $(STAMP)
	@PYTHONPATH=.:kernels $(PY) tests/benchmarks/gpu.py
	@$(PY) tests/readme.py

peers: $(BENCH_STAMP)

$(BENCH_STAMP): tests/benchmarks/peers.txt constraints.txt
	@$(PYTHON) -m venv .venv-peers
	@$(BENCH) -m pip install --quiet --disable-pip-version-check -c constraints.txt -r tests/benchmarks/peers.txt
	@touch $(BENCH_STAMP)

tiatoolbox: $(TIA_STAMP)

$(TIA_STAMP): tests/benchmarks/tiatoolbox.txt
	@$(PYTHON) -m venv .venv-tiatoolbox
	@$(TIA) -m pip install --quiet --disable-pip-version-check -r tests/benchmarks/tiatoolbox.txt
	@touch $(TIA_STAMP)

cpu-bench: $(BENCH_STAMP)
	@PYTHONPATH=.:kernels $(BENCH) tests/benchmarks/cpu.py
	@$(BENCH) tests/readme.py

wheel-test: $(STAMP)
	@$(PY) tests/wheel.py

clean:
	rm -rf .venv .venv-peers .venv-tiatoolbox workflows/viewer/node_modules workflows/unetpp_workflows/viewer/static dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
