#!/usr/bin/env bash
# Prints config/default with the given image in place of batchtask:dev.
#
#   hack/render.sh registry.example.com/batchtask:v1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
image=${1:?usage: hack/render.sh IMAGE}
assets=${KUBEBUILDER_ASSETS:-$(hack/controlplane/build.sh)}

# An overlay of its own, since kubectl has no "kustomize edit set image". Only a
# colon after the last slash is a tag's: registry:5000/batchtask has none.
name=$image tag=
case ${image##*/} in
*@*) name=${image%@*} tag="digest: ${image##*@}" ;;
*:*) name=${image%:*} tag="newTag: \"${image##*:}\"" ;;
esac

overlay=$(mktemp -d config/.render.XXXXXX)
trap 'rm -rf "$overlay"' EXIT
cat >"$overlay/kustomization.yaml" <<END
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../default]
images:
  - name: batchtask
    newName: $name
    ${tag:-newTag: latest}
END
"$assets/kubectl" kustomize "$overlay"
