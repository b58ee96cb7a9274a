# Everything a newcomer needs; `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help setup build demo test contracts soak fuzz fmt lint clients port bench bench-parts bench-layers install deb static clean

CARGO ?= cargo
# Only asked where it is used.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## Check what building needs, and say what is missing
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: https://rustup.rs, then open a new shell"; exit 1; }
	@command -v cc >/dev/null || { echo "A C compiler is missing: apt install build-essential (or xcode-select --install)"; exit 1; }
	@$(CARGO) fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@$(CARGO) clippy --version >/dev/null 2>&1 || rustup component add clippy

build: setup ## The release binary, target/release/node
	$(CARGO) build --locked --release --bin node

demo: build ## A whole market on loopback; prints three commands to try
	@"$$(tests/target-dir)/release/node" demo

test: setup ## Format, lints, all tests (with the layering), documentation, contracts
	contracts/tools
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked --lib --bins --tests
	$(CARGO) test --locked --doc
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --lib
	contracts/check

contracts: ## The hub contract alone: tests, gas, vectors, proofs (downloads its tools once)
	contracts/check

soak: build ## Long experiments on money, some hours: seeds, kills, power cuts (as root), an hour's outage
	contracts/tools
	$(CARGO) build --locked --release --example soak
	"$$(tests/target-dir)/release/examples/soak" sim --seeds 100000
	"$$(tests/target-dir)/release/examples/soak" kill --rounds 1000
	"$$(tests/target-dir)/release/examples/soak" kill --chain --rounds 1000
	"$$(tests/target-dir)/release/examples/soak" power --cuts 100
	"$$(tests/target-dir)/release/examples/soak" outage --minutes 60

fuzz: ## Fuzz what reads strangers' bytes, SECONDS each target (default 60)
	tests/fuzz/run $(or $(SECONDS),60)

fmt: ## Format the sources
	$(CARGO) fmt --all

lint: ## Lints alone
	$(CARGO) clippy --locked --all-targets -- -D warnings

clients: setup ## Drive a market with the real SDKs, OpenClaw, Claude Code, Codex (downloads them once)
	tests/clients/run

port: setup ## Look at a role's port with Chromium, Prometheus' parser and schemathesis
	tests/port/run

bench: build ## What a request costs over calling the upstream directly, one table
	$(CARGO) bench --locked --bench market -- --node "$$(tests/target-dir)/release/node"

bench-parts: setup ## What parsing, metering, the ledger and a link cost, each alone
	$(CARGO) bench --locked --bench parts

bench-layers: build ## What layers cost: the engine beside llama.cpp, hops, killed stages, distance (as root)
	tests/pipeline_speed/run
	$(CARGO) build --locked --release --example soak
	"$$(tests/target-dir)/release/examples/soak" hops
	"$$(tests/target-dir)/release/examples/soak" stages --kills 1000
	"$$(tests/target-dir)/release/examples/soak" far

install: build ## Install as ~/.local/bin/souk (`node` is Node.js's name on most machines)
	install -d "$$HOME/.local/bin"
	install -m 755 "$$(tests/target-dir)/release/node" "$$HOME/.local/bin/souk"
	@echo "Installed $$HOME/.local/bin/souk"

deb: build ## A Debian package and a tarball with checksums, in target/package
	src/cli/service/package/build "$$(tests/target-dir)"

# glibc's resolver still loads the system's own libraries for names; addresses need none.
static: setup ## One program file without shared libraries, and its tarball
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --locked --release --bin node --target "$(HOST)"
	src/cli/service/package/build "$$(tests/target-dir)" "$$(tests/target-dir)/$(HOST)/release/node"

clean: ## Remove build outputs and downloaded clients
	$(CARGO) clean
	rm -rf tests/pipeline_speed/node_modules
	rm -rf tests/port/.venv tests/port/.shots
	rm -rf tests/clients/.venv tests/clients/.lab tests/clients/node_modules
	rm -rf contracts/node_modules contracts/.venv contracts/.out contracts/.cache
