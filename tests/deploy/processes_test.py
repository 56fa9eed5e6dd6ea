"""The real binaries under the settings of the rendered overlay "dev": they know every variable,
start, answer every probe, have every series that the autoscaler asks for, drain and end.

Usage: PKV_BINARY_DIR=.build/release processes_test.py
"""

import json
import math
import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

from grpc_probe import SERVING, health
from manifests import K8S, render
from policy import containers, of_kind, pod, quantity, workloads

BUILD = Path(os.environ.get("PKV_BINARY_DIR", ".build/release")).resolve()
BINARIES = {
    "pkvd": BUILD / "kvstore/pkvd",
    "pkv-prefill": BUILD / "worker/pkv-prefill",
    "pkv-decode": BUILD / "worker/pkv-decode",
}
MODELS = K8S.parent / "models"
START_S = 120  # a loaded machine; the demo model takes well under a second


def known_variables(command):
    """Those that the binary's own --help names: one that it does not know it would not miss."""
    arguments = [BINARIES[Path(command[0]).name], *command[1:], "--help"]
    text = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\(Env:(\w+)\)", text))


def variables(container):
    """What Kubernetes would set, on this machine: other ports, and the model where it is here."""
    limits = container["resources"]["limits"]
    found = {}
    for entry in container["env"]:
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        else:
            field = entry["valueFrom"]["resourceFieldRef"]["resource"]
            found[entry["name"]] = str(math.ceil(quantity(limits[field.split(".")[1]])))
    for name in ("PKV_LISTEN", "PKV_METRICS_LISTEN", "PKV_HEALTH_LISTEN"):
        found[name] = "127.0.0.1:0"
    if "PKV_MODEL" in found:
        found["PKV_MODEL"] = found["PKV_MODEL"].replace("/usr/share/pkv/models", str(MODELS))
    return found


class Process:
    def __init__(self, container, folder, **changes):
        self.container = container
        name = container["name"]
        port_file = Path(folder, name + ".port")
        self.log = Path(folder, name + ".log")
        settings = {**variables(container), "PKV_PORT_FILE": str(port_file), **changes}
        command = [BINARIES[Path(container["command"][0]).name], *container["command"][1:]]
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(command, env=settings, stdout=log, stderr=log, cwd=folder)
        deadline = time.monotonic() + START_S
        while not port_file.exists():
            if self.child.poll() is not None or time.monotonic() > deadline:
                self.child.kill()
                self.child.wait()
                raise RuntimeError(f"{name} did not start: {self.log.read_text()}")
            time.sleep(0.02)
        self.port, self.metrics_port, self.health_port = (
            int(word) for word in port_file.read_text().split())

    def probe(self, name):
        return health(self.health_port, self.container[name]["grpc"]["service"])

    def metrics(self):
        address = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as page:
            return page.read().decode()

    def end(self):
        """The exit code after SIGTERM."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()


def series(text):
    """[(name, {label: value})] of a query, or of a page of metrics."""
    found = re.findall(r"(?m)\b(pkv_\w+)(?:\{([^}]*)\})?", text)
    return [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels))) for name, labels in found]


class ProcessesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.processes = {}
        cls.addClassCleanup(cls.end_all)
        described = {
            workload["metadata"]["name"]: pod(workload)["containers"][0]
            for workload in workloads(render(K8S / "overlays" / "dev"))
        }
        cache = Process(described["pkvd"], cls.folder.name)
        cls.processes["pkvd"] = cache
        for name in ("prefill", "decode"):
            cls.processes[name] = Process(
                described[name], cls.folder.name, PKV_CACHE=f"127.0.0.1:{cache.port}"
            )

    @classmethod
    def end_all(cls):
        for process in cls.processes.values():
            process.end()
        cls.folder.cleanup()

    def test_every_variable_is_known_to_its_binary(self):
        for overlay in ("dev", "disaggregated-nccl", "disaggregated-ssd"):
            for _, container in containers(render(K8S / "overlays" / overlay)):
                # NCCL's are not ours to know, nor what another value is made of.
                names = {entry["name"] for entry in container["env"]
                         if not entry["name"].startswith(("NCCL_", "POD_"))}
                with self.subTest(overlay=overlay, container=container["name"]):
                    self.assertLessEqual(names, known_variables(container["command"]))

    def test_every_probe_is_answered(self):
        for name, process in self.processes.items():
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                with self.subTest(process=name, probe=probe):
                    self.assertEqual(process.probe(probe), SERVING)

    def test_a_probe_for_an_unknown_service_fails(self):
        for process in self.processes.values():
            self.assertIsNone(health(process.health_port, "pkv-startup"))

    def test_the_port_of_the_services_answers_too(self):
        for process in self.processes.values():
            for service in ("", "pkv-readiness", "pkv-liveness"):
                self.assertEqual(health(process.port, service), SERVING)

    def test_settings_arrive(self):
        lines = [json.loads(line) for line in self.processes["pkvd"].log.read_text().splitlines()]
        serving = next(line for line in lines if "capacity_bytes" in line)
        settings = variables(self.processes["pkvd"].container)
        self.assertEqual(int(serving["capacity_bytes"]),
                         quantity(settings["PKV_CAPACITY"].removesuffix("B")))
        self.assertEqual(serving["drain_timeout"], settings["PKV_DRAIN_TIMEOUT"])
        self.assertEqual(serving["reflection"], "off")

    def test_what_the_autoscaler_asks_for_exists(self):
        pages = {name: series(process.metrics()) for name, process in self.processes.items()}
        scaled = of_kind(render(K8S / "overlays" / "disaggregated"), "ScaledObject")
        self.assertEqual({one["metadata"]["name"] for one in scaled}, {"prefill", "decode"})
        for one in scaled:
            for trigger in one["spec"]["triggers"]:
                wanted = series(trigger["metadata"]["query"])
                self.assertTrue(wanted)
                for name, labels in wanted:
                    labels.pop("namespace")  # Prometheus adds it
                    with self.subTest(series=name, labels=labels):
                        self.assertTrue(any(
                            name == have and labels.items() <= having.items()
                            for have, having in pages[one["metadata"]["name"]]))

    def test_memory_at_rest_leaves_three_quarters_of_the_limit(self):
        for name, process in self.processes.items():
            status = Path(f"/proc/{process.child.pid}/status").read_text()
            resident = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10
            limit = quantity(process.container["resources"]["limits"]["memory"])
            with self.subTest(process=name, resident=resident):
                self.assertLess(resident, limit / 4)

    def test_sigterm_ends_each_with_exit_code_0(self):
        for container in [process.container for process in self.processes.values()]:
            with self.subTest(container=container["name"]), tempfile.TemporaryDirectory() as folder:
                changes = {"PKV_CACHE": "127.0.0.1:1"} if container["name"] != "pkvd" else {}
                self.assertEqual(Process(container, folder, **changes).end(), 0)

    def test_draining_turns_readiness_off_and_leaves_liveness_on(self):
        with tempfile.TemporaryDirectory() as folder:
            cache = Process(self.processes["pkvd"].container, folder)
            try:
                subprocess.run(
                    [BUILD / "worker/pkvctl", "--cache", f"127.0.0.1:{cache.port}", "drain"],
                    check=True, capture_output=True)
                self.assertNotEqual(cache.probe("readinessProbe"), SERVING)
                self.assertEqual(cache.probe("livenessProbe"), SERVING)
            finally:
                cache.end()


if __name__ == "__main__":
    unittest.main()
