"""The configuration of the real binaries: what comes before what, printing, checking, loading again
at SIGHUP, completion, and deploy/CONFIGURATION.md.

Usage: PKV_BINARY_DIR=.build/release configuration_test.py
"""

import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

import yaml

import configuration_page
import grpc_probe

BUILD = Path(os.environ.get("PKV_BINARY_DIR", ".build/release")).resolve()
PATIENCE_S = 60
MODEL = configuration_page.SOURCE / "deploy/models/novella-14m"
# Of each program, and whether it reads PKV_CONFIG.
COMMANDS = {name: [BUILD / command[0], *command[1:]]
            for name, command in configuration_page.PROGRAMS.items()}
SERVICES = [name for name in COMMANDS if name != "pkvctl"]


def run(name, *arguments, **environment):
    """The end of a program, whose environment is `environment` alone."""
    return subprocess.run([*COMMANDS[name], *arguments], capture_output=True, text=True,
                          check=False, env=environment, timeout=PATIENCE_S)


def model_of(name):
    return [] if name in ("pkvd", "pkvctl") else ["--model", "m"]


def origins(printed):
    """{option: origin}"""
    return dict(re.findall(r"(?m)^([a-z-]+): .*?  # (.+)$", printed))


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, text, name="pkv.yaml"):
        path = self.folder / name
        path.write_text(text)
        return str(path)


class ConfigurationTest(Folder):
    def test_flag_before_environment_before_file_before_default(self):
        path = self.write("cache: f:1\ntransport: shm\nlog-format: json\n")
        done = run("pkv-decode serve", "--model", "m", "--cache", "x:1", "--print-config",
                   PKV_CONFIG=path, PKV_CACHE="e:1", PKV_TRANSPORT="grpc")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        values, where = yaml.safe_load(done.stdout), origins(done.stdout)
        self.assertEqual((values["cache"], where["cache"]), ("x:1", "flag"))
        self.assertEqual((values["transport"], where["transport"]),
                         ("grpc", "environment PKV_TRANSPORT"))
        self.assertEqual((values["log-format"], where["log-format"]), ("json", f"file {path}:3"))
        self.assertEqual((values["listen"], where["listen"]), ("127.0.0.1:7442", "default"))
        self.assertEqual(set(values), set(where))

    def test_what_is_printed_is_a_file_that_prints_the_same(self):
        for name in COMMANDS:
            with self.subTest(program=name):
                first = run(name, *model_of(name), "--print-config")
                self.assertEqual((first.returncode, first.stderr), (0, ""))
                path = self.write(first.stdout)
                again = run(name, "--config", path, "--print-config")
                self.assertEqual((again.returncode, again.stderr), (0, ""))
                self.assertEqual(yaml.safe_load(again.stdout), yaml.safe_load(first.stdout))
                self.assertEqual({origin.rsplit(":", 1)[0]
                                  for origin in origins(again.stdout).values()}, {f"file {path}"})

    def test_every_problem_of_a_file_is_told_with_its_line(self):
        path = self.write("capasity: 4GiB\nlisten: [a]\ndrain-timeout: 30\n")
        for argument in ("--check-config", "--print-config", "--reflection"):
            done = run("pkvd", "--config", path, argument)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            lines = done.stderr.splitlines()
            self.assertEqual(len(lines), 3)
            self.assertEqual(lines[0], f"pkvd: {path}:1: unknown option 'capasity': did you mean "
                                       "'capacity'?")
            self.assertIn(f"{path}:2: 'listen' takes one value", lines[1])
            self.assertIn(f'{path}:3: drain-timeout: "30" has no unit: ns, us, ms', lines[2])

    def test_a_misspelt_variable_is_a_warning(self):
        done = run("pkvd", "--check-config", PKV_CAPASITY="1GiB", PKV_X_PORT="tcp://10.0.0.1:1")
        self.assertEqual(done.returncode, 0)
        self.assertIn("PKV_CAPASITY is not known", done.stderr)
        self.assertIn("'PKV_CAPACITY'?", done.stderr)
        self.assertNotIn("PKV_X_PORT", done.stderr)

    def test_options_are_checked_together_without_serving(self):
        wrong = {
            "pkvd": [["--listen", "0.0.0.0:0"], ["--shm-socket", "/" + "x" * 200],
                     ["--shm-socket", "/x", "--shm-max-pinned", "5GiB"],
                     ["--shm-socket", "/x", "--shm-silence", "2s", "--shm-pin-age", "1s"],
                     ["--listen", "nowhere"], ["--metrics-listen", "unix:/m"]],
            "pkv-prefill serve": [[], ["--model", "m", "--shape", "s"],
                                  ["--model", "m", "--listen", "0.0.0.0:0"]],
            "pkv-decode serve": [["--shape", "llama-3.2-1b"],
                                 ["--model", "m", "--metrics-listen", "x"]],
        }
        for name, cases in wrong.items():
            for arguments in cases:
                with self.subTest(program=name, arguments=arguments):
                    done = run(name, "--check-config", *arguments)
                    self.assertEqual(done.returncode, 2)
                    self.assertNotEqual(done.stderr, "")
            self.assertEqual(run(name, "--check-config", *model_of(name)).returncode, 0)

    def test_the_tool_has_a_file_of_its_own(self):
        path = self.write("cache: f:1\noutput: json\n")
        done = run("pkvctl", "--print-config", PKV_CTL_CONFIG=path, PKV_CONFIG="/nonexistent")
        self.assertEqual(yaml.safe_load(done.stdout)["cache"], "f:1")
        done = run("pkvctl", "generate", "--prompt", "a", "--prefill", "unix:/nonexistent",
                   "--deadline", "5")
        self.assertEqual(done.returncode, 2)
        self.assertIn("has no unit", done.stderr)
        self.assertEqual(run("pkvctl").returncode, 2)

    def test_the_reference_is_up_to_date(self):
        self.assertEqual(configuration_page.PAGE.read_text(), configuration_page.render(BUILD),
                         "run tests/deploy/configuration_page.py --binaries BUILD")


