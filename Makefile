# `make demo` and `make test` set themselves up: they need python3 (with venv), make and git, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCHVISION := $(VENV)/torchvision-for-tests/.installed
REPORTERS := $(VENV)/reporters-for-tests/.installed
# Many tests wait for processes of their own: two at a time leave a third of two cores idle, three 3 % of the full tier. A
# module's tests stay together (they share one start of Ray), the slow modules of faults come first.
JOBS ?= 3
PYTEST = $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
# docs/models.md is compared with what every process of the run has measured, so that comes last.
MEASURED := $(CURDIR)/$(VENV)/models.jsonl
PAGE_TEST := tests/models/test_written_page.py::test_the_page_is_what_was_measured

# `az://` is tested against Azurite, which comes from npm.
AZURITE := $(VENV)/node_modules/.bin/azurite-blob

.PHONY: help install demo demo-scores demo-qwen test test-full test-vocabularies test-peers docs bench bench-peers bench-scale study emoji study-quick study-again check format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# constraints.txt pins torch. PyPI's brings gigabytes of CUDA: without a GPU set PIP_EXTRA_INDEX_URL to
# https://download.pytorch.org/whl/cpu (docs/installing.md).
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# torchvision's wheels are for CUDA: tests import the half of it that processors use, from a folder that only they look
# into, and nothing of what the wheels depend on is fetched. Trackio wants an older pillow, wandb much that it logs without.
$(TORCHVISION): requirements-torchvision.txt | $(STAMP)
$(REPORTERS): requirements-reporters.txt | $(STAMP)
$(TORCHVISION) $(REPORTERS):
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) -r $<
	touch $@

$(AZURITE): | $(STAMP)
	npm install --silent --no-audit --no-fund --prefix $(VENV) azurite@3.35.0

# The study's world of emoji: drawings by four artists and what people wrote of them (docs/study.md names the authors).
EMOJI := $(VENV)/emoji
$(EMOJI): | $(STAMP)
	npm install --silent --no-audit --no-fund --prefix $@.part emojibase-data@17.0.0 @iconify-json/noto@1.2.9 \
		@iconify-json/openmoji@1.2.29 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/twemoji@1.2.5
	mv $@.part $@

# Published tokenizers out of packages that ship them, none of which is installed.
VOCABULARIES := $(VENV)/vocabularies
$(VOCABULARIES): | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part \
		dashscope==2.0.2 llama-models==0.3.0 mistral-common==1.13.1
	mv $@.part $@

install: $(STAMP) $(TORCHVISION) $(REPORTERS)  ## create .venv with everything, once

demo: $(STAMP)  ## the main job on a small generated world, about 3 minutes on 2 cores
	$(BIN)/python examples/shapes/demo.py --output_dir demo

demo-scores: $(STAMP)  ## a student by every preset of docs/objectives.md on what `make demo` left, 12 minutes of processor time
	test -d demo/annotated || $(MAKE) demo
	$(BIN)/python examples/shapes/scores.py --demo_dir demo

demo-qwen: $(STAMP) $(TORCHVISION)  ## its way with a tiny Qwen2.5-VL and that family's own processor, under 2 minutes
	PYTHONPATH=tests/torchvision_for_tests $(BIN)/python examples/shapes/qwen.py --output_dir demo-qwen

test: $(STAMP) $(TORCHVISION)  ## the quick tier: everything but the tests marked `full`
	$(PYTEST) -m 'not full'

test-full: $(STAMP) $(TORCHVISION) $(REPORTERS) $(AZURITE) $(EMOJI)  ## all tests, with every fault and every model family; what CI runs
	rm -f $(MEASURED)
	CAL_MODELS_RECORD=$(MEASURED) $(PYTEST) --deselect $(PAGE_TEST)
	CAL_MODELS_RECORD=$(MEASURED) $(BIN)/python -m pytest -q $(PAGE_TEST)

test-vocabularies: $(VOCABULARIES)  ## labels with the tokenizers of Qwen, Llama and Mistral, which it fetches (25 MB)
	CAL_VOCABULARIES=$(VOCABULARIES) $(BIN)/python -m pytest -q tests/vocabularies

