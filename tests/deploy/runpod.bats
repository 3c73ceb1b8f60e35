#!/usr/bin/env bats
# deploy/runpod: a pod is set up, again and again, and its template made.

bats_require_minimum_version 1.5.0

setup() {
  load stub
  stubs
  root="$BATS_TEST_TMPDIR/checkout"
  mkdir -p "$root/deploy/runpod" "$root/vggt_int8" "$root/recipes"
  cp "$BATS_TEST_DIRNAME"/../../deploy/runpod/*.sh "$root/deploy/runpod/"
  cp "$BATS_TEST_DIRNAME/../../deploy/install.sh" "$root/deploy/"
  touch "$root/pyproject.toml" "$root/constraints.txt"
  export WORKSPACE="$BATS_TEST_TMPDIR/work space"
  mkdir "$WORKSPACE"
}

set_up() { run --separate-stderr "$root/deploy/runpod/setup.sh"; }

@test "everything that is to survive a stop lies on the volume" {
  set_up
  [ "$status" -eq 0 ]
  # shellcheck disable=SC1091 # setup.sh has made it
  source "$WORKSPACE/vggt-int8.env"
  for place in "$HF_HOME" "$XDG_CACHE_HOME" "$TRITON_CACHE_DIR" "$(dirname "$(command -v vggt-int8)")"; do
    [[ "$place" == "$WORKSPACE/"* ]]
  done
  [ "$(vggt-int8 --version)" = "vggt-int8 0.0" ]
  [ "$(calls_of apt-get)" -eq 0 ]
}

@test "a second start does nothing, and leaves no files behind" {
  set_up
  before=$(find "$WORKSPACE" | sort)
  : >"$CALLS"
  set_up
  [ "$status" -eq 0 ]
  [[ "$output" == *"is up to date"* ]]
  [ "$(calls_of 'pip .*install')" -eq 0 ]
  [ "$(find "$WORKSPACE" | sort)" = "$before" ]
}

@test "a restarted pod gets its compiler and Python's headers again" {
  rm "$STUBS/include/Python.h"
  set_up
  [ "$status" -eq 0 ]
  [ "$(calls_of 'apt-get <update>')" -eq 1 ]
  [ "$(calls_of 'apt-get <install>.*<gcc> <libc6-dev> <python3-dev>')" -eq 1 ]
}

@test "a failed installation leaves the file of the environment as it was" {
  set_up
  echo "export MINE=1" >"$WORKSPACE/vggt-int8.env"
  echo 1 >>"$root/pyproject.toml"
  export STUB_FAILS="pip --disable"
  set_up
  [ "$status" -ne 0 ]
  [ "$(cat "$WORKSPACE/vggt-int8.env")" = "export MINE=1" ]
}

@test "a missing volume is said" {
  export WORKSPACE="$BATS_TEST_TMPDIR/missing"
  set_up
  [ "$status" -eq 2 ]
  [[ "$stderr" == *"attach a volume there"* ]]
  [ ! -e "$WORKSPACE" ]
}

@test "a template names what runpodctl knows" {
  run --separate-stderr "$root/deploy/runpod/template.sh" pytorch:1 mine
  [ "$status" -eq 0 ]
  call=$(grep '^runpodctl' "$CALLS")
  [[ "$call" == "runpodctl <template> <create> <--name> <mine> <--image> <pytorch:1> "* ]]
  [[ "$call" == *"<--volume-mount-path> </workspace>"* ]]
  [[ "$call" == *'<--env> <{"HF_HOME": "/workspace/huggingface", "XDG_CACHE_HOME": "/workspace/cache", '* ]]
  # Of `runpodctl template create --help`, version 2, June 2026.
  known="--container-disk-in-gb --docker-entrypoint --docker-start-cmd --env --image --name --ports --readme
    --registry-auth-id --serverless --volume-in-gb --volume-mount-path"
  grep -o -- '<--[a-z-]*>' <<<"$call" | while read -r option; do
    tr -s " " "\n" <<<"$known" | grep -qx -- "$(tr -d '<>' <<<"$option")"
  done
}

@test "a template wants an image, and runpodctl" {
  run --separate-stderr "$root/deploy/runpod/template.sh"
  [ "$status" -eq 2 ]
  [[ "$stderr" == *"usage: "* ]]
  rm "$STUBS/runpodctl"
  run --separate-stderr "$root/deploy/runpod/template.sh" pytorch:1
  [ "$status" -eq 2 ]
  [[ "$stderr" == *"runpodctl is not there"* ]]
}
