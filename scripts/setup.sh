#!/usr/bin/env bash
# Installs what lb needs on Debian 12 or later, beside Rust: netfilter's tools and a linker, nothing if they are there.
#
#   scripts/setup.sh          what `lb lab` and the agent need
#   scripts/setup.sh --test   also what the tests need: Rust components, the linker for eBPF objects, cargo-deny, qemu
#
# Run it as root, or as a user who may sudo.
set -euo pipefail
cd "$(dirname "$0")/.."

BPF_LINKER=0.10.4
CARGO_DENY=0.20.2
packages=(ca-certificates gcc libc6-dev iptables nftables procps)

case "${1:-}" in
'') test=no ;;
--test) test=yes packages+=(iproute2 llvm qemu-system-x86 busybox-static cpio xz-utils debian-archive-keyring) ;;
*)
    sed -n 's/^# \{0,1\}//p' "$0" | sed -n '1,7p' >&2
    exit 2
    ;;
esac

missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if ((${#missing[@]})); then
    root=()
    ((EUID == 0)) || root=(sudo)
    echo "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

command -v cargo >/dev/null || {
    echo "cargo is missing: install Rust from https://rustup.rs and run this again" >&2
    exit 1
}

if [[ $test == yes ]]; then
    rustup component add rustfmt clippy rust-src
    rustup target add x86_64-unknown-none
    if [[ "$(bpf-linker --version 2>/dev/null)" != "bpf-linker $BPF_LINKER" ]]; then
        cargo install bpf-linker --version "$BPF_LINKER" --locked
    fi
    if [[ "$(cargo deny --version 2>/dev/null)" != "cargo-deny $CARGO_DENY" ]]; then
        # It runs for a second: an optimised build costs twice the time, and saves less.
        CARGO_PROFILE_DEV_DEBUG=false cargo install cargo-deny --version "$CARGO_DENY" --locked --debug
    fi
fi
