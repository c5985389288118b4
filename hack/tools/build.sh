#!/usr/bin/env bash
# Builds one development tool into bin/tools, once for each of its versions, and
# prints the path of the program. The versions are those of the modules here.
#
#   hack/tools/build.sh controller-gen | crd-ref-docs | gotestsum | golangci-lint
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
name=${1:?usage: hack/tools/build.sh TOOL}

dir=$here
case $name in
controller-gen) module=sigs.k8s.io/controller-tools package=$module/cmd/controller-gen ;;
crd-ref-docs) module=github.com/elastic/crd-ref-docs package=$module ;;
gotestsum) module=gotest.tools/gotestsum package=$module ;;
golangci-lint) dir=$here/lint module=github.com/golangci/golangci-lint/v2 package=$module/cmd/golangci-lint ;;
*)
	echo "hack/tools/build.sh: there is no tool named $name" >&2
	exit 2
	;;
esac

# The version of Go is part of the name: golangci-lint refuses to read code that
# is for a later Go than the one it was built with.
cd "$dir"
version=$(go list -m -f '{{.Version}}' "$module")
program="$root/bin/tools/$name-$version-$(go env GOVERSION)"

if [ ! -x "$program" ]; then
	echo "tools: building $name $version, once" >&2
	mkdir -p "$root/bin/tools"
	# Renamed into place, so that a build that is interrupted leaves nothing that
	# looks finished, and two at once do no harm.
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$program.$$" "$package"
	mv "$program.$$" "$program"
fi
echo "$program"
