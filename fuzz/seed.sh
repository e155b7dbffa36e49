#!/bin/bash
# Puts the golden files into the corpus of the target that they belong to.
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
