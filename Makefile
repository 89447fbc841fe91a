# Strata: everything a person or a machine does with the checkout.
#
#   make demo              sets up, builds, starts the stack and runs a real nginx image from a real registry
#   make test              sets up and runs every test; the last line counts them
#   make up ROOT=DIR       the same stack for you; then `. DIR/env`        make down ROOT=DIR   stops and removes it
#   make check             formatting, lints, dependency rules, unit tests, documentation; needs no root
#   make bench             Strata beside its peers, interleaved; writes docs/benchmarks.md
#   make test-vm           the runtime's tests in a guest with systemd: cgroup v2, and v1 beside it
#   make test-power        1,100 power cuts under shimd, and 330 under Debian's containerd for comparison
#   make test-cycles       10,000 containers come and go, and nothing may be left
#   make test-crashes      shimd, its shim, the runtime and the registry helper killed around each effect, CRASHES=25 times
#   make fuzz FUZZ_SECONDS=20 lowrun's fuzz targets, each for so long, at idle priority
#
# Containers need root: where you are somebody else, the targets that start containers use sudo and say so.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

ROOT    ?= /tmp/strata
FUZZ_SECONDS ?= 20
POWER_POINTS ?= 1000
CYCLES  ?= 10000
CRASHES ?= 25
BIN     := target/strata/bin
IMAGES  := target/images
HOST    := $(shell rustc -vV | sed -n 's/^host: //p')
# `lowrun --version` names it.
COMMIT  := LOWRUN_COMMIT=$(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# Static, not relocatable: an exec of such a program costs half.
STATIC  := $(COMMIT) RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" LIBSECCOMP_LINK_TYPE=static \
           LIBSECCOMP_LIB_PATH=/usr/lib/$(shell gcc -print-multiarch 2>/dev/null)
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E env "PATH=$$PATH")
SETUP   := bash integration/scripts/setup.sh

.PHONY: all setup build images harness demo up down test check bench test-vm test-power test-cycles test-crashes fuzz clean
all: build

setup:
	@$(SETUP)

build:
	@$(SETUP) build
	cargo build --release --locked -p engined -p shimd -p shimd-registry
	$(STATIC) cargo build --profile small --locked --target $(HOST) -p strata -p containerd-shim-strata-v1 -p lowrun
	@mkdir -p $(BIN)
	@for program in engined shimd shimd-registry; do ln -f target/release/$$program $(BIN)/$$program; done
	@for program in strata containerd-shim-strata-v1 lowrun; do ln -f target/$(HOST)/small/$$program $(BIN)/$$program; done

# The images of the demo and the tests; those that are there already stay as they are.
images: harness
	@target/release/strata-images $(IMAGES)

harness:
	@$(SETUP) build test
	cargo build --release --locked -p integration --bins

demo: build images
	@$(SUDO) target/release/strata-lab demo

up: build images
	@$(SUDO) target/release/strata-lab up $(abspath $(ROOT))

down:
	@[ -x target/release/strata-lab ] || cargo build --release --locked -p integration --bins
	@$(SUDO) target/release/strata-lab down $(abspath $(ROOT))

test:
	@$(SETUP) build test peers vm
	@$(MAKE) --no-print-directory build images
	@$(SUDO) bash integration/scripts/test.sh

check:
	@$(SETUP) build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --locked --quiet -p integration --test tidy
	cargo test --locked --quiet --workspace --lib --bins
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked --quiet

bench: build images
	@$(SETUP) test peers bench
	@target/release/strata-images $(IMAGES) layers gzip-layers zstd-layer
	@$(SUDO) target/release/strata-bench --bin $(BIN) --write docs/benchmarks.md \
	    $$([ -e target/peers/crun ] && echo --peer crun=target/peers/crun) --peer runc=/usr/sbin/runc

test-vm: build
	@$(SETUP) vm test
	@bash integration/vm/run.sh --whole $(BIN)/lowrun
	@bash integration/vm/run.sh --whole --hybrid $(BIN)/lowrun

# The second one tells what it finds and does not judge.
test-power: build
	@$(SETUP) test peers
	cargo test --locked --no-run -p integration --test power
	@$(SUDO) env STRATA_POWER_POINTS=$(POWER_POINTS) cargo test --locked -q -p integration --test power leaves -- --nocapture
	@$(SUDO) env SUBJECT=theirs STRATA_POWER_POINTS=300 cargo test --locked -q -p integration --test power leaves -- --nocapture

test-cycles: build images
	@$(SETUP) test peers
	cargo test --locked --no-run -p integration --test cycles
	@$(SUDO) env STRATA_CYCLES=$(CYCLES) cargo test --locked -q -p integration --test cycles -- --nocapture

test-crashes:
	@$(SETUP) build test peers
	cargo build --locked -p shimd-registry -p containerd-shim-strata-v1 -p lowrun
	cargo test --locked --no-run -p shimd --test crashes
	@$(SUDO) env STRATA_CRASHES=$(CRASHES) cargo test --locked -q -p shimd --test crashes -- --nocapture --test-threads 2

fuzz:
	@$(SETUP) build fuzz
	@LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH=/usr/lib/$$(gcc -print-multiarch) bash integration/scripts/fuzz.sh $(FUZZ_SECONDS)

clean:
	rm -rf target
