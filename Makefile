# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: demo test lint setup interop clean

CARGO ?= cargo
DEMO_DIR ?= demo-out

demo: setup
	$(CARGO) run --release --locked -- demo --out $(DEMO_DIR)

test: setup
	$(CARGO) test --workspace --locked
	$(MAKE) --no-print-directory interop

# Opens shards with pyarrow, DuckDB and Hugging Face datasets in a virtual environment of its own.
interop: setup
	$(CARGO) build --workspace --locked
	tests/interop/run.sh $${CARGO_TARGET_DIR:-target}/debug/pairquet

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

setup:
	@./setup.sh

clean:
	$(CARGO) clean
	rm -rf $(DEMO_DIR)
