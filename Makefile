# Kernex. `make help` lists what you can do.
SHELL := /bin/bash
BIN := bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/kernexhq/kernex/pkg/buildinfo.Version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
# Without version stamps: the same source must give the same bundle.
EXAMPLEBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -buildid='
LINT_VERSION := v2.12.2
LINT := $(BIN)/tools/golangci-lint-$(LINT_VERSION)
PROGRAMS := ./orchestrator/cmd/kernex ./orchestrator/cmd/kernex-orchestrator ./broker/cmd/kernex-broker ./agent/cmd/kernex-agent
EXAMPLE := deployments/examples/edge-inference
EXAMPLE_VERSIONS := 1.0.0 1.1.0 2.0.0

# What running and testing need beyond Go: a command, and the Debian package
# that brings it. The server package of Postgres puts initdb outside PATH.
RUN_PACKAGES := initdb:postgresql
TEST_PACKAGES := $(RUN_PACKAGES) mosquitto_sub:mosquitto-clients mosquitto:mosquitto minisign:minisign strace:strace ip:iproute2 \
  openssl:openssl systemd-analyze:systemd

# Tests with a long form.
LONG_TESTS := ^(TestAnOutageInADeploymentCostsTimeOnly|TestAKilledOrchestratorsWorkMoves|TestTheOldProgramRunsOnTheNewSchema)$$

.DEFAULT_GOAL := help
.PHONY: help run test outage-test crash-test soak link-zoo bench-agent build dist examples lint fmt bench fuzz ui clean deps-run deps-test

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

run: deps-run build ## build and start everything, with two demo devices (Ctrl-C stops it)
	@$(BIN)/kernex up --demo 2 $(ARGS)

test: deps-test build ## all tests, with the race detector
	go test -race -timeout 15m ./...

outage-test: deps-test ## the long tests, as root, 10 minutes: outages of a minute, killed replicas, the oldest orchestrator on today's schema
	KERNEX_LONG=1 go test -timeout 40m -v -run '$(LONG_TESTS)' ./orchestrator/cmd/kernex/systemtest

crash-test: deps-test ## the agent's crash proof at every point, as root: power cuts, failing file calls, kills at system calls
	KERNEX_CRASH_TEST=long go test -count=1 -timeout 60m -v -run '^Test(NoPowerCut|NoFault|NoKill|APowerCut|AKill)' ./agent/crashtest

SEEDS ?= 100
soak: deps-test ## SEEDS (100) runs of random deployments, rollbacks, configurations, cancels, kills and cuts
	KERNEX_SOAK=$(SEEDS) go test -count=1 -timeout 4h -v -run Soak ./agent/crashtest

link-zoo: deps-test ## 2 MiB over every bad link (40 minutes), as root
	KERNEX_LINK_ZOO=long go test -count=1 -timeout 90m -v -run Zoo ./agent/fieldtest

bench-agent: ## what the agent costs, beside the goals (4 minutes)
	go test -run '^$$' -bench Agent -benchtime 1x ./agent/fieldtest

build: examples ## kernex, kernex-broker, kernex-orchestrator and kernex-agent into bin/, examples ready to push
	@mkdir -p $(BIN)
	$(GOBUILD) -o $(BIN)/ $(PROGRAMS)

dist: ## all programs for amd64, arm64, arm v6 and v7 into bin/dist/
	@for a in amd64: arm64: arm:6 arm:7; do d=$(BIN)/dist/$${a%%:*}$${a##*:}; mkdir -p $$d; echo $$d; \
	  GOOS=linux GOARCH=$${a%%:*} GOARM=$${a##*:} $(GOBUILD) -o $$d/ $(PROGRAMS) || exit 1; \
	  cp deployments/systemd/install.sh deployments/systemd/uninstall.sh deployments/systemd/kernex-agent.service $$d/; done

examples: ## the example bundles' program, into each version
	@for v in $(EXAMPLE_VERSIONS); do $(EXAMPLEBUILD) -o $(EXAMPLE)/$$v/server ./$(EXAMPLE)/server || exit 1; done

lint: $(LINT) ## go vet, golangci-lint (import rules included), gofmt
	go vet ./...
	$(LINT) run ./...

$(LINT):
	@mkdir -p $(BIN)/tools
	GOBIN=$(CURDIR)/$(BIN)/tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	@mv $(BIN)/tools/golangci-lint $(LINT)

fmt: ## format every Go file
	gofmt -w $$(git ls-files '*.go')

bench: deps-test ## run the benchmarks
	go test -run '^$$' -bench . -benchmem ./...

FUZZTIME ?= 30s
fuzz: ## run every fuzz target for FUZZTIME (30s)
	@go list ./... | while read -r p; do \
	  for f in $$(go test -list '^Fuzz' $$p | grep ^Fuzz); do echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; done; done

ui: ## build the web console's page from orchestrator/console/src
	go run ./orchestrator/console/build

clean: ## remove what build made
	rm -rf $(BIN) $(addsuffix /server,$(addprefix $(EXAMPLE)/,$(EXAMPLE_VERSIONS)))

deps-run:
	@$(call need,$(RUN_PACKAGES))

deps-test:
	@$(call need,$(TEST_PACKAGES))

# need installs what is missing when it may (root on Debian), else names it and
# stops.
define need
PATH="$$PATH:/usr/sbin:/sbin"; for b in /usr/lib/postgresql/*/bin; do PATH="$$PATH:$$b"; done; missing=; \
for p in $(1); do command -v $${p%%:*} >/dev/null || missing="$$missing $${p##*:}"; done; \
if [ -n "$$missing" ]; then \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    echo "installing$$missing"; (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing) >/dev/null || exit 1; \
  else echo "missing:$$missing. On Debian: apt-get install$$missing" >&2; exit 1; fi; fi
endef
