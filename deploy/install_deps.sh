#!/usr/bin/env bash
# Installs the Debian 12 packages that patternkv needs.
#
#   deploy/install_deps.sh [build|test]...     default: build
#
# build  what compiles and runs the project (deploy/demo.sh)
# test   what tests/run.sh needs on top: the Clang 14 tools, their runtimes, GoogleTest, and what
#        checks deploy/: kustomize, systemd-analyze. Images are tested where buildah is
#
# Needs apt-get, and root or sudo; needs neither when every package is there already.
# CUDA is optional and never installed from here.
set -euo pipefail

build_packages=(
  build-essential g++ cmake ninja-build ccache pkg-config git ca-certificates
  libgrpc-dev libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev
  libabsl-dev libssl-dev zlib1g-dev libisal-dev libhwy-dev
  # Brings civetweb and curl, which its CMake package looks for.
  prometheus-cpp-dev
  libcli11-dev libyaml-cpp-dev nlohmann-json3-dev libspdlog-dev
  # oneDNN's CMake package requires OpenCL even when only its CPU engine is used.
  libdnnl-dev ocl-icd-opencl-dev
  curl
)
test_packages=(
  libgtest-dev libgmock-dev
  clang-14 libclang-rt-14-dev lld-14 clang-format-14 clang-tidy-14
  python3 python3-yaml python3-jsonschema
  # Boards and alerts are tested on real processes. Where packages start services, this one starts a
  # Prometheus on port 9090 too; the tests start their own.
  prometheus
  # systemd-analyze, for the units.
  systemd
  # Pods in network namespaces, and their network policies.
  iproute2 nftables
)

die() {
  printf 'install_deps: %s\n' "$*" >&2
  exit 1
}

wanted=()
wants_kustomize=false
for group in "${@:-build}"; do
  case "$group" in
    build) wanted+=("${build_packages[@]}") ;;
    test) wanted+=("${test_packages[@]}") wants_kustomize=true ;;
    -h | --help)
      sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) die "unknown group '$group': the groups are build and test" ;;
  esac
done

is_installed() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# deploy/k8s needs kustomize 5. kubectl carries one and names its version; Debian 12's own kubectl
# has 2.0, which knows no components, and there is no kustomize in Debian 12.
has_kustomize() {
  command -v kustomize >/dev/null ||
    kubectl version --client 2>/dev/null | grep -q '^Kustomize Version: v[5-9]'
}
if "$wants_kustomize" && has_kustomize; then wants_kustomize=false; fi

missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${wanted[@]}"; do
    is_installed "$package" || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ] && ! "$wants_kustomize"; then
    echo "install_deps: all ${#wanted[@]} packages are installed"
    exit 0
  fi
else
  missing=("${wanted[@]}")
fi

command -v apt-get >/dev/null ||
  die "apt-get not found: this script knows Debian 12 only. It would install: ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null ||
    die "needs root: run it as root or install sudo. Missing: ${missing[*]}"
  as_root=(sudo)
fi

# env because sudo drops the caller's environment; waits for another apt instead of failing.
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null
}

log=$(mktemp)
scratch=$(mktemp -d)
trap 'rm -rf "$log" "$scratch"' EXIT
run_quietly() {
  local what=$1
  shift
  echo "install_deps: $what"
  if ! "$@" >"$log" 2>&1; then
    tail -n 25 "$log" >&2
    die "$what failed: the end of its log is above"
  fi
}

# Debian 13's package: it needs no library but the C library, and not a later one than Debian 12 has
# (2.34 of 2.36). Its lists are read beside those of the machine, whose sources stay as they are.
fetch_kustomize() {
  local archive
  archive=$(apt-get indextargets --format '$(REPO_URI)' \
    'Codename: bookworm' 'Created-By: Packages' | head -n 1)
  if [ -z "$archive" ]; then
    echo "no source of Debian 12 (bookworm) is configured"
    return 1
  fi
  echo "deb $archive trixie main" >"$scratch/sources.list"
  mkdir -p "$scratch"/{lists,cache/archives}/partial
  chmod -R a+rX "$scratch"
  local places=(-o "Dir::Etc::SourceList=$scratch/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$scratch/lists" -o "Dir::Cache=$scratch/cache")
  # As root, because apt's own user may not write where root made a folder.
  apt "${places[@]}" -o APT::Sandbox::User=root update
  (cd "$scratch" && apt "${places[@]}" -o APT::Sandbox::User=root download kustomize)
}

if [ ${#missing[@]} -gt 0 ]; then
  run_quietly "updating the package lists" apt update
  run_quietly "installing ${#missing[@]} packages: ${missing[*]}" \
    apt install --no-install-recommends "${missing[@]}"
  for package in "${missing[@]}"; do
    is_installed "$package" || die "apt-get succeeded but '$package' is not installed"
  done
fi
if "$wants_kustomize"; then
  run_quietly "fetching kustomize of Debian 13" fetch_kustomize
  run_quietly "installing it" apt install --no-install-recommends "$scratch"/kustomize_*.deb
  has_kustomize || die "apt-get succeeded but there is no kustomize"
fi
echo "install_deps: done"
