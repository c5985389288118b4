#!/usr/bin/env bash
# Runs the tests against a real kube-apiserver and etcd. Arguments are passed on
# to go test; the packages come last.
#
# KUBEBUILDER_ASSETS names a folder with etcd, kube-apiserver and kubectl; where
# it is not set the local control plane is used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export KUBEBUILDER_ASSETS=${KUBEBUILDER_ASSETS:-$(hack/controlplane/build.sh)}
gotestsum=$(hack/tools/build.sh gotestsum)

# The race detector is linked with a C compiler. Building its C parts tells more
# than looking for gcc: the C library's headers may be missing.
race=(-race)
if ! CGO_ENABLED=1 go build -race runtime/cgo 2>/dev/null; then
	race=()
	echo "test: there is no working C compiler, so the tests run WITHOUT the race detector" >&2
fi

# The tests run real servers on a machine that others may use too. In CI, where packages are
# all that is given, up to five tests that fail run once more, each alone; the summary shows
# their first failure, and which of them then passed. That is a bug in the test, to be mended.
# A data race or a panic is never tried again.
rerun=()
if [ "${CI:-}" = true ] && [[ "$*" != *-* ]]; then
	rerun=(--rerun-fails=1 --rerun-fails-max-failures=5 --rerun-fails-abort-on-data-race --packages="$*")
	set --
fi

# Two packages at once: several start an API server of their own.
exec "$gotestsum" --format pkgname-and-test-fails --format-hide-empty-pkg --format-icons text \
	${rerun[@]+"${rerun[@]}"} -- ${race[@]+"${race[@]}"} -p 2 -timeout 30m "$@"
