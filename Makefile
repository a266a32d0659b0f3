# Targets: bench test soak fuzz build lint fmt clean.
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
# Time per fuzz target, one on each CPU: `make fuzz FUZZ_TIME=10m` is what a decoder gets before a release.
FUZZ_TIME ?= 3s

# A program built with -race sleeps a second when it exits, for races that are just being
# reported; tests start hundreds of programs.
RACE := CGO_ENABLED=1 GORACE=atexit_sleep_ms=20 $(GO) test -race

# Looked up when used: deps may have installed them by then.
have_dpdk = pkg-config --exists libdpdk 2>/dev/null && command -v "$${CC:-gcc}" >/dev/null
have_verbs = pkg-config --exists libibverbs 2>/dev/null && command -v "$${CC:-gcc}" >/dev/null
# Packages whose files depend on the build tag dpdk, and those that use them.
DPDK_PACKAGES := ./dpdk/... ./internal/transports/... ./cmd/...
# Packages without system calls, whose tests mean the same under qemu-user.
PURE_PACKAGES := ./serialize/... ./rdma/roce/...

# hot.pgo tells the compiler which calls of the message path to inline, through interfaces, too.
# It may be older than the code. It is not named default.pgo, with which every `go build ./...`
# and `go vet ./...` would compile all packages a second time. `make hot` renews it.
HOT := cmd/millrace/hot.pgo

.PHONY: all bench test soak build lint fmt clean deps-build deps-bench deps-test deps-softroce deps-arm
all: build

# bin/millrace is pure Go and runs anywhere. bin/millrace-native adds the C libraries that
# are here: libdpdk's ports, libibverbs' devices; the first starts the second where a
# command asks for one.
build: deps-build
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -pgo=$(HOT) -ldflags '$(LDFLAGS)' -o bin/millrace ./cmd/millrace
	@rm -f bin/millrace-native; tags=; \
	if $(have_dpdk); then tags=dpdk; else echo "built without tag dpdk: libdpdk's development files or a C compiler are missing (scripts/deps.sh build)"; fi; \
	if $(have_verbs); then tags=$${tags:+$$tags,}verbs; else echo "built without tag verbs: libibverbs' development files or a C compiler are missing (scripts/deps.sh build)"; fi; \
	if [ -n "$$tags" ]; then \
		echo "CGO_ENABLED=1 $(GO) build -tags $$tags -o bin/millrace-native ./cmd/millrace"; \
		CGO_ENABLED=1 $(GO) build -tags $$tags -trimpath -pgo=$(HOT) -ldflags '$(LDFLAGS)' -o bin/millrace-native ./cmd/millrace; \
	fi

