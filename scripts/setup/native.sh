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
  # The exit status goes around the pipe.
  status=$({ {
    code=0
    (cd native && cargo build --profile "$WEFT_PROFILE" -p weftd -p weft-node -p weft-holder 2>&1 >/dev/null) || code=$?
    echo "$code" >&3
  } | tell_build >&2; } 3>&1)
  [ "$status" -eq 0 ] || exit "$status"
}

# Cargo's lines, each as it comes: what is built and how long that may take as soon as something is, then how far it is; what
# it complains of as it is. Nothing where everything is built.
tell_build() {
  parts=0
  while IFS= read -r line; do
    case $line in
      *" Compiling weft"*)
        begin_build
        say "setup: $(printf '%s\n' "$line" | sed 's/^ *Compiling \([^ ]*\).*/\1/') after $(($(date +%s) - began)) s" ;;
      *" Compiling "*)
        begin_build
        parts=$((parts + 1))
        [ $((parts % 20)) -ne 0 ] || say "setup: $parts libraries after $(($(date +%s) - began)) s" ;;
      *" Updating "* | *" Locking "* | *" Adding "* | *" Downloading "* | *" Downloaded "* | *" Blocking waiting "*)
        begin_build ;;
      *" Finished "*) ;;
      *) say "$line" ;;
    esac
  done
}

# Once.
began=
begin_build() {
  [ -z "$began" ] || return 0
  began=$(date +%s)
  say "setup: building the data path from Rust (weftd, weft-holder and some 150 libraries, $WEFT_PROFILE): 2 to 5 minutes the first time"
}
