"""The units of deploy/systemd: systemd knows every directive, they are hardened, and their settings
exist.

Usage: PKV_BINARY_DIR=.build/release systemd_test.py    needs systemd-analyze, no running systemd
"""

import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml

from policy import seconds

SOURCE = Path(__file__).resolve().parents[2]
UNITS = SOURCE / "deploy/systemd"
BUILD = Path(os.environ.get("PKV_BINARY_DIR", ".build/release")).resolve()
BINARIES = {"pkvd": BUILD / "kvstore/pkvd", "pkv-prefill": BUILD / "worker/pkv-prefill",
            "pkv-decode": BUILD / "worker/pkv-decode"}
NAMES = sorted(BINARIES)
# systemd's exposure is 0 to 10, here in tenths; what it calls OK ends at 4.
MAX_EXPOSURE = 20


def unit_text(name):
    return (UNITS / f"{name}.service").read_text()


def analyze(name, text, *words):
    """Runs systemd-analyze on a unit whose binary is that of the build folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.service")
        path.write_text(text.replace(f"/usr/bin/{name}", str(BINARIES[name])))
        return subprocess.run(["systemd-analyze", *words, str(path)], capture_output=True,
                              text=True, check=False)


def settings(name):
    """{option: value} of the file that is shipped for /etc/pkv."""
    return yaml.load((UNITS / settings_file(name)).read_text(), yaml.BaseLoader)


def settings_file(name):
    return f"{name.removeprefix('pkv-')}.yaml"


def directive(text, name):
    return re.findall(rf"(?m)^{name}=(.*)$", text)


class UnitsTest(unittest.TestCase):
    def each(self):
        return [(name, unit_text(name)) for name in NAMES]

    def test_there_is_one_for_each_process(self):
        self.assertEqual(sorted(path.stem for path in UNITS.glob("*.service")), NAMES)

    def test_systemd_has_no_remark(self):
        for name, text in self.each():
            done = analyze(name, text, "verify")
            self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_systemd_remarks_on_a_misspelled_directive_and_a_missing_binary(self):
        for right, wrong in (("NoNewPrivileges=", "NoNewPrivilege="), ("/usr/bin/", "/nowhere/")):
            done = analyze("pkvd", unit_text("pkvd").replace(right, wrong), "verify")
            self.assertNotEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_the_gpu_drop_in_fits_the_workers(self):
        drop_in = (UNITS / "gpu.conf").read_text()
        for name in ("pkv-prefill", "pkv-decode"):
            done = analyze(name, unit_text(name) + drop_in, "verify")
            self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_exposure_is_low(self):
        words = ("security", "--offline=true", f"--threshold={MAX_EXPOSURE}")
        for name, text in self.each():
            done = analyze(name, text, *words)
            self.assertEqual(done.returncode, 0, done.stdout)

    def test_exposure_without_the_hardening_is_not(self):
        bare = unit_text("pkvd").split("DynamicUser=")[0]
        done = analyze("pkvd", bare, "security", "--offline=true", f"--threshold={MAX_EXPOSURE}")
        self.assertNotEqual(done.returncode, 0)

    def test_the_settings_are_a_configuration(self):
        for name, text in self.each():
            command = directive(text, "ExecStart")[0].split()
            model = ["--model", "m"] if name != "pkvd" else []
            subprocess.run([BINARIES[name], *command[1:], *model, "--check-config", "--config",
                            UNITS / settings_file(name)], check=True, capture_output=True)
            self.assertEqual(directive(text, "Environment"),
                             [f"PKV_CONFIG=-/etc/pkv/{settings_file(name)}"])

    def test_a_reload_checks_before_it_signals(self):
        for _, text in self.each():
            start = directive(text, "ExecStart")[0]
            self.assertEqual(directive(text, "ExecReload"),
                             [f"{start} --check-config", "/bin/kill -HUP $MAINPID"])

    def test_there_is_time_to_drain(self):
        for name, text in self.each():
            drain = seconds(settings(name)["drain-timeout"])
            self.assertGreaterEqual(float(directive(text, "TimeoutStopSec")[0]), drain + 10)
            self.assertEqual(directive(text, "KillSignal"), ["SIGTERM"])

    def test_nothing_listens_beyond_loopback_unasked(self):
        for name in NAMES:
            self.assertNotIn("i-understand-insecure", settings(name))
            for option in ("listen", "metrics-listen"):
                self.assertTrue(settings(name)[option].startswith("127.0.0.1:"))


if __name__ == "__main__":
    unittest.main()
