"""The rendered overlay "dev" without a cluster: its pods as processes in network namespaces, with
their exact command lines, environment, ports, probes and network policies (pods.py). Prompts go
through while each pkvd in turn is restarted as a rolling restart does, and nobody notices.

Usage: PKV_BINARY_DIR=.build/release pods_test.py    as root, or where user namespaces are allowed
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request
from pathlib import Path

import network_flows
from manifests import K8S, render
from pods import SPEED, Limits, Node
from policy import pod, quantity, workloads

BUILD = Path(os.environ.get("PKV_BINARY_DIR", ".build/release")).resolve()
NAMESPACES = ["unshare", "--net", "--mount", "--propagation", "private"]
PROCESSES = ["--pid", "--fork", "--kill-child", "--mount-proc"]
AS_USER = ["--user", "--map-root-user"]
# What the kernel must allow: forwarding, pairs of interfaces, packet rules.
NEEDED = ("echo 1 >/proc/sys/net/ipv4/ip_forward && ip link add one type veth peer name other"
          " && nft add table inet asked")
MODE = "PKV_PODS_TEST_MODE"
SKIPPED = 77
PROMPTS = 12  # so many that each of three servers is chosen for some; which follows from their ids
CALLERS = 3
ATTEMPTS = 5


def enter():
    """Starts this test anew in namespaces of its own, in the first way that the kernel allows."""
    errors = []
    for mode, more in [("root", PROCESSES), ("root", []), ("user", AS_USER + PROCESSES),
                       ("user", AS_USER)]:
        command = NAMESPACES[:1] + more + NAMESPACES[1:]
        tried = subprocess.run([*command, "sh", "-c", NEEDED], capture_output=True, text=True,
                               check=False)
        if tried.returncode == 0:
            print(f"network namespaces: as {mode}, {' '.join(command)}", flush=True)
            arguments = [*command, sys.executable, "-B", *sys.argv]
            os.execvpe(command[0], arguments, {**os.environ, MODE: mode})
        errors.append(f"  {' '.join(command)}: {tried.stderr.strip()}")
    print("skipped: this kernel lets nobody have a network namespace, not even in a user "
          "namespace:\n" + "\n".join(errors))
    sys.exit(SKIPPED)


def prompts():
    """Of some 400 tokens, two or three blocks and a window."""
    text = " ".join((K8S.parents[1] / "LICENSE").read_text(encoding="utf-8").split())
    step = (len(text) - 1500) // PROMPTS
    return [text[i * step:i * step + 1500] for i in range(PROMPTS)]


class Load(threading.Thread):
    """A caller that sends one prompt after the other until it is told to stop."""

    def __init__(self, send, numbers):
        super().__init__(daemon=True)
        self.send, self.numbers = send, numbers
        self.answers, self.errors = [], []
        self.done = threading.Event()

    def run(self):
        while not self.done.is_set():
            for number in self.numbers:
                code, answer = self.send(number)
                (self.answers if code == 0 else self.errors).append(answer)
                if self.done.is_set():
                    return


class PodsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with
        cls.addClassCleanup(cls.folder.cleanup)
        cls.objects = render(K8S / "overlays" / "dev")
        cls.workloads = {one["metadata"]["name"]: one for one in workloads(cls.objects)}
        identities = network_flows.pods(cls.objects)
        binaries = [BUILD / "kvstore/pkvd", *(BUILD / "worker" / name for name in (
            "pkv-prefill", "pkv-decode", "pkvctl")), "/usr/bin/sleep"]
        cls.node = Node(cls.folder.name, cls.objects, binaries, K8S.parent / "models",
                        os.environ[MODE] == "root")
        cls.addClassCleanup(cls.node.end)
        cls.identities = {}
        for name, one in cls.workloads.items():
            if one["kind"] == "StatefulSet":
                for i in range(one["spec"]["replicas"]):
                    cls.identities[f"{name}-{i}.{one['spec']['serviceName']}"] = (
                        name, identities[name])
            else:
                cls.identities[name] = (name, identities[name])
        cls.pods = {name: cls.start(name) for name in cls.identities}
        Other = network_flows.Pod
        for name, identity in {
            "client": Other("apps", {}, {"patternkv.example.com/client": "true"}),
            "prometheus": Other("monitoring", {"app": "prometheus"}),
            "dns": Other("kube-system", {"k8s-app": "kube-dns"}),
            "stranger": Other("elsewhere", {"app.kubernetes.io/name": "patternkv",
                                            "app.kubernetes.io/component": "prefill"}),
            "neighbour": Other("patternkv", {"app": "intruder"}),
        }.items():
            cls.pods[name] = cls.node.stand_in(name, identity)
        cls.caches = [name for name in cls.identities if name.startswith("pkvd-")]
        cls.node.wait_until_ready([cls.pods[name] for name in cls.identities])
        cls.prompts = prompts()

    @classmethod
    def start(cls, name):
        workload, identity = cls.identities[name]
        return cls.node.start(name, cls.workloads[workload], identity)

    def metric(self, name, series):
        """The value of one series, read as Prometheus does."""
        port = self.pods[name].identity.named_ports["metrics"]
        url = f"http://{self.pods[name].address}:{port}/metrics"

        def read():
            with urllib.request.urlopen(url, timeout=10) as page:
                return page.read().decode()

        page = self.pods["prometheus"].inside(read)
        return float(re.search(rf"(?m)^{re.escape(series)} (\S+)$", page)[1])

    def send(self, number):
        """(exit code, what pkvctl said) of one prompt through prefill and decode."""
        command = self.pods["client"].command(
            "/usr/bin/pkvctl", "--output", "json", "generate", "--prefill", "prefill:7441",
            "--decode", "decode:7442", "--max-tokens", "4", "--prompt", self.prompts[number])
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr

    def send_all(self):
        """The answers to all prompts."""
        answers = [self.send(number) for number in range(PROMPTS)]
        self.assertEqual([text for code, text in answers if code != 0], [])
        return [json.loads(text) for _, text in answers]

    def members(self):
        """How many servers each worker takes for ready."""
        return [self.metric(name, f'pkv_members{{role="{name}",state="ready"}}')
                for name in ("prefill", "decode")]

    def wait_for_members(self):
        """members(), when they are all there or 20 s have gone."""
        deadline = time.monotonic() + 20
        while self.members() != [len(self.caches)] * 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.members()

    def assert_kept_by_all(self):
        """Every prompt comes from the cache, and every server holds some. A worker that had to wait
        long for its turn may have taken a server for away, so that a prompt went elsewhere: then
        once more."""
        for _ in range(ATTEMPTS):
            self.wait_for_members()
            answers = self.send_all()
            if all(answer["prefill"]["cached_tokens"] > 0
                   and answer["decode"]["recomputed_tokens"] == 0 for answer in answers):
                break
        else:
            self.fail(f"after {ATTEMPTS} rounds not every prompt comes from the cache")
        for name in self.caches:
            self.assertGreater(self.metric(name, 'pkv_tier_blocks{tier="dram"}'), 0, name)
        self.assertEqual(self.wait_for_members(), [len(self.caches)] * 2)

    def test_1_prompts_are_spread_over_the_servers_and_found_again(self):
        self.assert_kept_by_all()

    def test_2_nobody_notices_a_rolling_restart_of_the_servers(self):
        callers = [Load(self.send, range(i, PROMPTS, CALLERS)) for i in range(CALLERS)]
        for caller in callers:
            caller.start()
        spec = self.workloads["pkvd"]
        try:
            for name in reversed(self.caches):
                old = self.pods[name]
                code = self.node.delete(old, spec)
                self.assertEqual(code, 0, old.log.read_text())
                self.pods[name] = self.start(name)
                self.assertNotEqual(self.pods[name].address, old.address)
                self.node.wait_until_ready([self.pods[name]])
                time.sleep(spec["spec"]["minReadySeconds"] / SPEED)
        finally:
            for caller in callers:
                caller.done.set()
            for caller in callers:
                caller.join()
        self.assertEqual([text for caller in callers for text in caller.errors], [])
        for caller in callers:
            self.assertGreater(len(caller.answers), 2)
        # Nothing was restarted but they, and every chain is where it was before.
        for kubelet in self.node.kubelets.values():
            self.assertIsNone(kubelet.must_restart)
        self.assert_kept_by_all()

    def test_3_paths_that_are_needed_are_open(self):
        with self.pods["dns"].listen(53):
            for source, target, port in [
                *(("prefill", cache, 7440) for cache in self.caches),
                *(("decode", cache, 7440) for cache in self.caches),
                ("client", "prefill", 7441), ("client", "decode", 7442),
                ("prometheus", self.caches[0], 9440), ("prometheus", "prefill", 9441),
                ("prometheus", "decode", 9442),
                ("prefill", "dns", 53), ("decode", "dns", 53),
            ]:
                with self.subTest(source=source, target=target, port=port):
                    self.assertEqual(self.try_path(source, target, port), "open")

    def test_3_paths_that_are_not_needed_are_closed(self):
        cache = self.caches[0]
        for source, target, port in [
            ("stranger", cache, 7440), ("stranger", "prefill", 7441), ("stranger", "decode", 7442),
            ("neighbour", cache, 7440), ("neighbour", "prefill", 7441),
            ("client", cache, 7440), ("client", "decode", 9442), ("client", "decode", 8442),
            ("prometheus", cache, 7440), ("prometheus", cache, 8440),
            (cache, self.caches[1], 7440), (cache, "prefill", 7441), (cache, "dns", 53),
            (cache, "stranger", 443),
            ("prefill", "decode", 7442), ("prefill", cache, 9440), ("prefill", cache, 8440),
            ("decode", "stranger", 443), ("decode", "dns", 443),
        ]:
            with self.subTest(source=source, target=target, port=port):
                self.assertEqual(self.try_path(source, target, port), "forbidden")

    def try_path(self, source, target, port):
        """What happens, after it was made sure that the evaluation of manifests_test.py agrees."""
        result = self.pods[source].connect(self.pods[target].address, port)
        expected = network_flows.may_connect(
            self.objects, self.pods[source].identity, self.pods[target].identity, port)
        self.assertEqual(result != "forbidden", expected, result)
        return result

    def test_4_pods_kept_within_their_limits(self):
        enforced = Limits(f"pkv-pods-{os.getpid()}-asked")
        print("limits enforced by the kernel: " + (", ".join(sorted(enforced.enforced())) or "none")
              + "; memory is measured here in any case", flush=True)
        enforced.remove()
        for name, (workload, _) in self.identities.items():
            limits = pod(self.workloads[workload])["containers"][0]["resources"]["limits"]
            peak = self.pods[name].peak_bytes()
            self.assertLess(peak, quantity(limits["memory"]), name)


if __name__ == "__main__":
    if MODE not in os.environ:
        enter()
    unittest.main(verbosity=2)
