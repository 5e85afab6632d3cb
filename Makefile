# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: demo test lint setup setup-tests interop reliability fuzz clean

CARGO ?= cargo
# What `make test` and `make lint` build with: ranks over MPI are tested too.
FEATURES ?= mpi
# Where Fedora keeps MPI's commands.
export PATH := $(PATH):/usr/lib64/openmpi/bin
DEMO_DIR ?= demo-out

demo: setup
	$(CARGO) run --release --locked -- demo --out $(DEMO_DIR)

test: setup-tests
	$(CARGO) test --workspace --locked --features '$(FEATURES)'
	$(MAKE) --no-print-directory interop

# Opens shards with pyarrow, DuckDB and Hugging Face datasets in a virtual environment of its own.
interop: setup
	$(CARGO) build --workspace --locked --features '$(FEATURES)'
	tests/interop/run.sh $${CARGO_TARGET_DIR:-target}/debug/pairquet

# Kills, faults, damaged and hostile files, long runs: what docs/reliability.md has figures of. PARTS="kills fuzz" for some of it.
reliability: setup
	tests/reliability/run.sh $(PARTS)

# Every parser under libFuzzer, with the address sanitizer: needs a nightly toolchain and `cargo install cargo-fuzz`.
FUZZ_SECONDS ?= 1200
FUZZ_TARGETS ?= shard group foreign manifest jpeg still pth safetensors mat tar config
fuzz: setup
	tests/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked --features '$(FEATURES)' -- -D warnings
	@if command -v cargo-deny >/dev/null 2>&1; then $(CARGO) deny --all-features --offline check licenses bans sources; \
	else echo 'SKIPPED: cargo deny is not installed (cargo install cargo-deny)'; fi

setup:
	@./setup.sh

setup-tests:
	@./setup.sh tests

clean:
	$(CARGO) clean
	rm -rf $(DEMO_DIR)
