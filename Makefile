# Targets: bench test soak build lint fmt clean.
# What each of them runs is independent of the caller's Go settings.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export GOFLAGS := -buildvcs=false
unexport GOOS GOARCH GOEXPERIMENT

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -X main.version=$(VERSION)

# Arguments of `make bench`, e.g. BENCH_ARGS="--quick --input FILE --json out.json".
BENCH_ARGS ?=
# Time per fuzz target.
FUZZ_TIME      ?= 3s
SOAK_FUZZ_TIME ?= 3m

# Looked up when used: deps may have installed them by then.
have_dpdk = pkg-config --exists libdpdk 2>/dev/null && command -v "$${CC:-gcc}" >/dev/null
# Packages whose files depend on the build tag dpdk, and those that use them.
DPDK_PACKAGES := ./dpdk/... ./internal/transports/... ./cmd/...
# Packages without system calls, whose tests mean the same under qemu-user.
PURE_PACKAGES := ./serialize/... ./rdma/roce/...

.PHONY: all bench test soak build lint fmt clean deps-build deps-bench deps-test deps-softroce
all: build

# bin/millrace is pure Go and runs anywhere. bin/millrace-dpdk adds the ports of
# libdpdk; the first starts the second where a command asks for such a port.
build: deps-build
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/millrace ./cmd/millrace
	@if $(have_dpdk); then \
		echo "$(GO) build -tags dpdk -o bin/millrace-dpdk ./cmd/millrace  # libdpdk $$(pkg-config --modversion libdpdk)"; \
		CGO_ENABLED=1 $(GO) build -tags dpdk -trimpath -ldflags '$(LDFLAGS)' -o bin/millrace-dpdk ./cmd/millrace; \
	else \
		rm -f bin/millrace-dpdk; \
		echo "built without tag dpdk: libdpdk's development files or a C compiler are missing (scripts/deps.sh build)"; \
	fi

bench: deps-bench build
	bin/millrace bench $(BENCH_ARGS)

test: deps-test lint
	CGO_ENABLED=0 $(GO) build ./...
	CGO_ENABLED=0 $(GO) test ./...
	CGO_ENABLED=1 $(GO) test -race -tags invariants ./...
	@if $(have_dpdk); then \
		echo "$(GO) test -tags dpdk $(DPDK_PACKAGES)"; \
		CGO_ENABLED=1 $(GO) test -tags dpdk $(DPDK_PACKAGES); \
	else \
		echo "SKIP: tests of tag dpdk: libdpdk's development files are missing"; \
	fi
	CGO_ENABLED=0 GOARCH=arm64 $(GO) build ./...
	@if command -v qemu-aarch64-static >/dev/null; then \
		echo "GOARCH=arm64 $(GO) test -exec qemu-aarch64-static $(PURE_PACKAGES)"; \
		CGO_ENABLED=0 GOARCH=arm64 $(GO) test -exec qemu-aarch64-static $(PURE_PACKAGES); \
	else \
		echo "SKIP: arm64 tests: qemu-aarch64-static is missing (Debian: qemu-user-static)"; \
	fi
	scripts/fuzz.sh $(FUZZ_TIME)

# What takes too long for every change: many seeds, many kills, long fuzzing.
soak: deps-test build
	CGO_ENABLED=1 $(GO) test -tags soak -timeout 120m ./...
	CGO_ENABLED=1 $(GO) test -race -tags soak,invariants -timeout 240m ./...
	scripts/fuzz.sh $(SOAK_FUZZ_TIME)

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed (make fmt):"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags soak,invariants ./...
	CGO_ENABLED=0 GOARCH=arm64 $(GO) vet ./...
	@if $(have_dpdk); then echo "$(GO) vet -tags dpdk ./..."; $(GO) vet -tags dpdk ./...; fi
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	@if $(have_dpdk); then echo "staticcheck -tags dpdk"; $(GO) tool -modfile=tools/go.mod staticcheck -tags dpdk $(DPDK_PACKAGES); fi
	$(GO) run ./internal/lint/imports

fmt:
	gofmt -w $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')

clean:
	rm -rf bin out .cache
	$(GO) clean -testcache

# A static pattern: make looks for no implicit rule of a phony target.
deps-build deps-bench deps-test deps-softroce: deps-%:
	@scripts/deps.sh $*

# Kernel Soft-RoCE (rdma_rxe), on this machine's kernel where it has that, else in a guest;
# see scripts/soft-roce. Everything is built here, the guest only runs it.
.PHONY: test-softroce bench-softroce softroce-programs
SOFTROCE_BENCH_ARGS ?= --transports tcp,rdma --topology local --workload rtt

softroce-programs: deps-softroce
	@mkdir -p out/softroce
	CGO_ENABLED=1 $(GO) build -tags verbs -trimpath -ldflags '$(LDFLAGS)' -o out/softroce/millrace ./cmd/millrace

test-softroce: softroce-programs
	CGO_ENABLED=1 $(GO) vet -tags verbs ./...
	CGO_ENABLED=1 $(GO) test -c -tags verbs,invariants -o out/softroce/verbs.test ./rdma/verbs
	scripts/soft-roce/with-device.sh --timeout 1200 -- scripts/soft-roce/test.sh out/softroce

bench-softroce: softroce-programs
	scripts/soft-roce/with-device.sh --timeout 1200 --out out/softroce/results -- scripts/soft-roce/bench.sh out/softroce/millrace $(SOFTROCE_BENCH_ARGS)
