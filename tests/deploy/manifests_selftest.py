"""Proves that schema and policies can fail: typical mistakes, each made in a sound overlay.

Usage: manifests_selftest.py
"""

import copy
import unittest

from manifests import K8S, Schema, render
from policy import RULES, check, pod

# The overlay that has everything.
SOUND = render(K8S / "overlays" / "disaggregated-nccl")
# And one that has a disk.
SSD = render(K8S / "overlays" / "disaggregated-ssd")
SCHEMA = Schema()


def find(objects, kind, name):
    return next(one for one in objects
                if one["kind"] == kind and one["metadata"]["name"] == name)


def spec_of(objects, name):
    return pod(find(objects, "StatefulSet" if name == "pkvd" else "Deployment", name))


def container_of(objects, name):
    return spec_of(objects, name)["containers"][0]


def set_env(container, name, value):
    next(entry for entry in container["env"] if entry["name"] == name)["value"] = value


def rename(mapping, old, other):
    mapping[other] = mapping.pop(old)


def trigger_of(objects, name, index):
    return find(objects, "ScaledObject", name)["spec"]["triggers"][index]


# What is wrong, and a word of the message that must name it.
SCHEMA_MISTAKES = [
    ("readOnlyRootFileSystem", lambda o: rename(
        container_of(o, "pkvd")["securityContext"], "readOnlyRootFilesystem",
        "readOnlyRootFileSystem")),
    ("livelinessProbe", lambda o: rename(
        container_of(o, "decode"), "livenessProbe", "livelinessProbe")),
    ("'7440'", lambda o: container_of(o, "pkvd")["readinessProbe"]["grpc"].update(port="7440")),
    ("grpc", lambda o: container_of(o, "pkvd")["readinessProbe"]["grpc"].pop("port")),
    ("valid under each of", lambda o: container_of(o, "pkvd")["readinessProbe"].update(
        tcpSocket={"port": 7440})),
    ("70000", lambda o: container_of(o, "pkvd")["ports"][0].update(containerPort=70000)),
    ("'9440'", lambda o: container_of(o, "pkvd")["ports"][1].update(containerPort="9440")),
    ("30", lambda o: set_env(container_of(o, "decode"), "PKV_DRAIN_TIMEOUT", 30)),
    ("PKV-LISTEN", lambda o: container_of(o, "pkvd")["env"][0].update(name="PKV-LISTEN")),
    ("8Gb", lambda o: container_of(o, "pkvd")["resources"]["limits"].update(memory="8Gb")),
    ("nvidia.com/gpus", lambda o: rename(
        container_of(o, "decode")["resources"]["limits"], "nvidia.com/gpu", "nvidia.com/gpus")),
    ("terminationGracePeriod", lambda o: rename(
        spec_of(o, "decode"), "terminationGracePeriodSeconds", "terminationGracePeriod")),
    ("'true'", lambda o: spec_of(o, "decode")["securityContext"].update(runAsNonRoot="true")),
    ("image", lambda o: container_of(o, "prefill").pop("image")),
    ("replica", lambda o: find(o, "StatefulSet", "pkvd")["spec"].update(replica=2)),
    ("serviceName", lambda o: find(o, "StatefulSet", "pkvd")["spec"].pop("serviceName")),
    ("selector", lambda o: find(o, "Deployment", "decode")["spec"].pop("selector")),
    ("maxUnavailible", lambda o: rename(
        find(o, "PodDisruptionBudget", "pkvd")["spec"], "maxUnavailable", "maxUnavailible")),
    ("policy/v1beta1", lambda o: find(o, "PodDisruptionBudget", "pkvd").update(
        apiVersion="policy/v1beta1")),
    ("inn", lambda o: find(o, "NetworkPolicy", "workers-to-pkvd")["spec"]["podSelector"][
        "matchExpressions"][0].update(operator="inn")),
    ("policyType", lambda o: rename(
        find(o, "NetworkPolicy", "pkvd")["spec"], "policyTypes", "policyType")),
    ("podSelectors", lambda o: rename(
        find(o, "NetworkPolicy", "pkvd")["spec"]["ingress"][0]["from"][0], "podSelector",
        "podSelectors")),
    ("'port' is a dependency of 'endPort'", lambda o: find(o, "NetworkPolicy", "nccl-holders")[
        "spec"]["ingress"][0]["ports"][0].pop("port")),
    ("kernel.msgmax", lambda o: spec_of(o, "pkvd")["securityContext"]["sysctls"][0].update(
        name="kernel.msgmax")),
    ("podMetricEndpoints", lambda o: rename(
        find(o, "PodMonitor", "pkvd")["spec"], "podMetricsEndpoints", "podMetricEndpoints")),
    ("'15'", lambda o: find(o, "PodMonitor", "pkvd")["spec"]["podMetricsEndpoints"][0].update(
        interval="15")),
    ("0.8", lambda o: trigger_of(o, "decode", 0)["metadata"].update(threshold=0.8)),
    ("serverAdress", lambda o: rename(
        trigger_of(o, "decode", 0)["metadata"], "serverAddress", "serverAdress")),
    ("maxReplicas", lambda o: rename(
        find(o, "ScaledObject", "decode")["spec"], "maxReplicaCount", "maxReplicas")),
    ("targetPorts", lambda o: rename(
        find(o, "Service", "pkvd")["spec"]["ports"][0], "targetPort", "targetPorts")),
    ("ScheduleAnyways", lambda o: spec_of(o, "decode")["topologySpreadConstraints"][0].update(
        whenUnsatisfiable="ScheduleAnyways")),
    ("v1 Pod", lambda o: o.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})),
    ("emptyDirs", lambda o: rename(spec_of(o, "decode")["volumes"][1], "emptyDir", "emptyDirs")),
    ("exec", lambda o: container_of(o, "pkvd")["lifecycle"].update(
        preStop={"sleep": {"seconds": 5}, "exec": {"command": ["sleep", "5"]}})),
]

