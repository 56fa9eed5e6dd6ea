"""A node without a cluster: each pod is a process in network and mount namespaces of its own, with
an address, a read-only root that holds what the image holds, and /etc/hosts in place of DNS. Probes
are asked from the node, as a kubelet does; packets between pods pass the node's filter.

Pauses and periods of the manifests pass SPEED times as fast; what a probe may take does not.
"""

import ctypes
import errno
import math
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from grpc_probe import SERVING, health
from packet_rules import packet_rules
from policy import pod, quantity

SPEED = 10
GATEWAY, NODE = "169.254.1.1", "10.244.0.1"
USER = "65532"
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# $1 root, $2 hosts, $3 user or "", then NAME=value... -- command. The parent moves eth0 in between
# the two lines that it exchanges with this.
_INIT = r"""
set -eu
root=$1 hosts=$2 user=$3; shift 3
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr/bin usr/lib usr/lib64 usr/local usr/share/pkv/models etc proc dev sys
ln -s usr/lib lib; ln -s usr/lib64 lib64
# /sys too: without it malloc, which counts CPUs there, leaves an errno behind that gRPC 1.51 takes
# for connect()'s.
for folder in usr/lib usr/lib64 usr/local proc dev sys; do
  [ ! -d "/$folder" ] || mount --rbind "/$folder" "$folder"
done
for binary in $PODS_BINARIES; do
  touch "usr/bin/${binary##*/}"; mount --bind "$binary" "usr/bin/${binary##*/}"
done
mount --bind "$PODS_MODELS" usr/share/pkv/models
touch etc/hosts; mount --bind "$hosts" etc/hosts
mount -o remount,bind,ro "$root"
# /etc/hosts says nothing of IPv6, and gRPC would ask a DNS server that is not there.
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
ip link set lo up
echo namespaces
read -r address
ip address add "$address/32" dev eth0
ip link set eth0 up
ip route add GATEWAY dev eth0
ip route add default via GATEWAY
variables=()
while [ "$1" != -- ]; do variables+=("$1"); shift; done
shift
exec env -i "${variables[@]}" /usr/sbin/chroot ${user:+--userspec=$user:$user} "$root" "$@"
""".replace("GATEWAY", GATEWAY)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def variables(container):
    """[NAME=value], as Kubernetes sets them."""
    limits = container["resources"]["limits"]
    found = []
    for entry in container["env"]:
        value = entry.get("value")
        if value is None:
            field = entry["valueFrom"]["resourceFieldRef"]["resource"]
            value = str(math.ceil(quantity(limits[field.split(".")[1]])))
        found.append(f"{entry['name']}={value}")
    return found


class Limits:
    """Memory and CPU of a pod, by the control groups of this machine where it lets us."""

    def __init__(self, name):
        self.folders = []
        v1 = Path("/sys/fs/cgroup")
        for controller in ("memory", "cpu"):
            folder = v1 / controller / name
            try:
                folder.mkdir()
                self.folders.append(folder)
            except OSError:
                pass

    def enforced(self):
        return {folder.parent.name for folder in self.folders}

    def apply(self, pid, limits):
        for folder in self.folders:
            if folder.parent.name == "memory":
                wanted = {"memory.limit_in_bytes": int(quantity(limits["memory"]))}
            elif "cpu" in limits:
                period = int((folder / "cpu.cfs_period_us").read_text())
                # The limit is tried here, not how a busy machine is shared.
                wanted = {"cpu.cfs_quota_us": int(quantity(limits["cpu"]) * period),
                          "cpu.shares": 10240}
            else:
                continue
            for file, value in wanted.items():
                (folder / file).write_text(str(value))
            (folder / "cgroup.procs").write_text(str(pid))

    def remove(self):
        for folder in self.folders:
            try:
                folder.rmdir()
            except OSError:
                pass


