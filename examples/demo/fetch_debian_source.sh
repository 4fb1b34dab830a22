#!/bin/sh
# Download a Debian source package by name, checked by apt: fetch_debian_source.sh PACKAGE DIRECTORY
# The machine's own package sources are asked, for sources instead of binaries; nothing of its apt set-up changes.
set -eu

package=$1
directory=$2

state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
mkdir -p "$state/lists/partial" "$state/sources" "$directory"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
  [ -f "$file" ] || continue
  grep -qi debian "$file" || continue
  case $file in
    *.sources) sed -E 's/^Types:.*/Types: deb-src/' "$file" >"$state/sources/$(basename "$file")" ;;
    *) sed -nE 's/^deb(-src)?[[:space:]]/deb-src /p' "$file" >"$state/sources/$(basename "$file")" ;;
  esac
done

ask() {
  apt-get -qq \
    -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$state/sources" \
    -o Dir::State::Lists="$state/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
    -o APT::Sandbox::User="$(id -un)" "$@"
}

ask update
cd "$directory"
ask source --download-only "$package"
