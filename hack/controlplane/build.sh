#!/usr/bin/env bash
# Builds kube-apiserver, etcd and kubectl from the Go module proxy into
# bin/controlplane/VERSIONS, once for each pair of versions, and prints that
# folder on standard output. Progress goes to standard error.
#
# The first build on a machine takes minutes (about eight on two cores). Go's
# build cache makes a later one, in another checkout say, a matter of seconds.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$here"

kubernetes=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
etcd=$(go list -m -f '{{.Version}}' go.etcd.io/etcd/server/v3)
out="$root/bin/controlplane/kubernetes-$kubernetes-etcd-$etcd"

complete() { [ -x "$out/etcd" ] && [ -x "$out/kube-apiserver" ] && [ -x "$out/kubectl" ]; }

if complete; then
	echo "$out"
	exit 0
fi

# Two makes at once must not build twice: the second waits, then finds the result.
mkdir -p "$out"
exec 9>"$out.lock"
if ! flock --nonblock 9; then
	echo "control plane: another build is under way, waiting for it" >&2
	flock 9
fi
if complete; then
	echo "$out"
	exit 0
fi

packages=(etcd=go.etcd.io/etcd/server/v3
	kube-apiserver=k8s.io/kubernetes/cmd/kube-apiserver
	kubectl=k8s.io/kubernetes/cmd/kubectl)

echo "control plane: building Kubernetes $kubernetes and etcd $etcd from the Go module proxy." >&2
echo "control plane: once only; minutes on a new machine, seconds where Go's build cache is warm." >&2

major=${kubernetes#v}
version=k8s.io/component-base/version
ldflags="-s -w -X $version.gitVersion=$kubernetes -X $version.gitMajor=${major%%.*} -X $version.gitMinor=$(cut -d. -f2 <<<"$major") -X $version.gitTreeState=clean"

started=$SECONDS
export CGO_ENABLED=0

total=$(go list -deps "${packages[@]#*=}" | wc -l)
count=$(mktemp)
trap 'rm -f "$count"' EXIT
for entry in "${packages[@]}"; do
	name=${entry%%=*} package=${entry#*=}
	# -v names a package when it has been compiled: that is the progress.
	go build -v -trimpath -ldflags "$ldflags" -o "$out/.$name" "$package" 2>&1 |
		while IFS= read -r line; do
			echo "$line" >>"$count"
			done_=$(wc -l <"$count")
			if [ -t 2 ]; then
				printf '\rcontrol plane: %s: %d packages compiled of at most %d, %d s ' "$name" "$done_" "$total" $((SECONDS - started)) >&2
			elif ((done_ % 100 == 0)); then
				printf 'control plane: %s: %d packages compiled of at most %d, %d s\n' "$name" "$done_" "$total" $((SECONDS - started)) >&2
			fi
			# What is not a package's name is the compiler's complaint.
			case $line in *' '*) printf '%s\n' "$line" >&2 ;; esac
		done
	mv "$out/.$name" "$out/$name"
	[ ! -t 2 ] || printf '\r\033[K' >&2
	echo "control plane: $name is built, $((SECONDS - started)) s" >&2
done
echo "$out"
