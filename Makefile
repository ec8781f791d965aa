# Needs only Python 3.11+ and make: uv comes from PyPI into .uv, everything else into .venv.
PYTHON ?= python3
UV := .uv/bin/uv
UV_VERSION := 0.13.9
RUN := .venv/bin/
PACKAGES := libs/common/sendwhy $(filter-out %/tests/,$(wildcard services/*/*/ tools/*/*/)) demo deploy docs
# One run each: their test modules have the same names.
TESTS := $(wildcard libs/*/tests services/*/tests tools/*/tests tests/*/) tests/conftest.py tests/system_packages.py

# Where no bytecode is kept, each of the thousand processes that tests start compiles its libraries anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test faults fuzz bench check audit sbom setup format docs clean

demo: setup  ## sample requests through the whole product: make demo ARGS="--exit --report out.json"
	$(RUN)sendwhy demo $(ARGS)

# Java's second compiler pays for itself after some minutes: most brokers of the tests end before that.
test: export SENDWHY_LOCAL_JAVA_OPTIONS = -XX:TieredStopAtLevel=1
test: setup  ## all tests, with real Kafka, PostgreSQL and Chromium, three files at a time
	$(PYTHON) tests/system_packages.py
	$(RUN)sendwhy fetch
	$(RUN)python tests/e2e/former.py
	$(RUN)pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: setup  ## faults over the whole system: make faults ARGS="--minutes 60 --seed 7 --scenarios pg-frozen,meta-cuts"
	$(PYTHON) tests/system_packages.py
	$(RUN)sendwhy fetch
	$(RUN)python tests/faults/run.py $(ARGS)

check: setup  ## style, types, boundaries, dead code
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy $(PACKAGES)
	set -e; for folder in $(TESTS); do $(RUN)mypy $$folder; done
	$(RUN)lint-imports
	$(RUN)vulture

fuzz: $(UV)  ## fuzzers, each for a bounded time: make fuzz ARGS="--seconds 60 --only webhooks,csv"
	$(UV) sync --frozen --all-packages --group fuzz --python $(PYTHON) --no-progress
	$(RUN)python tests/fuzz/run.py $(ARGS)

audit: setup  ## known vulnerabilities of all that uv.lock pins; where the service can't be reached it says so
	$(RUN)python deploy/supply/audit.py $(ARGS)

sbom: setup  ## sbom.cdx.json (CycloneDX 1.5) of what runs in production: the same lock, the same bytes
	$(RUN)python deploy/supply/sbom.py

bench: $(UV)  ## how fast the whole system is here: make bench ARGS="--rate 1000 --seconds 600"
	$(UV) sync --frozen --all-packages --group bench --python $(PYTHON) --no-progress
	$(RUN)sendwhy fetch
	$(RUN)python tests/bench/bench.py $(ARGS)

setup: $(UV)  ## uv and all packages of the lock file
	$(UV) sync --frozen --all-packages --python $(PYTHON) --no-progress

docs: $(UV)  ## the documentation site, in site/: strict, every link followed; its tools have a .uv/docs of their own
	UV_PROJECT_ENVIRONMENT=.uv/docs $(UV) sync --frozen --only-group docs --python $(PYTHON) --no-progress --quiet
	.uv/docs/bin/python docs/build_site.py

format: setup
	$(RUN)ruff check --fix .
	$(RUN)ruff format .

clean:
	rm -rf .venv .uv .state site sbom.cdx.json .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(UV):
	$(PYTHON) -m venv .uv || { $(PYTHON) -m pip install --target .uv/lib uv==$(UV_VERSION) && mkdir -p .uv/bin && ln -sf ../lib/bin/uv $(UV); }
	test -x $(UV) || .uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
