PYTHON ?= python3
SECONDS ?= 60
GIGABYTES ?= 100
BIN := .venv/bin

.PHONY: help setup serve test lint types crash-test move-test sanitize scale-test sessions-test groups-test fault-test powercut-test simulate groups-model conformance conformance-rust compatibility fuzz chaos mutants bench bench-long clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

setup: ## Install what is missing, make .venv, build
	@PYTHON=$(PYTHON) sh scripts/setup

serve: setup ## Run the server with its default configuration
	@exec $(BIN)/shardserver

test: setup ## Run all tests
	@$(BIN)/python -m pytest -q -n auto --dist loadfile

lint: setup ## Style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q . || { echo "ruff found something"; exit 1; }

types: setup ## Strict types
	@$(BIN)/mypy

sanitize: setup ## Tests of the compiled parts with checks, AddressSanitizer and UBSan, about 15 minutes
	@sh scripts/sanitize

crash-test: setup ## kill -9 of shards and of the whole under load, SECONDS=60
	@$(BIN)/python -m tests.crash.crash_test --seconds $(SECONDS)

move-test: setup ## Partitions move between shards under load, SECONDS=60
	@$(BIN)/python -m tests.moves.move_test --seconds $(SECONDS)

scale-test: setup ## 10,000 partitions: time, memory, descriptors, disk
	@$(BIN)/python -m tests.scale.names_test

sessions-test: setup ## 9,000 connections at a time: each is answered, the next one refused; time and memory
	@$(BIN)/python -m tests.scale.sessions_test

groups-test: setup ## 10,000 members of 1,000 groups: joining, rebalances, what another client feels of them
	@$(BIN)/python -m tests.scale.groups_test

fault-test: setup ## The log on a disk that fails, dies and forgets, SECONDS=60
	@$(BIN)/python -m tests.faults.fault_test --seconds $(SECONDS)

conformance: setup ## Real SDKs against servers of 1, 2 and 4 shards, recorded requests replayed
	@rm -f build/conformance/python.json build/conformance/frames.json build/conformance/vectors-*.json
	@CONFORMANCE=full $(BIN)/python -m pytest -q -n auto --dist loadfile tests/conformance

conformance-rust: setup ## The peer's own command line client, built once into ~/.cache (5 minutes)
	@rm -f build/conformance/rust.json
	@IGGY_CLI=$$(sh scripts/iggy-cli) $(BIN)/python -m pytest -q tests/conformance/test_rust_cli.py

compatibility: setup ## The table of docs/compatibility.md, from the results of the two
	@$(BIN)/python -m tests.conformance.compatibility

simulate: setup ## Simulated servers that crash, lose power, move partitions; SECONDS=60, SEED=
	@$(BIN)/python -m tests.simulation.simulate --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

powercut-test: setup ## Power cuts on an ext4 image, then on a FUSE layer that forgets (root), SECONDS=60 each
	@$(BIN)/python -m tests.powercut.powercut_test --seconds $(SECONDS)
	@$(BIN)/python -m tests.powercut.fuse_test --seconds $(SECONDS)

fuzz: setup ## Coverage-guided fuzzing of all that reads foreign bytes, and its plants, SECONDS=120
	@$(BIN)/python -m tests.fuzz.fuzz_test --seconds $(SECONDS)

chaos: setup ## Kills, pauses, a full disk, clock steps and a crowd of connections under load, SECONDS=60
	@$(BIN)/python -m tests.chaos.chaos_test --seconds $(SECONDS)

groups-model: setup ## Random lives of consumer groups with deaths of shards, SECONDS=60, SEED=
	@$(BIN)/python -m tests.core.groups.model --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

mutants: setup ## Rules of durability taken out one after another: a test must miss each; SECONDS=: some of them, ONLY=name
	@$(BIN)/python -m tests.mutants.mutant_run $(if $(filter command,$(word 1,$(origin SECONDS))),--seconds $(SECONDS)) $(if $(ONLY),--only $(ONLY))

bench: setup ## Ours beside the ceilings of this machine, at most 15 minutes; SECONDS=2: few rows, tiny
	@sh scripts/fio
	@$(BIN)/python -m shardserver.bench.suite --seconds $(SECONDS)

bench-long: setup ## The rows of 10,000 partitions and of GIGABYTES=100; hours
	@sh scripts/fio
	@$(BIN)/python -m shardserver.bench.suite --long --seconds $(SECONDS) --gigabytes $(GIGABYTES)

clean: ## Remove the build and .venv, never data
	rm -rf .venv build *.egg-info
