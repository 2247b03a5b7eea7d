# How things are run. What is run is in pipelines/*.toml; `make help` lists targets, variables and pipelines.

SCALE      ?= demo#             demo, cifar10 or paper: how large
DATA_ROOT  ?=#                  folder of local images and weights (pipelines/sources/*.toml say which)
SHARDS     ?= 1#                parts per attack
JOBS       ?= 2#                jobs side by side, unless -j says so: one computes where the other waits for its last image
RUN        ?=#                  put before finetune, fit and attack: RUN="srun --gres=gpu:1" with -j
DEVICE     ?= auto#             auto, cpu or cuda
PYTHON     ?= python3#          a Python with torch, for programs of yours, and torchvision, for bench-torch
VICTIM_SECONDS ?=#              how long a program of yours may take for one answer: 600 unless set
VICTIM_MEMORY ?=#               how many MiB of memory it may take: any number unless set
QUICK      ?=#                  1: bench with fewer repeats, in minutes
BIN        ?= target/release#   where the binaries are
CARGOFLAGS ?=#                  passed on to cargo
BUILD      ?= cargo build --release $(CARGOFLAGS)

MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
export RAYON_NUM_THREADS VICTIM_SECONDS VICTIM_MEMORY
# The commands that need a device are told which; the others read this variable too, and must not ask for a GPU.
unexport DEVICE MAKEFLAGS
# What is asked for at every query is kept for the next, not given back to the system (glibc).
export MALLOC_MMAP_THRESHOLD_ = 33554432
export MALLOC_TRIM_THRESHOLD_ = 1073741824
# Every job has all threads, and rows depend on none of this. Clusters and GPUs are asked for by hand.
ifeq ($(MAKELEVEL)$(RUN)$(filter cuda,$(DEVICE))$(filter %cuda,$(BIN)),0)
MAKEFLAGS += -j$(JOBS)
endif

