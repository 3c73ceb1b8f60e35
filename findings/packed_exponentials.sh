#!/bin/bash
# ptxas 12.8, as triton 3.6.0 brings it: the packed exponentials of PTX, `ex2.approx.f16x2` and `ex2.approx.ftz.bf16x2`,
# become two instructions of the special-function unit and a few moves, for Ampere, Ada, Hopper and Blackwell alike.
#
# One PTX instruction for two numbers reads as if attention's softmax, which these units bound at small head dims, could
# have its exponentials in 16 bits at twice the rate, as additions and products of pairs have. Nothing is gained: the
# same number of MUFU.EX2, and moves that take halves apart and put them together. Who writes attention kernels meets
# it (in ours the loop grew from 221 to 267 instructions); the way out is fewer instructions elsewhere.
#
# Output seen (the sum of two pairs is there for comparison):
#   sm_80 f16x2: 2 MUFU; a sum of pairs: 1 HADD2
#   sm_89 f16x2: 2 MUFU; a sum of pairs: 1 HADD2
#   sm_90a f16x2: 2 MUFU bf16x2: 2 MUFU; a sum of pairs: 1 HADD2
#   sm_100a f16x2: 2 MUFU bf16x2: 2 MUFU; a sum of pairs: 1 HADD2
# Exits with 1 where a packed exponential becomes another number of instructions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps triton==3.6.0
cd "$folder"
tools=$(dirname "$(find venv -path '*nvidia/bin/ptxas')")
assemble() { # architecture, instruction -> its machine code in words
  cat > kernel.ptx <<PTX
.version 8.7
.target $1
.address_size 64
.visible .entry kernel(.param .u64 at) {
  .reg .b32 %r<3>;
  .reg .b64 %rd<3>;
  ld.param.u64 %rd1, [at];
  cvta.to.global.u64 %rd2, %rd1;
  ld.global.b32 %r1, [%rd2];
  $2;
  st.global.b32 [%rd2], %r2;
  ret;
}
PTX
  "$tools/ptxas" -arch="$1" kernel.ptx -o kernel.cubin
  "$tools/nvdisasm" -c kernel.cubin
}
for arch in sm_80 sm_89 sm_90a sm_100a; do
  kinds="f16x2"
  case $arch in sm_90a | sm_100a) kinds="f16x2 ftz.bf16x2" ;; esac
  line=$arch
  for kind in $kinds; do
    count=$(assemble $arch "ex2.approx.$kind %r2, %r1" | grep -c 'MUFU\.EX2')
    line="$line ${kind#ftz.}: $count MUFU"
    test "$count" -eq 2 || { echo "$line"; exit 1; }
  done
  sums=$(assemble $arch "add.f16x2 %r2, %r1, %r1" | grep -c 'HADD2\|HFMA2')
  echo "$line; a sum of pairs: $sums HADD2"
  test "$sums" -eq 1 || exit 1
done
