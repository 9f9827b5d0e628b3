# The pinned Rust, and the daemon and the agent's addon built with it where a script needs them: WEFT_PROFILE is release (the default) or dev.
# Sourced by ensure.sh.

ensure_rust() {
  if ! command -v cargo >/dev/null 2>&1; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  fi
  if ! command -v cargo >/dev/null 2>&1; then
    say "Rust is missing: install rustup (https://rustup.rs), then run this again. native/rust-toolchain.toml names the version."
    exit 1
  fi
  # rustup installs the pinned version by itself at the first call; older and newer ones do so at different commands.
  (cd native && cargo --version >/dev/null 2>&1) || (cd native && rustup show >&2) || (cd native && rustup toolchain install >&2)
}

ensure_native() {
  WEFT_PROFILE=${WEFT_PROFILE:-release}
  export WEFT_PROFILE
  (cd native && cargo build --quiet --profile "$WEFT_PROFILE" -p weftd -p weft-node >&2)
}
