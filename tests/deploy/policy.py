"""What a schema cannot say about rendered manifests: each rule yields what is wrong.

Sources: Kubernetes' Pod Security Standards (restricted), and the sections of deploy/k8s/README.md.
policy_selftest.py proves for each rule that it can fail.
"""

import re

from manifests import title

GIB = 1 << 30
UNITS = {"": 1, "m": 1e-3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": GIB, "Ti": 1 << 40}
# What may be writable or come from outside under the restricted standard; hostPath may not.
VOLUMES = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected", "downwardAPI"}
GPU = "nvidia.com/gpu"
# What each probe asks a container's health port, which answers nothing else.
PROBES = {
    "startupProbe": "pkv-readiness",
    "readinessProbe": "pkv-readiness",
    "livenessProbe": "pkv-liveness",
}


def quantity(text):
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()
    return float(number) * UNITS[unit]


def seconds(text):
    """Of a duration as the processes take it: 30s, 1m30s."""
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"'{text}' is no duration with units")
    return sum(float(number) * {"ms": 1e-3, "s": 1, "m": 60, "h": 3600}[unit]
               for number, unit in parts)


def workloads(objects):
    return [one for one in objects if one["kind"] in ("Deployment", "StatefulSet")]


def of_kind(objects, kind):
    return [one for one in objects if one["kind"] == kind]


def pod(workload):
    return workload["spec"]["template"]["spec"]


def pod_labels(workload):
    return workload["spec"]["template"]["metadata"]["labels"]


def containers(objects):
    """(workload, container), init containers included."""
    for workload in workloads(objects):
        spec = pod(workload)
        for container in spec.get("initContainers", []) + spec["containers"]:
            yield workload, container


def env(container):
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def ports(workload):
    """{name: number}"""
    return {
        port["name"]: port["containerPort"]
        for container in pod(workload)["containers"]
        for port in container.get("ports", [])
    }


def matches(selector, labels):
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        value, values = labels.get(rule["key"]), rule.get("values", [])
        allowed = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not allowed[rule["operator"]]:
            return False
    return True


def claims(workload):
    """{name: spec} of the claims that each pod of a StatefulSet has of its own."""
    return {one["metadata"]["name"]: one["spec"]
            for one in workload["spec"].get("volumeClaimTemplates", [])}


def sends_over_nccl(container):
    return int(env(container).get("PKV_NCCL_DEVICE", -1)) >= 0


def keeps_prompts(container):
    """On its GPU, for decode workers to fetch."""
    return env(container).get("PKV_DIRECT_MEMORY", "0") != "0"


RULES = {}


def rule(check):
    """Registers a generator of messages under its own name."""
    RULES[check.__name__.replace("_", "-")] = check
    return check


@rule
def namespace(objects):
    spaces = of_kind(objects, "Namespace")
    if len(spaces) != 1:
        yield f"{len(spaces)} namespaces, not one"
        return
    name = spaces[0]["metadata"]["name"]
    labels = spaces[0]["metadata"].get("labels", {})
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield f"namespace {name} does not enforce the restricted pod security standard"
    for one in objects:
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != name:
            yield f"{title(one)} is not in namespace {name}"


@rule
def image_tag(objects):
    for workload, container in containers(objects):
        image = container["image"]
        if "@sha256:" in image:
            continue
        tag = image.rsplit("/", 1)[-1].partition(":")[2]
        if tag in ("", "latest"):
            yield f"{title(workload)}: image '{image}' names no version"


@rule
def restricted_pods(objects):
    for workload in workloads(objects):
        spec = pod(workload)
        context = spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{title(workload)}: may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{title(workload)}: no seccomp profile"
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(name):
                yield f"{title(workload)}: {name}"
        for volume in spec.get("volumes", []):
            for kind in set(volume) - {"name"} - VOLUMES:
                yield f"{title(workload)}: volume {volume['name']} is a {kind}"


@rule
def restricted_containers(objects):
    for workload, container in containers(objects):
        context = container.get("securityContext", {})
        where = f"{title(workload)}, {container['name']}"
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{where}: may gain privileges"
        capabilities = context.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{where}: keeps capabilities"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{where}: may write to its image"
        if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
            yield f"{where}: may run as root"
        if context.get("seccompProfile", {}).get("type", "RuntimeDefault") != "RuntimeDefault":
            yield f"{where}: undoes the pod's seccomp profile"


