# Sourced by the scripts beside it: goes to the root of the source tree and checks for what it takes to build, so that a
# missing compiler is one clear line and not a page of linker errors.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

need() {
    command -v "$1" >/dev/null && return
    echo "hack: $1 is missing: $2" >&2
    exit 1
}

if ! command -v cc >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "hack: installing a C compiler" >&2
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes gcc libc6-dev; } >&2
fi
for dir in "$HOME/.cargo/bin" /usr/local/go/bin; do
    [ -d "$dir" ] && PATH="$PATH:$dir"
done
need cc "install a C compiler (Debian package gcc)"
need cargo "install Rust with rustup; rust-toolchain.toml names the version"
need go "install Go 1.21 or newer (it fetches the version that hack/controlplane/go.mod names)"

[ -x "${CARGO_TARGET_DIR:-target}/debug/xtask" ] || echo "hack: compiling the tool behind hack/ (once, about a minute)" >&2