class CompletionTest(Folder):
    def test_bash_loads_each_and_completes(self):
        begun = {"pkvd": ("--log-l", "--log-level"), "pkv-prefill": ("s", "serve"),
                 "pkv-decode": ("serve --max-b", "--max-batch"), "pkvctl": ("gen", "generate")}
        for name, (words, expected) in begun.items():
            binary = next(command[0] for command in COMMANDS.values() if command[0].name == name)
            script = self.write(subprocess.run([binary, "--completion", "bash"], check=True,
                                               capture_output=True, text=True).stdout)
            done = subprocess.run(
                ["bash", "--norc", "-euc", f"""source {script}; complete -p {name}
                    COMP_WORDS=({name} {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
                    _{name.replace("-", "_")}; echo "${{COMPREPLY[@]}}" """],
                capture_output=True, text=True, check=True)
            self.assertRegex(done.stdout, rf"^complete .* {name}\n{expected}\n$")

    def test_install_has_all(self):
        subprocess.run(["cmake", "--install", BUILD, "--component", "completions", "--prefix",
                        self.folder], check=True, capture_output=True)
        for binary in {command[0] for command in COMMANDS.values()}:
            name = binary.name
            for shell, path in (("bash", f"bash-completion/completions/{name}"),
                                ("zsh", f"zsh/site-functions/_{name}"),
                                ("fish", f"fish/vendor_completions.d/{name}.fish")):
                printed = subprocess.run([binary, "--completion", shell], check=True,
                                         capture_output=True).stdout
                installed = (self.folder / "share" / path).read_bytes()
                self.assertTrue(printed and installed == printed, path)