@rule
def api_access(objects):
    """Nothing here talks to the API server, so nothing gets a token for it."""
    accounts = {one["metadata"]["name"]: one for one in of_kind(objects, "ServiceAccount")}
    for workload in workloads(objects):
        spec = pod(workload)
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{title(workload)}: gets a token of the API server"
        account = accounts.get(spec.get("serviceAccountName"))
        if account is None:
            yield f"{title(workload)}: has no account of its own"
        elif account.get("automountServiceAccountToken") is not False:
            yield f"{title(account)}: hands out its token"


@rule
def service_links(objects):
    """Kubernetes would set X_PORT and the like for each Service, beside our PKV_ variables."""
    for workload in workloads(objects):
        if pod(workload).get("enableServiceLinks") is not False:
            yield f"{title(workload)}: enableServiceLinks is on"


@rule
def probes(objects):
    for workload in workloads(objects):
        for container in pod(workload)["containers"]:
            health = [one["containerPort"] for one in container.get("ports", [])
                      if one["name"] == "health"]
            for name, service in PROBES.items():
                probe, where = container.get(name), f"{title(workload)}: {name}"
                if probe is None:
                    yield f"{where} is missing"
                    continue
                asked = probe.get("grpc", {})
                if [asked.get("port")] != health:
                    yield f"{where}: port {asked.get('port')!r} is not the health port {health}"
                if not {"periodSeconds", "timeoutSeconds", "failureThreshold"} <= set(probe):
                    yield f"{where} leaves its times to the defaults"
                if asked.get("service") != service:
                    yield f"{where} asks for '{asked.get('service')}', not for '{service}'"


@rule
def resources(objects):
    for workload, container in containers(objects):
        where = f"{title(workload)}, {container['name']}"
        requests = container.get("resources", {}).get("requests", {})
        limits = container.get("resources", {}).get("limits", {})
        for name in ("cpu", "memory"):
            if name not in requests:
                yield f"{where}: no request of {name}"
        if "memory" not in limits or limits["memory"] != requests.get("memory"):
            yield f"{where}: the memory limit is not what is requested"
        if GPU in requests and requests[GPU] != limits.get(GPU):
            yield f"{where}: GPUs cannot be overcommitted"
        for entry in container.get("env", []):
            field = entry.get("valueFrom", {}).get("resourceFieldRef", {}).get("resource")
            if field == "limits.cpu" and "cpu" not in limits:
                yield f"{where}: {entry['name']} would be the CPUs of the node"


@rule
def capacity(objects):
    """The arena of pkvd, and room for gRPC's buffers: 0.75 of the limit less 1 GiB."""
    for workload, container in containers(objects):
        text = env(container).get("PKV_CAPACITY")
        limit = container.get("resources", {}).get("limits", {}).get("memory")
        if container["name"] == "pkvd" and text is None:
            yield f"{title(workload)}: PKV_CAPACITY is not set"
        if text is not None and limit is not None:
            largest = 0.75 * quantity(limit) - GIB
            if quantity(text.removesuffix("B")) > largest:
                yield f"{title(workload)}: PKV_CAPACITY {text} is above {largest / GIB:.2f} GiB"


@rule
def drain_time(objects):
    for workload, container in containers(objects):
        drain = env(container).get("PKV_DRAIN_TIMEOUT")
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
        if drain is None or pause is None:
            yield f"{title(workload)}: no preStop sleep, or no PKV_DRAIN_TIMEOUT"
            continue
        needed = pause + seconds(drain) + 10
        grace = pod(workload).get("terminationGracePeriodSeconds", 30)
        if grace < needed:
            yield f"{title(workload)}: grace period {grace} s is below {needed:.0f} s"


