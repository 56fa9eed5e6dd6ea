"""deploy/CONFIGURATION.md, made from the option tables of the binaries.

Usage: configuration_page.py --binaries .build/release    writes it anew; configuration_test.py
compares.
"""

import argparse
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
PAGE = SOURCE / "deploy/CONFIGURATION.md"

# Each with what stands before the options of a service.
PROGRAMS = {
    "pkvd": ["kvstore/pkvd"],
    "pkv-prefill serve": ["worker/pkv-prefill", "serve"],
    "pkv-decode serve": ["worker/pkv-decode", "serve"],
    "pkvctl": ["worker/pkvctl"],
}

HEAD = """# Configuration

Every option, made from the tables in the binaries by `tests/deploy/configuration_page.py` and
compared by the test there: do not edit.

An option is a flag (`--drain-timeout 30s`), an environment variable (`PKV_DRAIN_TIMEOUT=30s`) and
a key of a YAML file (`drain-timeout: 30s`). **Flag before environment before file before
default.** An empty variable counts as none; a file can say `""`.

- `--config PATH` or `PKV_CONFIG` names the file; as `-PATH` it may be missing:
  `PKV_CONFIG=-/etc/pkv/pkvd.yaml`. `pkvctl` takes `PKV_CTL_CONFIG`: in a pod the other one is the
  service's.
- `--print-config` prints what a process would run with and where each value comes from, as a file
  that can be used as one.
- `--check-config` checks and ends: with 0, or with 2 and every problem on stderr, among them what
  only options together show.
- `--completion bash`, `zsh` or `fish` prints what completes the command line; `cmake --install`
  with `--component completions` puts it in place.

A file is one flat mapping. An unknown key, a key twice, a missing or malformed value are errors,
all told at once with their lines. A variable that begins with `PKV_` and that nobody reads is a
warning, unless Kubernetes sets it for a Service (`PKV_X_PORT`, `PKV_X_SERVICE_HOST`, ...).

Sizes are whole numbers with KiB, MiB, GiB, TiB (powers of 1024; Ki, Mi, Gi, Ti are the same) or
kB, MB, GB, TB (powers of 1000), or bytes. Durations are numbers with ns, us, ms, s, m, h:
`250ms`, `1h30m`; a number alone is an error. A switch is `--reflection` or `--no-reflection`, and
true or false elsewhere.

SIGHUP makes a service read the file again; flags and environment stay as they were. Options
marked SIGHUP change at once, each with a line in the log; others that differ are told and keep
their value until a restart. A file with an error changes nothing: the log says why, and
`pkv_config_last_reload_successful` is 0. Kubernetes sends no signal when a ConfigMap changes:
restart the pods, or signal them. While a service drains, SIGHUP does nothing.
"""


def section(name, command, binaries):
    shown = subprocess.run([binaries / command[0], *command[1:], "--describe-config"],
                           capture_output=True, text=True, check=True).stdout
    return (f"\n## {name}\n\n| option | variable | value | default | changed by | what it is |\n"
            f"|---|---|---|---|---|---|\n{shown}")


def render(binaries):
    sections = [section(name, command, binaries) for name, command in PROGRAMS.items()]
    return HEAD + "".join(sections)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", type=Path, required=True, help="the build folder")
    PAGE.write_text(render(parser.parse_args().binaries.resolve()), encoding="utf-8")


if __name__ == "__main__":
    main()
