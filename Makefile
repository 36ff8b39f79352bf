# Every target sets itself up: a virtual environment in .venv with locked requirements.
# Needs make and Python 3.10-3.12; PYTHON=python3.12 chooses another than python3. For boards it also
# needs SSH and sshpass, and on the scheduler's host Docker.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON    ?= python3
INVENTORY ?= $(firstword $(wildcard inventory.ini inventory.fleet.ini))
BOARDS    ?= 2
CARDS     ?= 0

VENV := .venv
BIN  := $(VENV)/bin
LOCK := app/requirements

##@ Classify
.PHONY: run-classification
run-classification: $(if $(INVENTORY),,$(VENV)/host) ## Classify on the fleet of inventory.ini, without one on two stand-in boards
ifneq ($(INVENTORY),)
	@echo "$(INVENTORY): its boards classify $(or $(DATASET),the held-out digits)"
	images/job.sh $(INVENTORY) classify $(DATASET) $(addprefix --network ,$(NETWORK)) \
	  $(addprefix --params ,$(PARAMS)) $(ARGS)
else
	@echo "no inventory.ini: $(BOARDS) stand-in boards on this machine classify $(or $(DATASET),the held-out digits)"
	$(BIN)/distributed-pynq classify $(DATASET) --boards $(BOARDS) $(addprefix --network ,$(NETWORK)) \
	  $(addprefix --params ,$(PARAMS)) $(ARGS)
endif

##@ Fleet
.PHONY: fleet fleet-down enrol boot-files deploy check status upgrade remove-board reset backup restore
fleet: $(VENV)/deploy ## Start BOARDS stand-ins with IMAGE (2.5, or 2.5,3.0 in turn), and a server with CARDS; write inventory.fleet.ini
	$(BIN)/python images/fleet.py up --boards $(BOARDS) --cards $(CARDS) $(addprefix --images ,$(IMAGE)) $(ARGS)

fleet-down: $(VENV)/deploy ## Remove them
	$(BIN)/python images/fleet.py down

PLAYBOOK = cd ansible && ../$(BIN)/ansible-playbook -i $(abspath $(INVENTORY))

enrol: $(VENV)/deploy tools ## Wait for new boards, one after the other, and give each its address and name
	$(PLAYBOOK) enrol.yml $(ARGS)

boot-files: $(VENV)/deploy tools ## Write a boot.py per board, for the FAT partition of its card (images from 2.6 on)
	$(PLAYBOOK) boot-files.yml $(ARGS)

deploy: $(VENV)/deploy tools ## Make boards and host of INVENTORY into a cluster
	$(PLAYBOOK) site.yml $(ARGS)

check: $(VENV)/deploy tools ## Say what deploying would change, and change nothing
	$(PLAYBOOK) site.yml --check --diff $(ARGS)

status: $(VENV)/deploy tools ## Say how each board is; fails where one is not well
	$(PLAYBOOK) status.yml $(ARGS)

upgrade: $(VENV)/deploy tools ## Bring the boards this release one by one, while a job runs
	$(PLAYBOOK) upgrade.yml $(ARGS)

remove-board: $(VENV)/deploy tools ## Take BOARD=NAME out of the cluster, dead or alive; wants CONFIRM=yes
	$(PLAYBOOK) remove_board.yml --extra-vars "remove=$(BOARD) confirm=$(CONFIRM)" $(ARGS)

reset: $(VENV)/deploy tools ## Take off boards and host what deploying put on; wants CONFIRM=yes
	$(PLAYBOOK) reset.yml --extra-vars confirm=$(CONFIRM) $(ARGS)

backup: inventory ## Keep keys, certificates and inventory in one archive, for another control machine
	@$(PYTHON) ansible/backup.py save $(INVENTORY)

restore: ## Unpack one into a fresh checkout: FROM=ARCHIVE
	@$(PYTHON) ansible/backup.py restore $(FROM)

.PHONY: inventory tools
inventory:
	@[ -n "$(INVENTORY)" ] || { echo "no inventory.ini: copy inventory.example.ini, or make fleet" >&2; exit 2; }
tools: inventory
	@for tool in ssh-keyscan sshpass; do command -v $$tool >/dev/null || \
	  { echo "there is no $$tool on this machine: install openssh-client and sshpass" >&2; exit 2; }; done

##@ Develop
.PHONY: test lint notebooks lock
test: $(VENV)/test ## Run everything this machine can run; name what is left out, and why
	$(BIN)/python -m pytest tests -rs -n 2 --dist loadscope $(ARGS)

.PHONY: test-images test-long test-armhf
test-images: $(VENV)/test ## Deploy to stand-ins with the PYNQ images that test leaves out
	FLEET_IMAGES="2.6 2.7 3.1 2.5,3.0" $(BIN)/python -m pytest tests/fleet/test_images.py $(ARGS)

test-long: $(VENV)/test ## Enrol stand-ins; break, upgrade, renew and remove them while a job runs
	FLEET_LONG=yes $(BIN)/python -m pytest tests/fleet/test_enrol.py tests/fleet/test_outages.py tests/fleet/test_life.py $(ARGS)

test-armhf: $(VENV)/test ## Build and run a release on an emulated Pynq-Z1; wants apt-get install qemu-user-static
	FLEET_ARMHF=yes $(BIN)/python -m pytest tests/fleet/test_armhf.py -rs $(ARGS)

lint: $(VENV)/test ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd app && ../$(BIN)/mypy
	cd ansible && PATH=$(abspath $(BIN)):$$PATH ansible-lint

.PHONY: soak large
soak: $(VENV)/test ## Disturb a job of 20 minutes every 10 s; lose nothing
	$(BIN)/python tests/cluster/soak.py $(ARGS)

large: $(VENV)/test ## Classify 10 million records, 30 GB, in flat memory
	$(BIN)/python tests/cluster/large.py $(ARGS)

notebooks: $(VENV)/test ## Run the notebooks on stand-ins and keep their outputs
	$(BIN)/python tests/notebooks.py app/notebooks/*.ipynb

lock: $(VENV)/test ## Renew the locked requirements from app/pyproject.toml
	cd app && for lock in "host:host standin" "deploy:deploy" "test:host standin bench deploy test"; do \
	  ../$(BIN)/uv pip compile -q -U --universal --python-version 3.10 --generate-hashes --no-header \
	    pyproject.toml $$(printf -- '--extra %s ' $${lock#*:}) -o requirements/$${lock%%:*}.lock || exit; \
	done
	$(BIN)/python app/requirements/lock_profiles.py

##@ About
.PHONY: help clean
help: ## List the targets
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

clean: ## Delete the virtual environment and caches
	rm -rf $(VENV) .venv-* .pytest_cache app/.mypy_cache app/.ruff_cache app/*.egg-info

# Stamps: $(VENV)/NAME is newer than the lock whose requirements are installed.
$(VENV)/host $(VENV)/deploy $(VENV)/test: $(VENV)/%: $(LOCK)/%.lock | $(VENV)/made
	@echo "installing the requirements of $<"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@if [ $* != deploy ]; then \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e app; fi
	@touch $@

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V): Python 3.10-3.12 is needed; choose one with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@