@rule
def disruption(objects):
    budgets = of_kind(objects, "PodDisruptionBudget")
    for workload in workloads(objects):
        found = [one for one in budgets if matches(one["spec"]["selector"], pod_labels(workload))]
        if len(found) != 1:
            yield f"{title(workload)}: {len(found)} disruption budgets, not one"
        elif found[0]["spec"].get("maxUnavailable") != 1:
            yield f"{title(found[0])}: maxUnavailable is not 1; a drain of the node must end"
        elif found[0]["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{title(found[0])}: a pod that never became ready would block a drain"


@rule
def spread(objects):
    for workload in workloads(objects):
        constraints = pod(workload).get("topologySpreadConstraints", [])
        keys = {one["topologyKey"] for one in constraints}
        for key in {"kubernetes.io/hostname", "topology.kubernetes.io/zone"} - keys:
            yield f"{title(workload)}: not spread over {key}"
        for one in constraints:
            if not matches(one.get("labelSelector", {"matchLabels": {"": ""}}),
                           pod_labels(workload)):
                yield f"{title(workload)}: spread over {one['topologyKey']} of other pods"


@rule
def selectors(objects):
    """A selector that matches nothing is a misspelled one."""
    labels = [pod_labels(workload) for workload in workloads(objects)]
    for workload in workloads(objects):
        if not matches(workload["spec"]["selector"], pod_labels(workload)):
            yield f"{title(workload)} does not select its own pods"
    for one in objects:
        spec = one.get("spec", {})
        selector = {
            "Service": lambda: {"matchLabels": spec["selector"]},
            "PodDisruptionBudget": lambda: spec["selector"],
            "PodMonitor": lambda: spec["selector"],
            "NetworkPolicy": lambda: spec["podSelector"],
        }.get(one["kind"], lambda: {})()
        if not any(matches(selector, each) for each in labels):
            yield f"{title(one)} selects no pod"


@rule
def addresses(objects):
    """What a process listens on is what its pod and its Service say."""
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "Service")}
    for workload, container in containers(objects):
        declared = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        settings = env(container)
        for name, variable in (("grpc", "PKV_LISTEN"), ("metrics", "PKV_METRICS_LISTEN"),
                               ("health", "PKV_HEALTH_LISTEN")):
            listen = settings.get(variable) or ""
            if listen != f"0.0.0.0:{declared.get(name)}":
                yield f"{title(workload)}: {variable} '{listen}', port {name} {declared.get(name)}"
    for name, spec in services.items():
        if spec.get("clusterIP") != "None":
            yield f"Service/{name}: has a cluster IP: it would balance connections, not calls"
        for workload in workloads(objects):
            if matches({"matchLabels": spec["selector"]}, pod_labels(workload)):
                for port in spec["ports"]:
                    if ports(workload).get(port.get("targetPort")) != port["port"]:
                        yield f"Service/{name}: port {port['port']} leads nowhere"


@rule
def cache_servers(objects):
    """Where a chain of blocks is follows from the names in PKV_CACHE: every worker has the same,
    and they are those of the pods, which keep them through restarts."""
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "Service")}
    names = []
    for workload in of_kind(objects, "StatefulSet"):
        spec, name = workload["spec"], workload["metadata"]["name"]
        for port in services.get(spec["serviceName"], {}).get("ports", []):
            names += [f"{name}-{i}.{spec['serviceName']}:{port['port']}"
                      for i in range(spec["replicas"])]
        if spec.get("podManagementPolicy") != "Parallel":
            yield f"{title(workload)}: one pod that does not start would keep the others away"
    for workload in of_kind(objects, "Deployment"):
        cache = env(pod(workload)["containers"][0]).get("PKV_CACHE")
        if cache != ",".join(names):
            yield f"{title(workload)}: PKV_CACHE '{cache}' is not '{','.join(names)}'"


@rule
def unique_names(objects):
    seen = set()
    for one in objects:
        if (one["kind"], one["metadata"]["name"]) in seen:
            yield f"{title(one)} is there twice"
        seen.add((one["kind"], one["metadata"]["name"]))
    for workload, container in containers(objects):
        for field in ("env", "ports", "volumeMounts"):
            names = [each["name"] for each in container.get(field, [])]
            for name in {each for each in names if names.count(each) > 1}:
                yield f"{title(workload)}: {name} is twice in {field}"
        volumes = {volume["name"] for volume in pod(workload).get("volumes", [])}
        volumes |= set(claims(workload))
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{title(workload)}: mount {mount['name']} has no volume"


