#!/usr/bin/env bash
# Writes docs/reference/api.md from the Go types in api/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

crd_ref_docs=$(hack/tools/build.sh crd-ref-docs)

mkdir -p docs/reference
"$crd_ref_docs" --source-path=api --config=hack/tools/api-docs/config.yaml \
	--templates-dir=hack/tools/api-docs --renderer=markdown --output-path=docs/reference/api.md --log-level=ERROR
