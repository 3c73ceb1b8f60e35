# Programs that note how they are called, in the place of those that would download gigabytes. Loaded by the tests.
# $CALLS: a line for each call. STUB_FAILS: words of a call that is to fail.

stubs() {
  export CALLS="$BATS_TEST_TMPDIR/calls" STUBS="$BATS_TEST_TMPDIR/bin"
  mkdir -p "$STUBS"
  : >"$CALLS"
  cat >"$STUBS/python3" <<'PYTHON'
#!/usr/bin/env bash
echo "python $*" >>"$CALLS"
[[ -n "${STUB_FAILS:-}" && "$*" == *"$STUB_FAILS"* ]] && exit 1
case "$*" in
  --version) echo "Python ${STUB_VERSION:-3.12.1}" ;;
  *sys.version_info*) [[ "${STUB_VERSION:-3.12.1}" != 3.10.* ]] ;;
  *sysconfig*) echo "$STUBS/include" ;;
  "-m venv "*)
    place=${*: -1}
    [[ "$*" == *--clear* ]] && rm -rf "$place"
    mkdir -p "$place/bin"
    touch "$place/pyvenv.cfg"
    cp "$0" "$place/bin/python"
    printf '#!/bin/sh\necho vggt-int8 0.0\n' >"$place/bin/vggt-int8"
    chmod +x "$place/bin/vggt-int8"
    ;;
esac
PYTHON
  for name in apt-get gcc runpodctl; do
    cat >"$STUBS/$name" <<'NOTE'
#!/usr/bin/env bash
{
  printf '%s' "${0##*/}"
  printf ' <%s>' "$@"
  echo
} >>"$CALLS"
NOTE
  done
  mkdir -p "$STUBS/include"
  touch "$STUBS/include/Python.h"
  chmod +x "$STUBS"/*
  export PATH="$STUBS:$PATH"
  unset PYTHON EXTRAS TORCH_INDEX VENV WORKSPACE
}

calls_of() { # how many calls have these words
  grep -c -- "$1" "$CALLS" || true
}