POLICY_MISTAKES = {
    "namespace": [
        lambda o: find(o, "Namespace", "patternkv")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "baseline"}),
        lambda o: find(o, "NetworkPolicy", "pkvd")["metadata"].pop("namespace"),
        lambda o: o.remove(find(o, "Namespace", "patternkv")),
    ],
    "image-tag": [
        lambda o: container_of(o, "pkvd").update(image="registry.example.com:5000/patternkv"),
        lambda o: container_of(o, "decode").update(image="patternkv-cuda:latest"),
    ],
    "restricted-pods": [
        lambda o: spec_of(o, "pkvd")["securityContext"].update(runAsNonRoot=False),
        lambda o: spec_of(o, "pkvd")["securityContext"].update(runAsUser=0),
        lambda o: spec_of(o, "decode")["securityContext"].pop("seccompProfile"),
        lambda o: spec_of(o, "decode").update(hostNetwork=True),
        lambda o: spec_of(o, "prefill")["volumes"].append(
            {"name": "host", "hostPath": {"path": "/"}}),
    ],
    "restricted-containers": [
        lambda o: container_of(o, "pkvd")["securityContext"].update(readOnlyRootFilesystem=False),
        lambda o: container_of(o, "pkvd")["securityContext"].pop("allowPrivilegeEscalation"),
        lambda o: container_of(o, "decode")["securityContext"].update(
            capabilities={"drop": ["ALL"], "add": ["IPC_LOCK"]}),
        lambda o: container_of(o, "decode")["securityContext"].update(privileged=True),
        lambda o: container_of(o, "decode")["securityContext"].update(runAsUser=0),
        lambda o: container_of(o, "decode")["securityContext"].update(
            seccompProfile={"type": "Unconfined"}),
    ],
    "api-access": [
        lambda o: spec_of(o, "pkvd").pop("automountServiceAccountToken"),
        lambda o: spec_of(o, "pkvd").pop("serviceAccountName"),
        lambda o: find(o, "ServiceAccount", "decode").update(automountServiceAccountToken=True),
    ],
    "service-links": [lambda o: spec_of(o, "prefill").pop("enableServiceLinks")],
    "probes": [
        lambda o: container_of(o, "pkvd").pop("startupProbe"),
        lambda o: container_of(o, "decode").pop("readinessProbe"),
        lambda o: container_of(o, "decode")["livenessProbe"]["grpc"].update(port=7442),
        lambda o: container_of(o, "decode")["ports"].pop(),
        lambda o: container_of(o, "decode")["livenessProbe"]["grpc"].update(
            service="pkv-readiness"),
        lambda o: container_of(o, "prefill")["startupProbe"]["grpc"].pop("service"),
        lambda o: container_of(o, "pkvd")["livenessProbe"].pop("timeoutSeconds"),
        lambda o: container_of(o, "pkvd").update(livenessProbe={
            "tcpSocket": {"port": "grpc"}, "periodSeconds": 5, "timeoutSeconds": 1,
            "failureThreshold": 3}),
    ],
    "resources": [
        lambda o: container_of(o, "pkvd")["resources"].pop("requests"),
        lambda o: container_of(o, "pkvd")["resources"]["requests"].pop("cpu"),
        lambda o: container_of(o, "pkvd")["resources"]["limits"].update(memory="512Gi"),
        lambda o: container_of(o, "decode")["resources"]["requests"].update(
            {"nvidia.com/gpu": 2}),
        lambda o: container_of(o, "decode")["resources"]["limits"].pop("cpu"),
    ],
    "capacity": [
        lambda o: set_env(container_of(o, "pkvd"), "PKV_CAPACITY", "200GiB"),
        lambda o: container_of(o, "pkvd")["env"].remove(
            {"name": "PKV_CAPACITY", "value": "180GiB"}),
    ],
    "drain-time": [
        lambda o: set_env(container_of(o, "decode"), "PKV_DRAIN_TIMEOUT", "320s"),
        lambda o: spec_of(o, "pkvd").pop("terminationGracePeriodSeconds"),
        lambda o: container_of(o, "prefill").pop("lifecycle"),
    ],
    "disruption": [
        lambda o: o.remove(find(o, "PodDisruptionBudget", "decode")),
        lambda o: find(o, "PodDisruptionBudget", "pkvd")["spec"].update(maxUnavailable=0),
        lambda o: find(o, "PodDisruptionBudget", "pkvd")["spec"].pop("unhealthyPodEvictionPolicy"),
    ],
    "spread": [
        lambda o: spec_of(o, "pkvd")["topologySpreadConstraints"].pop(),
        lambda o: spec_of(o, "decode").pop("topologySpreadConstraints"),
        lambda o: spec_of(o, "decode")["topologySpreadConstraints"][0]["labelSelector"][
            "matchLabels"].update({"app.kubernetes.io/component": "prefill"}),
    ],
    "selectors": [
        lambda o: find(o, "NetworkPolicy", "pkvd")["spec"]["podSelector"]["matchLabels"].update(
            {"app.kubernetes.io/component": "pkv"}),
        lambda o: find(o, "Service", "decode")["spec"].update(selector={"app": "decode"}),
        lambda o: find(o, "Deployment", "decode")["spec"]["selector"]["matchLabels"].update(
            {"app.kubernetes.io/component": "prefill"}),
    ],
    "addresses": [
        lambda o: set_env(container_of(o, "pkvd"), "PKV_LISTEN", "127.0.0.1:7440"),
        lambda o: set_env(container_of(o, "decode"), "PKV_METRICS_LISTEN", "0.0.0.0:9440"),
        lambda o: set_env(container_of(o, "decode"), "PKV_HEALTH_LISTEN", "0.0.0.0:8440"),
        lambda o: find(o, "Service", "pkvd")["spec"].pop("clusterIP"),
        lambda o: find(o, "Service", "decode")["spec"]["ports"][0].update(targetPort="http"),
    ],
    "cache-servers": [
        lambda o: find(o, "StatefulSet", "pkvd")["spec"].update(replicas=4),
        lambda o: find(o, "StatefulSet", "pkvd")["spec"].pop("podManagementPolicy"),
        lambda o: set_env(container_of(o, "decode"), "PKV_CACHE", "pkvd:7440"),
        lambda o: set_env(container_of(o, "decode"), "PKV_CACHE", ",".join(
            f"pkvd-{i}.pkvd:7440" for i in (1, 0, 2))),
        lambda o: container_of(o, "prefill")["env"].remove(next(
            e for e in container_of(o, "prefill")["env"] if e["name"] == "PKV_CACHE")),
    ],
    "unique-names": [
        lambda o: container_of(o, "pkvd")["env"].append(
            {"name": "PKV_LISTEN", "value": "0.0.0.0:7440"}),
        lambda o: container_of(o, "decode")["volumeMounts"][0].update(name="model"),
        lambda o: o.append(find(o, "Service", "pkvd")),
    ],
    "gpus": [
        lambda o: container_of(o, "decode")["resources"]["limits"].pop("nvidia.com/gpu"),
        lambda o: set_env(container_of(o, "decode"), "PKV_DEVICE", "cpu"),
        lambda o: set_env(container_of(o, "pkvd"), "PKV_NCCL_DEVICE", "-1"),
        lambda o: container_of(o, "pkvd")["resources"]["limits"].pop("nvidia.com/gpu"),
        lambda o: spec_of(o, "decode").pop("tolerations"),
        lambda o: spec_of(o, "decode").pop("nodeSelector"),
        lambda o: next(v for v in spec_of(o, "decode")["volumes"] if v["name"] == "shm").update(
            emptyDir={}),
        lambda o: next(v for v in spec_of(o, "decode")["volumes"] if v["name"] == "shm")[
            "emptyDir"].update(sizeLimit="64Gi"),
    ],
    "ssd": [
        lambda o: set_env(container_of(o, "pkvd"), "PKV_SSD_CAPACITY", "1000GiB"),
        lambda o: set_env(container_of(o, "pkvd"), "PKV_SSD_DIR", "/tmp"),
        lambda o: container_of(o, "pkvd")["env"].remove(next(
            e for e in container_of(o, "pkvd")["env"] if e["name"] == "PKV_SSD_CAPACITY")),
        lambda o: container_of(o, "pkvd")["volumeMounts"][0].update(readOnly=True),
        lambda o: find(o, "StatefulSet", "pkvd")["spec"]["volumeClaimTemplates"][0]["spec"].update(
            accessModes=["ReadWriteMany"]),
        lambda o: find(o, "StatefulSet", "pkvd")["spec"].pop(
            "persistentVolumeClaimRetentionPolicy"),
        lambda o: spec_of(o, "pkvd")["securityContext"].pop("fsGroup"),
    ],
    "nccl": [
        lambda o: set_env(container_of(o, "decode"), "PKV_TRANSPORT", "grpc"),
        lambda o: spec_of(o, "pkvd")["securityContext"].pop("sysctls"),
        lambda o: spec_of(o, "decode")["securityContext"]["sysctls"][0].update(
            value="1024 60999"),
        lambda o: find(o, "NetworkPolicy", "nccl-decode")["spec"]["ingress"][0]["ports"][
            0].update(endPort=50000),
        lambda o: [o.remove(find(o, "NetworkPolicy", name))
                   for name in ("nccl-holders", "nccl-decode")],
    ],
    "direct": [
        lambda o: set_env(container_of(o, "decode"), "PKV_DIRECT_FROM", "prefill-0.prefill:7441"),
        lambda o: set_env(container_of(o, "decode"), "PKV_DIRECT_FROM", "prefill:7440"),
        lambda o: set_env(container_of(o, "prefill"), "PKV_DIRECT_ADVERTISE", "0.0.0.0:7441"),
        lambda o: set_env(container_of(o, "prefill"), "PKV_DIRECT_ADVERTISE", "$(POD_IP):7440"),
        lambda o: container_of(o, "prefill")["env"].remove(next(
            one for one in container_of(o, "prefill")["env"] if one["name"] == "POD_IP")),
        lambda o: find(o, "Service", "prefill")["spec"].pop("clusterIP"),
    ],
    "default-deny": [
        lambda o: o.remove(find(o, "NetworkPolicy", "default-deny")),
        lambda o: find(o, "NetworkPolicy", "default-deny")["spec"].update(
            policyTypes=["Ingress"]),
        lambda o: find(o, "NetworkPolicy", "pkvd")["spec"]["ingress"][0].pop("from"),
        lambda o: find(o, "NetworkPolicy", "workers-to-pkvd")["spec"]["egress"][0].pop("ports"),
    ],
    "monitoring": [
        lambda o: o.remove(find(o, "PodMonitor", "pkv-decode")),
        lambda o: find(o, "PodMonitor", "pkv-decode")["metadata"].update(name="decode"),
        lambda o: find(o, "PodMonitor", "pkv-decode")["spec"]["podMetricsEndpoints"][0].update(
            port="http-metrics"),
        lambda o: find(o, "PodMonitor", "pkv-decode")["spec"]["podMetricsEndpoints"][0].update(
            scrapeTimeout="30s"),
    ],
    "autoscaling": [
        lambda o: find(o, "Deployment", "decode")["spec"].update(replicas=2),
        lambda o: find(o, "ScaledObject", "decode")["spec"]["scaleTargetRef"].update(name="pkvd"),
        lambda o: find(o, "ScaledObject", "decode")["spec"].update(minReplicaCount=0),
        lambda o: trigger_of(o, "decode", 1)["metadata"].update(
            query='sum(pkv_decode_sequences{namespace="other"})'),
        lambda o: trigger_of(o, "decode", 1)["metadata"].update(query="sum(pkv_decode_sequences)"),
        lambda o: trigger_of(o, "decode", 1)["metadata"].update(threshold="32"),
    ],
}