FILES     := $(sort $(wildcard pipelines/*.toml))
PIPELINES := $(FILES:pipelines/%.toml=%)
PLAN       = $(BIN)/plan --scale $(SCALE) --shards $(SHARDS) $(if $(DATA_ROOT),--data-root $(DATA_ROOT)) $(FILES)

# Only goals that make artifacts need the plan. It is made anew each time (milliseconds) and written where it changed.
ifneq ($(filter-out help new-defense build fetch test lint bench bench-torch cuda gpu-check gpu-rehearsal inspect verify check-source cost list gc clean,$(or $(MAKECMDGOALS),help)),)
include data/plan/$(SCALE)/plan.mk
endif
data/plan/$(SCALE)/plan.mk: build
	@$(PLAN) $(patsubst %,--goals=%,$(filter $(PIPELINES),$(GOALS)))

FIGURES := $(filter table% figure% theory,$(PIPELINES))
GOALS    = $(patsubst all,$(PIPELINES),$(patsubst figures,$(FIGURES),$(MAKECMDGOALS)))

.PHONY: new-defense all figures build test lint bench bench-torch cuda gpu-check gpu-rehearsal inspect verify check-source cost list gc clean help $(PIPELINES)

all: $(PIPELINES) ## every pipeline

figures: $(FIGURES) ## every figure and table of the paper

# What a goal does not run is not compiled: `build` is the planner and the stages, build-NAME one program more.
build: ## compile the planner and the stages; cargo alone knows what is stale
	$(call compile,plan sample finetune fit attack theory report)

build-%: ## compile one program more: inspect, bench
	$(call compile,$*)

ifneq ($(strip $(BUILD)),)
define compile
	@command -v cargo >/dev/null || { echo 'make: cargo is not installed: see https://rustup.rs' >&2; exit 1; }
	@command -v cc >/dev/null || { echo 'make: no C compiler: install gcc or clang (Debian: build-essential)' >&2; exit 1; }
	@$(BUILD) $(patsubst %,--bin %,$(1))
endef
endif

# No phony target, so that Make makes it only where a file of the hub must be fetched.
.SECONDARY: fetch
fetch: ## compile the one program that reaches a network; pipelines do so where a file of the hub is missing
	$(call compile,fetch)

TEMPLATE = crates/victim/template

# Make takes LANG from the environment's locale, too: only the command line's is meant.
new-defense: ## a defense of your own to start from: make new-defense NAME=mine LANG=python
ifneq ($(if $(filter command,$(firstword $(origin LANG))),$(LANG),python),python)
	@echo 'make: LANG=$(LANG): there is a template for python; other languages: crates/victim/PROTOCOL.md' >&2; exit 2
else
	@case '$(NAME)' in ''|*[!a-z0-9-]*|-*) echo 'make: name it in a-z, 0-9 and -: make new-defense NAME=mine LANG=python' >&2; exit 2;; esac
	@if grep -q '^$(NAME):' Makefile; then echo 'make: $(NAME) is a target: take another NAME' >&2; exit 2; fi
	@for file in pipelines/$(NAME).py pipelines/$(NAME).toml; do \
		if [ -e $$file ]; then echo "make: $$file is there already: take another NAME" >&2; exit 2; fi; done
	@set -C; for kind in py toml; do \
		sed 's|NAME|$(NAME)|g; s|"PYTHON"|"$(PYTHON)"|g' $(TEMPLATE)/NAME.$$kind > pipelines/$(NAME).$$kind; done
	@echo 'pipelines/$(NAME).py is yours to write; $(PYTHON) pipelines/$(NAME).py asks it once, make $(NAME) attacks it.'
endif

test: ## run every test
	cargo test --release --workspace $(CARGOFLAGS)

lint: ## formatting and clippy
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets $(CARGOFLAGS) -- -D warnings

BENCH = $(BIN)/bench --bin $(BIN) $(if $(QUICK),--quick) $(if $(DATA_ROOT),--data-root $(DATA_ROOT))

bench: build build-bench ## how fast: gradient queries, forward passes, votes, training; and every defense
	@$(BENCH)
	@cargo bench --quiet --package defenses --bench defenses $(CARGOFLAGS)

bench-torch: build build-bench ## the same beside PyTorch's, to data/report/bench; QUICK=1: in five minutes
	@$(BENCH) --torch $(PYTHON) --out data/report/bench

cuda: ## programs for a GPU into dist/cuda; needs neither GPU nor CUDA here
	@scripts/cuda/build.sh

gpu-check: ## where there is a GPU: dist/cuda beside the CPU and PyTorch, to data/report/gpu-check
	@test -x dist/cuda/gpu-check || { echo 'make: no dist/cuda/gpu-check: run make cuda, here or on another machine' >&2; exit 1; }
	@dist/cuda/gpu-check --torch $(PYTHON)

gpu-rehearsal: ## dist/cuda beside the CPU where there is no GPU: CUDA's libraries are a stand-in that computes on the CPU
	@test -x dist/cuda/gpu-check || { echo 'make: no dist/cuda/gpu-check: run make cuda' >&2; exit 1; }
	@scripts/cuda/rehearse.sh dist/cuda/gpu-check --only-checks --out data/report/gpu-rehearsal

inspect: build-inspect ## what an artifact holds and where it came from: make inspect A=data/attack/.../part-0-of-1.parquet
	@$(BIN)/inspect $(or $(A),$(error name the artifact: make inspect A=data/attack/.../part-0-of-1.parquet))

verify: build-inspect ## check the digests of every artifact's inputs and weights
	@find data -name '*.parquet' ! -name '*.timing.parquet' ! -path 'data/record/*' -exec env DATA_ROOT='$(DATA_ROOT)' $(BIN)/inspect --verify {} +

RATES = $(sort $(wildcard data/record/*/bench/engine.json)) $(sort $(wildcard data/record/*/gpu-check/gpu-check.json))

check-source: build ## what sources hold, as they are understood: make check-source IMAGES=name, or WEIGHTS=name [IMAGES=name]
	@$(PLAN) $(if $(WEIGHTS),--check-weights $(WEIGHTS)) $(if $(IMAGES),--check-images $(IMAGES)) $(if $(WEIGHTS)$(IMAGES),,$(error name a source: make check-source IMAGES=cifar10-test))

cost: build ## queries, votes, training images and time of every pipeline at SCALE, before and after what is saved
	@$(PLAN) --cost $(if $(strip $(RATES)),--rates $(RATES))

list: build ## one command per line, in dependency layers: make list P=table1
	@$(PLAN) --list $(or $(P),$(error name the pipeline: make list P=table1))

gc: build ## delete artifacts that no plan names any more
	@$(BIN)/plan --gc

clean: ## delete everything under data/ but what is tracked
	@find data -mindepth 1 -maxdepth 1 ! -name README.md ! -name record -exec rm -rf {} + 2>/dev/null || true

help: ## this list
	@echo 'Targets:'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo; echo 'Variables, with their defaults:'
	@sed -n 's/^\([A-Z_]*\) *?= *\([^#]*\)#* *\(.*\)/\1|\2|\3/p' Makefile | awk -F'|' '{ printf "  %-12s %-16s %s\n", $$1, $$2, $$3 }'
	@echo; echo 'Pipelines, each a target:'
	@awk '/^title *= *"/ && !seen[FILENAME]++ { name = FILENAME; gsub(/.*\/|\.toml$$/, "", name); \
	  gsub(/^title *= *"|"[^"]*$$/, ""); printf "  %-15s %s\n", name, $$0 }' $(FILES)