# Other trainers and lmms-eval, each with the versions it wants in an environment of its own; TRL is in ours.
# torchvision as above, in place of what they installed.
PEERS := $(VENV)/peers
$(PEERS)/%/.installed: tests/peers/requirements-%.txt requirements-torchvision.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(@D)/torchvision-for-tests -r requirements-torchvision.txt
	touch $@

test-peers: $(STAMP) $(TORCHVISION) $(PEERS)/ms-swift/.installed $(PEERS)/llamafactory/.installed $(PEERS)/lmms-eval/.installed  ## other trainers on our weights, lmms-eval on our checkpoints; builds an environment for each (7 GB)
	CAL_PEERS=$(PEERS) $(BIN)/python -m pytest -q tests/peers tests/trainer/integrations

docs: $(STAMP)  ## the documentation as a site, in site/; `.venv/bin/mkdocs serve` shows it while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

BENCH = $(BIN)/python -W ignore::FutureWarning benchmarks

bench: $(STAMP)  ## speed, memory and storage against the alternatives, under 20 minutes on 2 cores (docs/performance.md)
	$(BENCH)/contrast.py
	$(BENCH)/contrast.py --image_tokens 2880 --variants plain released drop mask
	$(BENCH)/contrast.py --vocabulary 152000 --variants plain released drop mask
	$(BENCH)/train_step.py
	$(BENCH)/train_step.py --gradient_checkpointing
	$(BENCH)/train_step.py --gradient_checkpointing --image_tokens 2880 --variants uniform online_drop uniform_again
	$(BENCH)/train_step.py --vocabulary 128000 --variants uniform cached trainer uniform_again
	$(BENCH)/precompute.py
	$(BENCH)/storage.py
	$(BENCH)/checksums.py
	$(BENCH)/data.py
	$(BENCH)/scale.py
	$(BENCH)/breakeven.py --repeats 21
	$(BENCH)/estimate.py --count
	$(BENCH)/tables.py

bench-peers: $(STAMP)  ## an epoch by TRL, by transformers' Trainer and by cal-train; half an hour on 2 cores
	$(BENCH)/peers.py --batch 2 --rows 8
	$(BENCH)/peers.py --batch 2 --rows 6 --vocabulary 152000
	$(BENCH)/peers.py --image_tokens 2880 --rows 3 --repeats 2
	$(BENCH)/peers.py --image_tokens 2880 --rows 3 --vocabulary 152000 --repeats 2
	$(BENCH)/tables.py

bench-scale: $(STAMP)  ## what grows with rows and shards, up to a million rows; half an hour more
	$(BENCH)/plan_memory.py
	$(BENCH)/train_data_memory.py
	$(BENCH)/long_answers.py --logits_mb
	$(BENCH)/long_answers.py --supervised --at_once
	$(BENCH)/inspect_frames.py
	$(BENCH)/inspect_subcommands.py
	$(BENCH)/many_shards.py
	$(BENCH)/soak.py

ARMS ?= reference swap noise noise_students noise_models scale staleness stages bounds contrast text_only precision scores adaptive

study: $(STAMP) $(EMOJI)  ## what weights and references gain, on two generated worlds and one of emoji; goes on where it was (docs/study.md)
	for arm in $(ARMS); do $(BIN)/python studies/run.py $$arm || exit 1; done
	$(BIN)/python studies/report.py

emoji: $(EMOJI)  ## what the study's world of emoji is made of, from npm (14 MB)

study-quick: $(STAMP)  ## a look at the study in 5 minutes: few seeds of one noise, into study-quick/
	$(BIN)/python studies/run.py quick --world shapes --results_dir study-quick/results --scratch_dir study-quick/scratch
	$(BIN)/python studies/report.py --arms quick --results_dir study-quick/results --print

ARM ?= quick
# Further flags of studies/run.py: --world shapes --seeds 1
STUDY_FLAGS ?=

study-again: $(STAMP)  ## an arm from nothing, in study-again/, against the record: make study-again ARM=reference
	$(BIN)/python studies/run.py $(ARM) $(STUDY_FLAGS) --results_dir study-again/results --scratch_dir study-again/scratch
	$(BIN)/python studies/repeated.py study-again/results

check: $(STAMP)  ## format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the targets above made
	rm -rf $(VENV) demo demo-qwen site study-quick study-again studies/scratch studies/results/.results_dir.lock .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