class SelfTest(unittest.TestCase):
    def test_the_sound_overlay_passes(self):
        for sound in (SOUND, SSD):
            self.assertEqual(SCHEMA.errors(sound) + check(sound), [])

    def test_schema_names_each_mistake(self):
        for word, mistake in SCHEMA_MISTAKES:
            with self.subTest(word=word):
                objects = copy.deepcopy(SOUND)
                mistake(objects)
                errors = SCHEMA.errors(objects)
                self.assertTrue(any(word in error for error in errors), errors)

    def test_every_map_of_the_schema_is_closed(self):
        """One unknown field in every map of every object, labels and annotations aside."""
        num_maps = 0
        everything = [*SOUND, find(SSD, "StatefulSet", "pkvd")]
        for index, one in enumerate(everything):
            for path in maps_of(one):
                objects = copy.deepcopy(everything)
                target = objects[index]
                for step in path:
                    target = target[step]
                target["unknownField"] = 1
                num_maps += 1
                self.assertNotEqual(SCHEMA.errors([objects[index]]), [], (index, path))
        self.assertGreater(num_maps, 300)

    def test_each_rule_finds_its_mistakes(self):
        self.assertEqual(set(POLICY_MISTAKES), set(RULES))
        for name, mistakes in POLICY_MISTAKES.items():
            for number, mistake in enumerate(mistakes):
                with self.subTest(rule=name, number=number):
                    objects = copy.deepcopy(SSD if name == "ssd" else SOUND)
                    mistake(objects)
                    self.assertIn(name, {broken for broken, _ in check(objects)})


def maps_of(value, path=()):
    if isinstance(value, dict):
        yield path
        for key, each in value.items():
            yield from maps_of(each, path + (key,))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from maps_of(each, path + (index,))


if __name__ == "__main__":
    unittest.main()
