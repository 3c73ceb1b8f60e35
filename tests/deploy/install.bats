#!/usr/bin/env bats
# deploy/install.sh: what it installs, and that started again it does what is left to do.

bats_require_minimum_version 1.5.0

setup() {
  load stub
  stubs
  root="$BATS_TEST_TMPDIR/checkout"
  mkdir -p "$root/deploy" "$root/vggt_int8" "$root/recipes"
  cp "$BATS_TEST_DIRNAME/../../deploy/install.sh" "$root/deploy/"
  touch "$root/pyproject.toml" "$root/constraints.txt" "$root/vggt_int8/a.py" "$root/recipes/b.toml"
  export VENV="$BATS_TEST_TMPDIR/a place/venv"
}

install() { run --separate-stderr "$root/deploy/install.sh"; }

@test "a first start makes an environment and installs the pinned versions, PyTorch first" {
  install
  [ "$status" -eq 0 ]
  [ "$output" = "vggt-int8 0.0" ]
  grep -n "pip .*install" "$CALLS" >"$BATS_TEST_TMPDIR/pips"
  [ "$(wc -l <"$BATS_TEST_TMPDIR/pips")" -eq 2 ]
  [[ "$(sed -n 1p "$BATS_TEST_TMPDIR/pips")" == *"-c $root/constraints.txt torch" ]]
  [[ "$(sed -n 2p "$BATS_TEST_TMPDIR/pips")" == *"-c $root/constraints.txt vggt-int8[eval,heif,video] @ file://$root" ]]
  [ "$(calls_of index-url)" -eq 0 ]
}

@test "a second start does nothing" {
  install
  : >"$CALLS"
  install
  [ "$status" -eq 0 ]
  [ "$output" = "$VENV is up to date" ]
  [ "$(calls_of install)" -eq 0 ]
}

@test "what has changed is installed: code, pins, extras, index, interpreter" {
  install
  for change in "echo 1 >>$root/vggt_int8/a.py" "echo torch==1 >>$root/constraints.txt" "export EXTRAS=" \
    "export TORCH_INDEX=https://index.example/cpu" "export STUB_VERSION=3.13.0"; do
    : >"$CALLS"
    eval "$change"
    install
    [ "$status" -eq 0 ]
    [ "$(calls_of 'pip .*install')" -eq 2 ]
    install
    [ "$output" = "$VENV is up to date" ]
  done
  touch "$root/vggt_int8/a.pyc"
  install
  [ "$output" = "$VENV is up to date" ]
}

@test "another index is for PyTorch alone, and no extras are no brackets" {
  export TORCH_INDEX=https://index.example/cpu EXTRAS=
  install
  [ "$(calls_of 'index-url https://index.example/cpu torch$')" -eq 1 ]
  [ "$(calls_of index-url)" -eq 1 ]
  [ "$(calls_of "vggt-int8 @ file://$root")" -eq 1 ]
}

@test "an installation that fails is no installation, and the next start goes on" {
  export STUB_FAILS="vggt-int8[eval"
  install
  [ "$status" -ne 0 ]
  [ ! -e "$VENV/installed" ]
  unset STUB_FAILS
  install
  [ "$status" -eq 0 ]
  [ "$(cat "$VENV/installed" | wc -c)" -eq 65 ]
}

@test "an environment without pip, or whose interpreter is gone, is made anew" {
  install
  for damage in "export STUB_FAILS='pip --version'" "ln -sf /nowhere/python '$VENV/bin/python'"; do
    rm "$VENV/installed"
    : >"$CALLS"
    eval "$damage"
    install
    [ "$status" -eq 0 ]
    [ "$(calls_of 'venv --clear')" -eq 1 ]
    unset STUB_FAILS
  done
}

@test "a folder of somebody else is left alone" {
  mkdir -p "$VENV"
  touch "$VENV/mine"
  install
  [ "$status" -eq 2 ]
  [[ "$stderr" == *"is no virtual environment"* ]]
  [ "$(ls "$VENV")" = mine ]
}

@test "an old interpreter is refused by name" {
  export STUB_VERSION=3.10.9 PYTHON="$STUBS/python3"
  install
  [ "$status" -eq 2 ]
  [[ "$stderr" == *"$STUBS/python3 is older than Python 3.11"* ]]
  [ ! -e "$VENV" ]
}