class Pod:
    """One pod: `identity` (network_flows.Pod) is what policies see of it."""

    def __init__(self, node, name, identity, command, settings=(), limits=None):
        self.node, self.name, self.identity = node, name, identity
        self.address = node.next_address()
        self.ready = self.terminating = False
        root = node.folder / f"{name}.{self.address}"
        root.mkdir()
        self.log = root.with_suffix(".log")
        environment = {
            "PATH": os.environ.get("PATH", ""), "PODS_MODELS": str(node.models),
            "PODS_BINARIES": " ".join(map(str, node.binaries)),
        }
        with self.log.open("wb") as log:
            # pylint: disable-next=consider-using-with
            self.child = subprocess.Popen(
                ["unshare", "--net", "--mount", "bash", "-c", _INIT, "init", str(root),
                 str(node.hosts), USER if node.has_users else "", *settings, "--", *command],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        if self.child.stdout.readline() != b"namespaces\n":
            self.child.wait()
            raise RuntimeError(f"{name}: {self.log.read_text()}")
        self.limits = Limits(f"pkv-pods-{os.getpid()}-{root.name}")
        self.limits.apply(self.child.pid, limits or {"memory": "64Mi"})
        node.connect_pod(self)
        self.child.stdin.write(self.address.encode() + b"\n")
        self.child.stdin.close()
        # Nobody reads what stdout brings: it is small, and logs go to stderr.

    def peak_bytes(self):
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1]) << 10

    def inside(self, call):
        """What `call` returns in a thread that stands in the pod's network."""
        result = []

        def enter():
            with open(f"/proc/{self.child.pid}/ns/net", "rb") as space:
                if _libc.setns(space.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            result.append(call())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return result[0]

    def connect(self, address, port):
        """"open", "closed" (nobody listens there) or "forbidden" (by the filter)."""
        # The kernel limits how often it says "forbidden" to one address, and a worker that looks
        # for a server that is gone hears it too: no answer is asked for again.
        for _ in range(5):
            answer = self._try_to_connect(address, port)
            if answer != os.strerror(errno.EAGAIN):
                break
        return answer

    def _try_to_connect(self, address, port):
        def attempt():
            with socket.socket() as connection:
                connection.settimeout(5)
                code = connection.connect_ex((address, port))
            known = {0: "open", errno.ECONNREFUSED: "closed", errno.EHOSTUNREACH: "forbidden"}
            return known.get(code, os.strerror(code))

        return self.inside(attempt)

    def listen(self, port):
        """A listener in the pod's network, for as long as the caller keeps it."""
        return self.inside(lambda: socket.create_server((self.address, port)))

    def command(self, *arguments):
        """The command line that runs something in this pod."""
        return ["nsenter", "-t", str(self.child.pid), "-n", "-m", "-r", *arguments]

    def end(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self.child.stdout.close()
        self.limits.remove()


class Kubelet(threading.Thread):
    """Asks the probes of one pod's container and keeps its readiness."""

    def __init__(self, pod_, container):
        super().__init__(daemon=True)
        self.pod, self.container = pod_, container
        self.started = False
        self.must_restart = None  # why a kubelet would have restarted it
        self._failures = {}
        self._done = threading.Event()

    def _ask(self, kind):
        """Whether the probe has passed; None while it may fail again."""
        probe = self.container[kind]
        try:
            answer = health(probe["grpc"]["port"], probe["grpc"]["service"],
                            probe["timeoutSeconds"], self.pod.address)
        except OSError as error:
            answer = error
        if answer == SERVING:
            self._failures[kind] = 0
            return True
        self._failures[kind] = self._failures.get(kind, 0) + 1
        failed = self._failures[kind] >= probe["failureThreshold"]
        if failed and kind != "readinessProbe":
            self.must_restart = f"{self.pod.name}: {kind}: {answer}"
        return False if failed else None

    def run(self):
        due = {}
        while not self._done.wait(0.02):
            kinds = ("readinessProbe", "livenessProbe") if self.started else ("startupProbe",)
            for kind in kinds:
                if time.monotonic() < due.get(kind, 0):
                    continue
                due[kind] = time.monotonic() + self.container[kind]["periodSeconds"] / SPEED
                passed = self._ask(kind)
                if kind == "startupProbe" and passed:
                    self.started = True
                if kind == "readinessProbe" and passed is not None:
                    self.pod.ready = passed
                    self.pod.node.publish()

    def stop(self):
        self._done.set()
        self.join()


class Node:
    """`objects` are the rendered manifests, whose policies hold here."""

    def __init__(self, folder, objects, binaries, models, has_users):
        self.folder, self.objects = Path(folder), objects
        self.binaries, self.models, self.has_users = binaries, models, has_users
        self.hosts = self.folder / "hosts"
        self.pods, self.kubelets = [], {}
        self._num_addresses = 0
        self._published = ""
        self._lock = threading.Lock()
        # Pods' users read it.
        self.folder.chmod(0o755)
        self.hosts.write_text("127.0.0.1 localhost\n")
        run("ip", "link", "set", "lo", "up")
        run("ip", "address", "add", f"{NODE}/32", "dev", "lo")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def next_address(self):
        self._num_addresses += 1
        return f"10.244.1.{self._num_addresses}"

    def connect_pod(self, pod_):
        """eth0 of the pod, our end of it, and the rules with the pod's address in them."""
        link = "pod" + pod_.address.rsplit(".", 1)[1]
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns",
            str(pod_.child.pid))
        run("ip", "address", "add", f"{GATEWAY}/32", "dev", link)
        run("ip", "link", "set", link, "up")
        run("ip", "route", "add", f"{pod_.address}/32", "dev", link, "src", NODE)
        self.pods = [one for one in self.pods if one.child.poll() is None] + [pod_]
        placed = [(one.identity, one.address) for one in self.pods]
        run("nft", "-f", "-", input=packet_rules(self.objects, placed))

    def publish(self):
        """Headless Services: the names of pods that are ready, and of no others."""
        with self._lock:
            ready = [one for one in self.pods if one.ready and not one.terminating]
            text = "127.0.0.1 localhost\n" + "".join(
                f"{one.address} {one.name}\n" for one in ready)
            if text != self._published:
                # In place: pods have the file itself mounted.
                with self.hosts.open("r+") as file:
                    file.write(text)
                    file.truncate()
                self._published = text

    def stand_in(self, name, identity):
        """A pod of somebody else's that does nothing of its own."""
        return Pod(self, name, identity, ["/usr/bin/sleep", "3600"])

    def start(self, name, workload, identity):
        """A pod of the manifests, and who asks its probes."""
        container = pod(workload)["containers"][0]
        started = Pod(self, name, identity, container["command"], variables(container),
                      container["resources"]["limits"])
        self.kubelets[name] = Kubelet(started, container)
        self.kubelets[name].start()
        return started

    def wait_until_ready(self, pods, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while not all(one.ready for one in pods):
            for one in pods:
                if one.child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{one.name} is not ready: {one.log.read_text()}")
            time.sleep(0.02)

    def delete(self, pod_, workload):
        """As the API server and the kubelet do: the name goes, preStop, SIGTERM, grace. Returns the
        exit code; None when it had to be killed."""
        spec = pod(workload)
        pod_.terminating = True
        self.publish()
        time.sleep(spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] / SPEED)
        self.kubelets[pod_.name].stop()
        pod_.child.send_signal(signal.SIGTERM)
        try:
            return pod_.child.wait(timeout=spec["terminationGracePeriodSeconds"])
        except subprocess.TimeoutExpired:
            return None
        finally:
            pod_.end()

    def end(self):
        for kubelet in self.kubelets.values():
            kubelet.stop()
        for one in self.pods:
            one.end()
