# make help lists the targets.

IMG ?= batchtask:dev
PKG ?= ./...
RUN ?=
CASES ?=

# The local control plane: etcd, kube-apiserver and kubectl. KUBEBUILDER_ASSETS
# in the environment names another one.
ASSETS = $${KUBEBUILDER_ASSETS:-$$(hack/controlplane/build.sh)}

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

##@ Start here

.PHONY: help
help: ## List the targets.
	@awk 'BEGIN {FS = ":.*## "; print "Usage: make TARGET [PKG=./internal/quota] [RUN=TestName] [IMG=registry/name:tag]"} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z][a-z-]*:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: controlplane build bin/batchtask-dev ## Run the two examples of the API over simulated devices, show what happens, and exit.
	@KUBEBUILDER_ASSETS="$(ASSETS)" exec bin/batchtask-dev demo

.PHONY: dev
dev: controlplane build bin/batchtask-dev ## Keep a whole local environment running until Ctrl-C; .dev/env says how to reach it.
	@KUBEBUILDER_ASSETS="$(ASSETS)" exec bin/batchtask-dev dev

.PHONY: test
test: controlplane ## Run the tests against a real control plane. PKG and RUN select some.
	@hack/test.sh $(if $(RUN),-run '$(RUN)') $(PKG)

.PHONY: soak
soak: controlplane ## Change the leader fifty times in tasks over 20,000 objects and 200,000 rows, the API server silent for ten minutes once: an hour. CHANGES=12 does less.
	@SOAK_CHANGES=$(or $(CHANGES),50) hack/test.sh -v -timeout 4h -run TestLeaderChanges ./test/e2e

.PHONY: bench
bench: controlplane build ## Measure on this machine, beside the limits. CASES="publish small shim shadow postgres scale hostile" selects some, BENCH=quick measures less, BENCH=full more.
	@CGO_ENABLED=0 go build -trimpath -o bin/batchtask-bench ./hack/bench
	@KUBEBUILDER_ASSETS="$(ASSETS)" exec bin/batchtask-bench $(CASES)

##@ Build

.PHONY: build
build: ## Build bin/batchtask.
	CGO_ENABLED=0 go build -trimpath -o bin/batchtask ./cmd/batchtask

# Built and run rather than go run, which passes no signal on to its program.
.PHONY: bin/batchtask-dev
bin/batchtask-dev:
	@CGO_ENABLED=0 go build -trimpath -o $@ ./hack/dev

.PHONY: controlplane
controlplane: ## Build etcd, kube-apiserver and kubectl, once: minutes the first time, nothing later.
	@test -n "$${KUBEBUILDER_ASSETS:-}" || hack/controlplane/build.sh >/dev/null

.PHONY: docker-build
docker-build: ## Build the container image IMG (needs Docker, or another engine: CONTAINER_ENGINE=podman).
	$${CONTAINER_ENGINE:-docker} build -t $(IMG) .

.PHONY: deploy-manifests
deploy-manifests: controlplane ## Render config/default with the image IMG to bin/install.yaml.
	@hack/render.sh $(IMG) >bin/install.yaml
	@echo "Wrote bin/install.yaml; install it with: kubectl apply --server-side -f bin/install.yaml"

##@ Develop

.PHONY: generate
generate: ## Write deep copies, CRDs and the RBAC role from the Go sources.
	hack/generate.sh

.PHONY: api-docs
api-docs: ## Write docs/reference/api.md from the Go types.
	hack/api-docs.sh

.PHONY: fmt
fmt: ## Format the Go sources.
	@"$$(hack/tools/build.sh golangci-lint)" fmt

.PHONY: lint
lint: ## Look for mistakes in the Go sources.
	@lint=$$(hack/tools/build.sh golangci-lint); "$$lint" run; cd test/clients/go; "$$lint" run

.PHONY: lint-fix
lint-fix: ## The same, and mend what can be mended by program.
	@"$$(hack/tools/build.sh golangci-lint)" run --fix

.PHONY: tidy
tidy: ## Run go mod tidy in every module.
	@hack/tidy.sh

.PHONY: verify
verify: controlplane ## Check that everything generated is up to date and every manifest renders. Changes nothing.
	@hack/verify.sh

.PHONY: clean
clean: ## Remove what was built, except the control plane and the tools.
	rm -rf bin/batchtask bin/batchtask-dev bin/install.yaml .dev
