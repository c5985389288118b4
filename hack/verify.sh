#!/usr/bin/env bash
# Checks that what is generated is up to date: makes everything again in a copy
# of the work tree, untracked files included, and compares. Then renders every
# kustomization. The work tree is only read.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
failed=0

complain() {
	echo "verify: $*" >&2
	failed=1
}

# The files that git would commit. An empty repository beside the work tree says
# which those are without touching, or needing, the one that it may belong to.
git init --quiet --bare "$temp/git"
git --git-dir="$temp/git" --work-tree="$root" ls-files -z --others --exclude-standard >"$temp/files"
mkdir "$temp/before"
while IFS= read -r -d '' file; do
	case $file in */*) mkdir -p "$temp/before/${file%/*}" ;; esac
	# A file may vanish while others work in the tree.
	cp -pP "$file" "$temp/before/$file" || [ ! -e "$file" ]
done <"$temp/files"
cp -RpP "$temp/before" "$temp/after"

# A program that was built, or a record of a run, is committed by mistake.
while IFS= read -r file; do
	complain "$file is larger than 1 MiB; what is built or measured does not belong here (.gitignore)"
done < <(cd "$temp/before" && find . -type f -size +1024k)

# The copy uses the tools and the control plane that are built already.
mkdir -p bin
ln -s "$root/bin" "$temp/after/bin"
assets=${KUBEBUILDER_ASSETS:-$(hack/controlplane/build.sh)}

# step NAME COMMAND... runs the command in the copy.
step() {
	local name=$1 started=$SECONDS
	shift
	if (cd "$temp/after" && "$@") >"$temp/log" 2>&1; then
		echo "verify: $name, $((SECONDS - started)) s"
	else
		cat "$temp/log" >&2
		complain "$name has failed"
	fi
}
step "generate" hack/generate.sh
step "api-docs" hack/api-docs.sh
step "tidy" hack/tidy.sh
step "fmt" "$(hack/tools/build.sh golangci-lint)" fmt

rm "$temp/after/bin"
if ! (cd "$temp" && git diff --no-index --no-ext-diff --exit-code before after) >"$temp/diff"; then
	cat "$temp/diff"
	complain "the files above are not up to date; mend them with: make generate api-docs tidy fmt"
fi

# Every kustomization must render; a component does so on top of config/default.
started=$SECONDS
cd "$temp/after"
while IFS= read -r file; do
	dir=${file%/kustomization.yaml} overlay=${file%/kustomization.yaml}
	if grep -q '^kind: Component$' "$file"; then
		overlay=config/.verify
		mkdir -p "$overlay"
		printf '{resources: [../default], components: [../../%s]}\n' "$dir" >"$overlay/kustomization.yaml"
	fi
	"$assets/kubectl" kustomize "$overlay" >"$temp/rendered" || complain "$dir does not render"
	[ "$overlay" = "$dir" ] || rm -r "$overlay"
	[ "$dir" != config/samples ] || cp "$temp/rendered" "$temp/samples"
done < <(find config -name kustomization.yaml | sort)
echo "verify: kustomizations, $((SECONDS - started)) s"

step "samples" go run ./hack/samples "$temp/samples"

exit "$failed"
