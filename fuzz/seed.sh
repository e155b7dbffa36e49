#!/bin/bash
# Puts the golden files, kept journal entries and VMs, and what NBD clients send, into the corpus of the target that they belong to.
set -euo pipefail
cd "$(dirname "$0")"
for file in ../tests/golden/*.bin; do
  name=$(basename "$file" .bin)
  case $name in
    segment-*) target=segment ;;
    frame-*) target=frame ;;
    owner-*) target=owner ;;
    *) target=${name//-/_} ;;
  esac
  mkdir -p "corpus/$target"
  cp "$file" "corpus/$target/"
done
# Entries of tasks' journals, each a file.
mkdir -p corpus/journal_entry
split -l 1 -d -a 3 ../src/failover/tests/entries-v1.jsonl corpus/journal_entry/entry-
# A VM as the QEMU driver keeps it.
mkdir -p corpus/qemu_vm
cp ../src/hypervisor/qemu/golden_v1.json corpus/qemu_vm/
# What NBD clients send: the data of options, and the header of a request.
mkdir -p corpus/nbd
printf 'disk' >corpus/nbd/export-name
printf '\0\0\0\4disk\0\2\0\1\0\3' >corpus/nbd/info
printf '\0\0\0\4disk\0\0\0\1\0\0\0\17base:allocation' >corpus/nbd/meta-context
for command in 0 1 2 3 4 5 6 7; do
  printf '\x25\x60\x95\x13\0\1\0\'$command'\0\0\0\0\0\0\0\7\0\0\0\0\0\0\20\0\0\0\2\0' >"corpus/nbd/request-$command"
done
