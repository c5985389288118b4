#!/usr/bin/env bash
# Writes everything that is made from the Go sources: deep copies, CRDs and the
# manager's RBAC role.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

controller_gen=$(hack/tools/build.sh controller-gen)

"$controller_gen" object paths=./api/...

# A kind that is gone must not leave its CRD behind.
mkdir -p config/crd/bases
rm -f config/crd/bases/*.yaml
"$controller_gen" crd paths=./api/... output:crd:dir=config/crd/bases

"$controller_gen" rbac:roleName=batchtask-manager,fileName=manager_role.yaml paths=./... output:rbac:dir=config/rbac