@rule
def gpus(objects):
    for workload, container in containers(objects):
        spec, where = pod(workload), title(workload)
        num_gpus = int(container.get("resources", {}).get("limits", {}).get(GPU, 0))
        device, sender = (env(container).get(name) for name in ("PKV_DEVICE", "PKV_NCCL_DEVICE"))
        if (num_gpus > 0) != (device == "cuda" or sends_over_nccl(container)):
            yield f"{where}: {num_gpus} GPUs, PKV_DEVICE {device}, PKV_NCCL_DEVICE {sender}"
        if num_gpus == 0:
            continue
        if not any(one.get("key") == GPU for one in spec.get("tolerations", [])):
            yield f"{where}: nodes with GPUs are tainted, and nothing tolerates it"
        if "nvidia.com/gpu.compute.major" not in spec.get("nodeSelector", {}):
            yield f"{where}: may land on a GPU that the kernels are not built for"
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        shm = next((volumes.get(mount["name"], {}).get("emptyDir", {})
                    for mount in container.get("volumeMounts", [])
                    if mount["mountPath"] == "/dev/shm"), {})
        if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
            yield f"{where}: /dev/shm is not memory of a stated size"
        elif quantity(shm["sizeLimit"]) > quantity(container["resources"]["limits"]["memory"]) / 2:
            yield f"{where}: /dev/shm may take more than half of the memory"


@rule
def ssd(objects):
    """A folder on disk is a claim of its pod's own, larger than what is stored there."""
    for workload, container in containers(objects):
        where, settings = title(workload), env(container)
        folder, capacity = settings.get("PKV_SSD_DIR"), settings.get("PKV_SSD_CAPACITY")
        if (folder is None) != (capacity is None):
            yield f"{where}: PKV_SSD_DIR {folder} and PKV_SSD_CAPACITY {capacity} go together"
        if folder is None or capacity is None:
            continue
        mount = next((one for one in container.get("volumeMounts", [])
                      if one["mountPath"] == folder and not one.get("readOnly")), {})
        claim = claims(workload).get(mount.get("name"))
        if claim is None:
            yield f"{where}: {folder} is on no claim of the pod's own"
            continue
        claimed = quantity(claim["resources"]["requests"]["storage"])
        if quantity(capacity.rstrip("B")) > 0.9 * claimed:
            yield f"{where}: {capacity} is more than 0.9 of the claim"
        if set(claim["accessModes"]) - {"ReadWriteOnce", "ReadWriteOncePod"}:
            yield f"{where}: the claim can be mounted by others"
        if workload["spec"].get("persistentVolumeClaimRetentionPolicy", {}) != {
                "whenDeleted": "Delete", "whenScaled": "Delete"}:
            yield f"{where}: claims of a cache outlive it"
        if pod(workload).get("securityContext", {}).get("fsGroup") is None:
            yield f"{where}: the claim belongs to root"


@rule
def nccl(objects):
    """NCCL listens on any port of its pod's range: both ends of a pair state it, and policies open
    it, no more and no less."""
    ends = {workload["metadata"]["name"]: workload for workload, container in containers(objects)
            if sends_over_nccl(container) or keeps_prompts(container)}
    if not ends:
        return
    readers = {workload["metadata"]["name"]: workload for workload, container in containers(objects)
               if env(container).get("PKV_TRANSPORT") in ("auto", "nccl")}
    if not readers:
        yield f"{', '.join(ends)}: PKV_TRANSPORT of nobody says to fetch from there"
    opened = {f"{port['port']} {port['endPort']}" for one in of_kind(objects, "NetworkPolicy")
              for direction in ("ingress", "egress") for entry in one["spec"].get(direction, [])
              for port in entry.get("ports", []) if "endPort" in port}
    for workload in (ends | readers).values():
        stated = {one["value"] for one in pod(workload)["securityContext"].get("sysctls", [])
                  if one["name"] == "net.ipv4.ip_local_port_range"}
        if stated != opened:
            yield f"{title(workload)}: listens on {stated}, policies open {opened}"


