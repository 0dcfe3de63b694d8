PYTHON ?= python3

BIN := .venv/bin
PIP := -m pip --disable-pip-version-check install --quiet
EXTRAS := train,serve,images,backbone,review,server,client,oidc,otel,redis,dev
# What `make lock` may not move: torch 2.13 and MLflow 3.17 are what the project is tested with.
HELD := 'torch==2.13.*' 'mlflow==3.17.*'
# No dependency of the project: clusters bring their own.
SPARK := pyspark==4.3.0
# What each image installs, of which `make sbom` writes a bill.
BILL_serve := serve,images,registry,redis,review
BILL_train := train,images,review
BILL_mlflow := server

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-ray test-schedule test-spark check bench wheel wheel-test sbom audit lock clean
.PHONY: licences reference

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.setup ## make .venv, with everything pinned in constraints.txt and this package editable

.venv/.setup: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c constraints.txt hatchling
	$(BIN)/python $(PIP) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@

demo: setup ## simulate, train, calibrate, evaluate, register, promote and score, in under 3 minutes
	$(BIN)/anomaly-vae demo

# One thread for each worker process: two with two threads each would fight over two cores.
test test-slow test-ray test-schedule test-spark: export OMP_NUM_THREADS = 1
# Tests start hundreds of processes, which would each compile the same modules.
test test-slow test-ray test-schedule test-spark: export PYTHONDONTWRITEBYTECODE =

test: setup ## run every test and doctest that is not marked slow or ray
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

test-slow: setup ## run the tests marked slow: statistical proofs, whole systems, long runs
	$(BIN)/pytest -m slow --timeout 1800

test-ray: .venv-ray/.setup ## run the tests marked ray, in an environment of their own
	.venv-ray/bin/python -m pytest -m ray --timeout 600

.venv-ray/.setup: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python $(PIP) -c constraints.txt hatchling
	.venv-ray/bin/python $(PIP) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS),ray]'
	@touch $@

test-schedule: setup .venv-schedule/.setup ## run the tests of the flows for Prefect
	$(BIN)/pytest -m 'slow or not slow' --timeout 600 tests/deploy/test_schedule_prefect.py

# Prefect's pins conflict with those of the project, whose program the flows only call.
.venv-schedule/.setup: deploy/schedule/requirements.txt
	$(PYTHON) -m venv .venv-schedule
	.venv-schedule/bin/python $(PIP) -r deploy/schedule/requirements.txt
	@touch $@

test-spark: .venv-spark/.setup ## score with Spark, which needs Java, in an environment of its own
	PYSPARK_PYTHON=.venv-spark/bin/python .venv-spark/bin/python -m pytest \
	  -m slow --timeout 600 tests/anomaly_vae/test_spark.py

.venv-spark/.setup: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-spark
	.venv-spark/bin/python $(PIP) -c constraints.txt hatchling
	.venv-spark/bin/python $(PIP) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	.venv-spark/bin/python $(PIP) -c constraints.txt $(SPARK)
	@touch $@

check: setup ## lint, format, types, and which way the imports point
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/pytest -q tests/test_imports.py

bench: .venv/.bench ## run the protocols of benchmarks/ against their peers
	$(BIN)/python -m benchmarks

.venv/.bench: .venv/.setup
	$(BIN)/python $(PIP) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS),bench]'
	@touch $@

wheel: setup ## build the wheel and the source distribution into dist/
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/hatchling build

wheel-test: setup ## install the wheel where nothing else is, and use it there
	$(BIN)/pytest -m 'slow or not slow' --timeout 1800 tests/test_wheel.py

reference: setup ## write docs/reference.md from the docstrings of public names
	$(BIN)/python -m tools.reference

licences: setup ## write docs/licences.md
	$(BIN)/python -m tools.licences

.venv/.supply: .venv/.setup
	$(BIN)/python $(PIP) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS),supply]'
	@touch $@

sbom: dist/serve.cdx.json dist/train.cdx.json dist/mlflow.cdx.json ## write bills of materials

dist/%.cdx.json: wheel .venv/.supply
	$(PYTHON) -m venv --clear --without-pip .venv-bill
	$(BIN)/python -m pip --python .venv-bill/bin/python install --quiet -c constraints.txt \
	  "$$(echo dist/*.whl)[$(BILL_$*)]"
	sed "s/^dynamic = .*/version = \"$$($(BIN)/hatchling version)\"/" pyproject.toml \
	  > .venv-bill/pyproject.toml
	$(BIN)/cyclonedx-py environment --pyproject .venv-bill/pyproject.toml --output-reproducible \
	  --output-file $@ .venv-bill/bin/python
	rm -rf .venv-bill

audit: .venv/.supply ## look for known vulnerabilities in what constraints.txt pins
	$(BIN)/python -m tools.audit

lock: ## resolve everything anew into constraints.txt
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python $(PIP) $(HELD) '.[$(EXTRAS),ray,bench,supply]'
	{ echo '# Every version the project is tested with; `make lock` writes this file.'; \
	  .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude anomaly-vae \
	  | sed 's/+cpu$$//'; } > constraints.txt
	rm -rf .venv-lock

clean: ## remove .venv and every cache; what was trained stays
	rm -rf .venv .venv-ray .venv-schedule .venv-spark .venv-lock .venv-bill .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
