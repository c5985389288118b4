#!/usr/bin/env bash
# Runs go mod tidy in every module of the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find . -name go.mod -not -path './bin/*' -not -path './.dev/*' -not -path '*/node_modules/*' | sort | while IFS= read -r file; do
	echo "tidy: ${file%/go.mod}"
	(cd "${file%/go.mod}" && go mod tidy)
done