.PHONY: hot
hot:
	@mkdir -p out/hot
	$(GO) test -run '^$$' -bench Busy -benchtime 5s -cpuprofile out/hot/memif.prof -o out/hot/memif.test ./dpdk/memif
	$(GO) test -run '^$$' -bench OneWay -benchtime 2s -cpuprofile out/hot/rdma.prof -o out/hot/rdma.test ./rdma
	$(GO) test -run '^$$' -bench 'TCPStream|TCPRoundTrip' -benchtime 1s -cpuprofile out/hot/netpoll.prof -o out/hot/netpoll.test ./netpoll
	$(GO) tool pprof -proto -output $(HOT) out/hot/*.prof

bench: deps-bench build
	bin/millrace bench $(BENCH_ARGS)

test: deps-test deps-softroce lint
	CGO_ENABLED=0 $(GO) build ./...
	CGO_ENABLED=0 $(GO) test ./...
	$(RACE) -tags invariants ./...
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
	@scripts/arm/native.sh out/arm/millrace || { [ $$? -eq 3 ] && echo "SKIP: arm64 build with libdpdk and libibverbs: see above"; }
	scripts/fuzz.sh $(FUZZ_TIME)
	$(MAKE) --no-print-directory softroce-where-possible

# What takes too long for every change: many seeds, many kills, a quarter of an hour; then fuzzing, half an
# hour. The packages are those that have the tag; all others are as in `make test`. What the race detector
# could see of simulated nets, one goroutine, it sees there.
SOAK_PACKAGES := ./broker ./dpdk/memif ./rdma/softroce ./scripts/...
soak: deps-test deps-softroce build
	CGO_ENABLED=1 $(GO) test -tags soak,invariants -timeout 30m $(SOAK_PACKAGES)
	@if $(have_dpdk); then \
		echo "$(GO) test -tags soak,dpdk ./dpdk/eal"; \
		CGO_ENABLED=1 $(GO) test -tags soak,dpdk -timeout 30m ./dpdk/eal; \
	else \
		echo "SKIP: kills of libdpdk's ports: libdpdk's development files are missing"; \
	fi
	$(RACE) -tags soak,invariants -timeout 30m -run Kill ./broker ./dpdk/memif
	$(MAKE) --no-print-directory softroce-where-possible SOFTROCE_TAGS=verbs,invariants,soak
	$(MAKE) --no-print-directory fuzz FUZZ_TIME=3m

.PHONY: fuzz
fuzz:
	scripts/fuzz.sh $(FUZZ_TIME)

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed (make fmt):"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags soak,invariants ./...
	CGO_ENABLED=0 GOARCH=arm64 $(GO) vet ./...
	@if $(have_dpdk); then echo "$(GO) vet -tags dpdk ./..."; $(GO) vet -tags dpdk ./...; fi
	@if $(have_verbs); then echo "$(GO) vet -tags verbs ./..."; $(GO) vet -tags verbs ./...; fi
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	@if $(have_dpdk); then echo "staticcheck -tags dpdk"; $(GO) tool -modfile=tools/go.mod staticcheck -tags dpdk $(DPDK_PACKAGES); fi
	@if $(have_verbs); then echo "staticcheck -tags verbs"; $(GO) tool -modfile=tools/go.mod staticcheck -tags verbs ./rdma/verbs ./cmd/...; fi
	$(GO) run ./internal/lint/imports
	@if (cd bench/peers && $(GO) mod download) >/dev/null 2>&1; then echo "go vet (bench/peers)"; cd bench/peers && $(GO) vet ./...; \
	else echo "SKIP: vet of bench/peers: its modules cannot be downloaded"; fi

fmt:
	gofmt -w $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')

clean:
	rm -rf bin out .cache
	$(GO) clean -testcache

# A static pattern: make looks for no implicit rule of a phony target.
deps-build deps-bench deps-test deps-softroce deps-arm: deps-%:
	@scripts/deps.sh $*

# The TCP loop beside other event loops in Go, a module of its own: PEERS_ARGS="-repeat 5 -size 128".
.PHONY: bench-peers
bench-peers:
	cd bench/peers && $(GO) run . $(PEERS_ARGS)

# Kernel Soft-RoCE (rdma_rxe), on this machine's kernel where it has that, else in a guest;
# see scripts/soft-roce. Everything is built here, the guest only runs it.
.PHONY: test-softroce bench-softroce softroce-programs softroce-where-possible
SOFTROCE_TAGS       ?= verbs,invariants
SOFTROCE_BENCH_ARGS ?=

softroce-programs: deps-softroce
	@mkdir -p out/softroce
	CGO_ENABLED=1 $(GO) build -tags verbs -trimpath -ldflags '$(LDFLAGS)' -o out/softroce/millrace ./cmd/millrace

test-softroce: softroce-programs
	CGO_ENABLED=1 $(GO) test -c -tags $(SOFTROCE_TAGS) -o out/softroce/verbs.test ./rdma/verbs
	scripts/soft-roce/with-device.sh --timeout 1200 -- scripts/soft-roce/test.sh out/softroce

softroce-where-possible:
	@if ! $(have_verbs); then echo "SKIP: kernel Soft-RoCE: libibverbs' development files are missing (scripts/deps.sh softroce)"; \
	elif why=$$(scripts/soft-roce/with-device.sh --prepare 2>&1); then $(MAKE) --no-print-directory test-softroce; \
	else echo "SKIP: kernel Soft-RoCE: neither on this machine nor in a guest: $$why"; fi

bench-softroce: softroce-programs
	CGO_ENABLED=1 $(GO) test -c -tags verbs -o out/softroce/verbs.bench ./rdma/verbs
	scripts/soft-roce/with-device.sh --timeout 1200 --out out/softroce/results -- scripts/soft-roce/bench.sh out/softroce $(SOFTROCE_BENCH_ARGS)

# What an ARM machine would do, without one; docs/ARM.md reads the figures. Tests under qemu-user,
# benchmarks in a machine whose clock counts instructions, inner loops in the model of a Neoverse N2.
.PHONY: arm
arm: deps-arm
	CGO_ENABLED=0 GOARCH=arm64 $(GO) test -exec qemu-aarch64-static $(PURE_PACKAGES)
	CGO_ENABLED=0 GOARCH=arm64 $(GO) test -tags purego -exec qemu-aarch64-static ./serialize
	@mkdir -p out/arm
	scripts/arm/bench.sh out/arm/kernels.txt ./serialize 'Kernel|Encode|Visit'
	scripts/arm/bench.sh out/arm/purego.txt ./serialize 'Encode|Visit' -tags purego
	@grep -a 'ns/record' out/arm/kernels.txt | sed 's/ns/instructions/g'
	@echo "the same without assembly (-tags purego):"
	@grep -a 'ns/record' out/arm/purego.txt | sed 's/ns/instructions/g'
	scripts/arm/mca.sh | tee out/arm/mca.txt
