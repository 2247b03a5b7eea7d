# How things are run. What is run is in pipelines/*.toml; `make help` lists targets, variables and pipelines.

SCALE      ?= demo#             demo, cifar10 or paper: how large
DATA_ROOT  ?=#                  folder of local images and weights (pipelines/sources/*.toml say which)
SHARDS     ?= 1#                parts per attack
RUN        ?=#                  put before finetune, fit and attack: RUN="srun --gres=gpu:1" with -j
DEVICE     ?= auto#             auto, cpu or cuda
PYTHON     ?= python3#          a Python with torch and torchvision, for bench-torch
QUICK      ?=#                  1: bench with fewer repeats, in minutes
BIN        ?= target/release#   where the binaries are
CARGOFLAGS ?=#                  passed on to cargo
BUILD      ?= cargo build --release $(CARGOFLAGS)

MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
export RAYON_NUM_THREADS
# The commands that need a device are told which; the others read this variable too, and must not ask for a GPU.
unexport DEVICE

FILES     := $(sort $(wildcard pipelines/*.toml))
PIPELINES := $(FILES:pipelines/%.toml=%)
PLAN       = $(BIN)/plan --scale $(SCALE) --shards $(SHARDS) $(if $(DATA_ROOT),--data-root $(DATA_ROOT)) $(FILES)

# Only goals that make artifacts need the plan. It is made anew each time (milliseconds) and written where it changed.
ifneq ($(filter-out help build test lint bench bench-torch cuda gpu-check gpu-rehearsal inspect verify check-source cost list gc clean,$(or $(MAKECMDGOALS),help)),)
include data/plan/$(SCALE)/plan.mk
endif
data/plan/$(SCALE)/plan.mk: build
	@$(PLAN)

.PHONY: all figures build test lint bench bench-torch cuda gpu-check gpu-rehearsal inspect verify check-source cost list gc clean help $(PIPELINES)

all: $(PIPELINES) ## every pipeline

figures: $(filter table% figure% theory,$(PIPELINES)) ## every figure and table of the paper

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

cost: build ## queries, votes, training images and hours of every pipeline at SCALE, before and after what is saved
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
	@$(foreach file,$(FILES),sed -n 's/^title *= *"\(.*\)"/  $(file:pipelines/%.toml=%)|\1/p' $(file) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }';)
