#!/usr/bin/env bash
# pkg_config_test.sh PKGCONFIG_DIR WORK_DIR COMPILER [FLAG]...
#
# Builds and runs the consumers with what the .pc files say and nothing else.
set -euo pipefail
export PKG_CONFIG_PATH=$1
work=$2
shift 2
sources=$(dirname "${BASH_SOURCE[0]}")/consumer
mkdir -p "$work"
for name in client kernels; do
  read -ra flags < <(pkg-config --cflags --libs "pkv-$name")
  "$@" -std=c++20 "$sources/${name}_consumer.cc" -o "$work/${name}_consumer" "${flags[@]}"
  "$work/${name}_consumer"
done