@rule
def direct(objects):
    """A ticket names one pod of those that keep prompts, by its address; decode workers may ask all
    that a headless service resolves to."""
    asked = {name for _, container in containers(objects)
             for name in env(container).get("PKV_DIRECT_FROM", "").split(",")}
    for workload, container in containers(objects):
        if not keeps_prompts(container):
            continue
        where = title(workload)
        port = next(one["containerPort"] for one in container["ports"] if one["name"] == "grpc")
        names = [one["name"] for one in container["env"]]
        advertised = env(container).get("PKV_DIRECT_ADVERTISE")
        if advertised != f"$(POD_IP):{port}" or "POD_IP" not in names or (
                names.index("POD_IP") > names.index("PKV_DIRECT_ADVERTISE")):
            yield f"{where}: advertises {advertised}, not its own address"
        headless = [one for one in of_kind(objects, "Service")
                    if one["spec"].get("clusterIP") == "None"
                    and one["spec"]["selector"].items() <= pod_labels(workload).items()]
        wanted = {f"{one['metadata']['name']}:{port}" for one in headless}
        if not wanted & asked:
            yield f"{where}: no PKV_DIRECT_FROM names a headless service of it ({wanted})"


@rule
def default_deny(objects):
    policies = of_kind(objects, "NetworkPolicy")
    if not policies:
        yield "no network policies"
        return
    closed = [one for one in policies if one["spec"]["podSelector"] == {}
              and set(one["spec"]["policyTypes"]) == {"Ingress", "Egress"}
              and not one["spec"].get("ingress") and not one["spec"].get("egress")]
    if not closed:
        yield "no policy that denies everything by default"
    for one in policies:
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for entry in one["spec"].get(direction, []):
                if not entry.get(peers) or not entry.get("ports"):
                    yield f"{title(one)}: an {direction} rule for everybody, or for every port"


@rule
def monitoring(objects):
    monitors = of_kind(objects, "PodMonitor")
    for workload in workloads(objects) if monitors else []:
        found = [one for one in monitors if matches(one["spec"]["selector"], pod_labels(workload))]
        if len(found) != 1:
            yield f"{title(workload)}: {len(found)} pod monitors, not one"
        for one in found:
            # Prometheus' job is NAMESPACE/NAME, and deploy/prometheus/rules.yaml asks for NAME.
            process = pod(workload)["containers"][0]["command"][0].rsplit("/", 1)[-1]
            if one["metadata"]["name"] != process:
                yield f"{title(one)}: its name is not that of its process, {process}"
            for endpoint in one["spec"]["podMetricsEndpoints"]:
                if endpoint["port"] not in ports(workload):
                    yield f"{title(one)}: {title(workload)} has no port {endpoint['port']}"
                if "scrapeTimeout" in endpoint and seconds(endpoint["scrapeTimeout"]) > seconds(
                    endpoint["interval"]
                ):
                    yield f"{title(one)}: scrapes overlap"


@rule
def autoscaling(objects):
    deployments = {one["metadata"]["name"]: one for one in of_kind(objects, "Deployment")}
    monitored = bool(of_kind(objects, "PodMonitor"))
    for one in of_kind(objects, "ScaledObject"):
        target = deployments.get(one["spec"]["scaleTargetRef"]["name"])
        if target is None:
            yield f"{title(one)}: its target is not here"
            continue
        if "replicas" in target["spec"]:
            yield f"{title(target)}: replicas would fight with {title(one)}"
        if not monitored:
            yield f"{title(one)}: nothing scrapes what it asks for"
        if one["spec"].get("minReplicaCount", 0) < 1:
            yield f"{title(one)}: at zero pods nothing has metrics, and nothing would come back"
        for trigger in one["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            spaces = re.findall(r'namespace="([^"]*)"', query)
            if len(spaces) != len(re.findall(r"pkv_\w+", query)):
                yield f"{title(one)}: a series without a namespace in '{query}'"
            if set(spaces) - {one["metadata"].get("namespace")}:
                yield f"{title(one)}: asks for another namespace in '{query}'"
            if trigger.get("name") == "requests":
                batch = env(pod(target)["containers"][0]).get("PKV_MAX_BATCH", "8")
                if float(trigger["metadata"]["threshold"]) >= int(batch):
                    yield f"{title(one)}: threshold is not below PKV_MAX_BATCH {batch}"


def check(objects):
    """[(rule, message)] of everything that is wrong."""
    return [(name, message) for name, run in RULES.items() for message in run(objects)]
