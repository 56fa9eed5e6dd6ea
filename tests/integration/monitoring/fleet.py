"""The real processes, load on them, and a real Prometheus that scrapes them, all on loopback."""

import ctypes
import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

# Any one step may be slow under a sanitizer on a busy machine; a working one takes a second.
PATIENCE_S = 60
POLL_S = 0.05
# Small, so that the load's objects do not fit and eviction shows.
CAPACITY = "32MiB"
# Small enough that the load fills it too.
SSD_CAPACITY = "2MiB"
ROLES = ("pkvd", "prefill", "decode")
# The targets of deploy/prometheus/prometheus.yaml, whose ports are replaced by those picked here.
SHIPPED_TARGETS = {
    "pkvd": "127.0.0.1:9440",
    "prefill": "127.0.0.1:9441",
    "decode": "127.0.0.1:9442",
}
RULE_FILES = ("rules.yaml", "alerts.yaml")


def die_with_parent():
    """In the child: ends it when this program is killed, as by ctest's time limit."""
    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def http_get(url):
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        return answer.read().decode()


class Child:
    """A process whose output goes to a file, ended by close()."""

    def __init__(self, name, command, scratch):
        self.name = name
        self.log_path = scratch / f"{name}.log"
        with open(self.log_path, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
            )

    def log(self):
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, look, what):
        """Calls look() until it returns something; fails when the process ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = look()
            if found:
                return found
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended before {what}:\n{self.log()}")
            time.sleep(POLL_S)
        raise RuntimeError(f"{self.name}: no {what} within {PATIENCE_S} s:\n{self.log()}")

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Fleet:
    """pkvd, a prefill and a decode worker on ports of their own choice."""

    def __init__(self, binaries, source, scratch, capacity=CAPACITY):
        self.binaries, self.scratch = Path(binaries), Path(scratch)
        self.children, self.ports, self.metrics_ports = [], {}, {}
        model = Path(source) / "deploy/models/novella-14m"
        try:
            ssd = ["--ssd-dir", self.scratch / "ssd", "--ssd-capacity", SSD_CAPACITY]
            self._start("pkvd", ["kvstore/pkvd", "--capacity", capacity, *ssd])
            cache = ["--model", model, "--cache", self.address("pkvd")]
            self._start("prefill", ["worker/pkv-prefill", "serve", *cache])
            self._start("decode", ["worker/pkv-decode", "serve", *cache])
        except BaseException:
            self.close()
            raise

    def _start(self, role, command):
        port_file = self.scratch / f"{role}.port"
        listen = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        command = [self.binaries / command[0], *command[1:], *listen, "--port-file", port_file]
        child = Child(role, command, self.scratch)
        self.children.append(child)

        def ports():
            found = port_file.read_text().split() if port_file.exists() else []
            return found if len(found) == 2 else None

        self.ports[role], self.metrics_ports[role] = child.wait_for(ports, "port file")

    def address(self, role):
        return f"127.0.0.1:{self.ports[role]}"

    def scrape(self, role):
        return http_get(f"http://127.0.0.1:{self.metrics_ports[role]}/metrics")

    def load(self, seconds, concurrency=4, shared_prefix=0.5, prompts="uniform:280:420", output=8):
        """Prompts that share prefixes, in a closed loop; returns pkv-bench's report."""
        command = [self.binaries / "tests/bench/pkv-bench", "serve", "--output", "json"]
        command += ["--prefill", self.address("prefill"), "--decode", self.address("decode")]
        command += ["--concurrency", str(concurrency), "--duration", f"{seconds:g}s", "--seed", "1"]
        command += ["--prompt-tokens", prompts, "--output-tokens", f"fixed:{output}"]
        command += ["--ignore-eos", "--shared-prefix", str(shared_prefix), "--num-prefixes", "4"]
        command = [str(word) for word in command]
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds + PATIENCE_S,
            preexec_fn=die_with_parent,
        )
        if run.returncode != 0:
            raise RuntimeError(f"the load failed:\n{run.stderr}\n{run.stdout[-2000:]}")
        return json.loads(run.stdout)

    def close(self):
        for child in reversed(self.children):
            child.close()


class Prometheus:
    """Debian's Prometheus with the shipped configuration: only ports and intervals are replaced."""

    def __init__(self, source, fleet, scratch):
        shipped = Path(source) / "deploy/prometheus"
        for name in RULE_FILES:
            (scratch / name).write_text((shipped / name).read_text())
        config = (shipped / "prometheus.yaml").read_text()
        for role in ROLES:
            config = replace_once(
                config, SHIPPED_TARGETS[role], f"127.0.0.1:{fleet.metrics_ports[role]}"
            )
        for interval in ("scrape_interval", "evaluation_interval"):
            config = replace_once(config, f"{interval}: 15s", f"{interval}: 1s")
        config_file = scratch / "prometheus.yaml"
        config_file.write_text(config)
        command = ["prometheus", f"--config.file={config_file}"]
        command += [f"--storage.tsdb.path={scratch / 'tsdb'}", "--web.listen-address=127.0.0.1:0"]
        self.child = Child("prometheus", command, scratch)
        try:
            self.url = "http://" + self.child.wait_for(self._listens, "address")
            self.child.wait_for(self._ready, "readiness")
        except BaseException:
            self.close()
            raise

    def _listens(self):
        match = re.search(r'"Listening on" address=(\S+)', self.child.log())
        return match and match[1]

    def _ready(self):
        try:
            return http_get(f"{self.url}/-/ready")
        except urllib.error.URLError:
            return None

    def api(self, path, **parameters):
        """The `data` of an answer; RuntimeError with Prometheus's words where it refuses."""
        query = urllib.parse.urlencode(parameters)
        try:
            answer = json.loads(http_get(f"{self.url}/api/v1/{path}?{query}"))
        except urllib.error.HTTPError as refusal:
            raise RuntimeError(json.load(refusal).get("error", str(refusal))) from None
        return answer["data"]

    def query(self, expression, at=None):
        """The samples at a time, or now: [(labels, value)]; a scalar has no labels."""
        when = {} if at is None else {"time": at}
        data = self.api("query", query=expression, **when)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in data["result"]]

    def query_range(self, expression, start, end, step):
        """The series over a time: [(labels, [(time, value)])]."""
        data = self.api("query_range", query=expression, start=start, end=end, step=step)
        return [
            (series["metric"], [(at, float(value)) for at, value in series["values"]])
            for series in data["result"]
        ]

    def wait_for_samples(self, expression, count, what):
        """Until `expression` has `count` samples."""
        return self.child.wait_for(lambda: len(self.query(expression)) >= count, what)

    def close(self):
        self.child.close()


def replace_once(text, old, replacement):
    if text.count(old) != 1:
        raise RuntimeError(f"'{old}' stands {text.count(old)} times in prometheus.yaml, not once")
    return text.replace(old, replacement)