class Service:
    """A service on free ports, its settings in a file."""

    def __init__(self, name, path, *arguments):
        self.settings = Path(path)
        self.port_file = Path(path).with_suffix(".port")
        self.port_file.unlink(missing_ok=True)
        self.log_file = Path(path).with_suffix(".log")
        with self.log_file.open("wb") as log:
            self.child = subprocess.Popen(
                [*COMMANDS[name], "--config", path, "--listen", "127.0.0.1:0", "--metrics-listen",
                 "127.0.0.1:0", "--port-file", str(self.port_file), *arguments],
                stdout=log, stderr=log, env={})
        self.wait_for(self.port_file.exists)
        self.port, self.metrics_port = (int(word) for word in self.port_file.read_text().split())

    def wait_for(self, is_so):
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            if self.child.poll() is not None or time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                raise AssertionError(f"did not happen: {self.log()}")
            time.sleep(0.02)

    def log(self):
        return self.log_file.read_text()

    def metric(self, name, label=None):
        """Of the one series with that label; a worker's have its role besides."""
        address = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as page:
            series = re.findall(rf"(?m)^{name}(?:{{(.*)}})? (\S+)$", page.read().decode())
        [value] = [value for labels, value in series if label is None or label in labels.split(",")]
        return float(value)

    def reload(self, result):
        """Sends SIGHUP and waits until it is counted; returns what was logged."""
        series = ("pkv_config_reloads_total", f'result="{result}"')
        before, logged = self.metric(*series), len(self.log())
        self.child.send_signal(signal.SIGHUP)
        self.wait_for(lambda: self.metric(*series) == before + 1)
        return self.log()[logged:]

    def end(self, number=signal.SIGTERM):
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.child.wait(timeout=PATIENCE_S)


class ReloadTest(Folder):
    def start(self, name, text, *arguments):
        service = Service(name, self.write(text, f"{name.split()[0]}.yaml"), *arguments)
        self.addCleanup(service.end, signal.SIGKILL)
        return service

    def test_each_service_takes_what_it_can_and_tells_the_rest(self):
        changes = {
            "pkvd": ("capacity: 64MiB\n", "capacity: 1GiB\n", "option=capacity kept=64MiB"),
            "pkv-prefill serve": ("max-running: 2\n", "max-running: 3\nmax-waiting: 5\n",
                                  "option=max-running kept=2"),
            "pkv-decode serve": ("max-batch: 2\n", "max-batch: 3\nmax-waiting: 5\n",
                                 "option=max-batch kept=2"),
        }
        services = []
        for name, (before, after, kept) in changes.items():
            arguments = [] if name == "pkvd" else ["--model", str(MODEL), "--cache", "127.0.0.1:1"]
            with self.subTest(service=name):
                service = self.start(name, before, *arguments)
                self.assertEqual(service.metric("pkv_config_last_reload_successful"), 1)
                first_hash = service.metric("pkv_config_hash")
                self.assertGreater(first_hash, 0)
                service.settings.write_text(before + "drain-timeout: 7s\n")
                logged = service.reload("success")
                self.assertNotEqual(service.metric("pkv_config_hash"), first_hash)
                self.assertIn("setting changed option=drain-timeout", logged)
                self.assertIn("to=7s", logged)
                service.settings.write_text(after)
                logged = service.reload("partial")
                self.assertIn("needs a restart, kept", logged)
                self.assertIn(kept, logged)
                if "max-waiting" in after:
                    self.assertIn("option=max-waiting from=64 to=5", logged)
                service.settings.write_text("drain-timeout: 7\nlog-level: loud\n")
                logged = service.reload("failure")
                self.assertIn("has no unit", logged)
                self.assertIn("none of debug", logged)
                self.assertEqual(service.metric("pkv_config_last_reload_successful"), 0)
                service.settings.write_text(before)
                service.reload("success")
                self.assertEqual(service.metric("pkv_config_last_reload_successful"), 1)
                self.assertEqual(service.metric("pkv_config_hash"), first_hash)
                services.append(service)
        # All at once, for each takes its time to end.
        for service in services:
            service.child.send_signal(signal.SIGTERM)
        for service in services:
            self.assertEqual(service.child.wait(timeout=PATIENCE_S), 0)
            self.assertIn("stopped", service.log())

    def test_the_log_level_changes(self):
        service = self.start("pkvd", "log-level: error\n")
        self.assertEqual(service.log(), "")
        service.settings.write_text("log-level: info\n")
        service.reload("success")
        service.settings.write_text("log-level: info\ndrain-timeout: 1s\n")
        self.assertIn("setting changed", service.reload("success"))

    def test_sighup_while_draining_is_not_a_second_signal(self):
        service = self.start("pkvd", "capacity: 64MiB\ndrain-timeout: 30s\n")
        with grpc_probe.watch(service.port):
            service.child.send_signal(signal.SIGTERM)
            service.wait_for(lambda: "draining" in service.log())
            service.child.send_signal(signal.SIGHUP)
        self.assertEqual(service.child.wait(timeout=PATIENCE_S), 0)


if __name__ == "__main__":
    unittest.main()
