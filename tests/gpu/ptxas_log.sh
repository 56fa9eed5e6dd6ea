#!/usr/bin/env bash
# ptxas_log.sh NVCC ARGUMENT... -o OBJECT ...: compiles, and keeps what ptxas says of registers and
# spills in OBJECT.ptxas, for ptxas_gate.py.
set -uo pipefail

object=
for ((i = 1; i < $#; ++i)); do
  if [[ ${!i} == -o ]]; then
    next=$((i + 1))
    object=${!next}
  fi
done
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$@" -Xptxas -v 2>"$log"
code=$?
# The first pattern is all that `-v` adds to what ptxas prints anyway.
said='^ptxas info|^ +[0-9]+ bytes stack frame'
grep -Ev "$said" "$log" >&2
if [[ $code -eq 0 && -n $object ]]; then
  grep -E "$said" "$log" >"$object.ptxas" || true
fi
exit "$code"
