"""Every overlay of deploy/k8s renders, fits the strict schema, keeps the policies, and opens only
the paths that the processes need.

Usage: manifests_test.py    needs kustomize or kubectl, python3-yaml and python3-jsonschema
"""

import subprocess
import unittest

from manifests import K8S, Schema, overlays, render
from network_flows import Pod, may_connect, pods
from policy import check, claims, env, pod, seconds, workloads


class Rendered(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.rendered = {path.name: render(path) for path in overlays()}

    def test_the_readme_names_every_folder(self):
        text = (K8S / "README.md").read_text(encoding="utf-8")
        self.assertGreaterEqual(set(self.rendered), {"dev", "disaggregated"})
        for folder in sorted(K8S.glob("*/*/")):
            name = f"`{folder.relative_to(K8S)}`"
            if (folder / "kustomization.yaml").exists():
                self.assertIn(name, text)

    def test_base_renders_alone(self):
        self.assertEqual(len(workloads(render(K8S / "base"))), 3)

    def test_schema_has_no_objection(self):
        schema = Schema()
        for name, objects in self.rendered.items():
            with self.subTest(overlay=name):
                self.assertEqual(schema.errors(objects), [])

    def test_policies_are_kept(self):
        for name, objects in self.rendered.items():
            with self.subTest(overlay=name):
                self.assertEqual(check(objects), [])

    def test_every_component_is_used(self):
        used = "".join(
            (path / "kustomization.yaml").read_text(encoding="utf-8") for path in overlays()
        )
        for component in (K8S / "components").iterdir():
            self.assertIn(f"components/{component.name}\n", used)

    def test_dev_needs_no_gpu_no_operator_and_one_node(self):
        objects = self.rendered["dev"]
        self.assertEqual({one["apiVersion"] for one in objects},
                         {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1"})
        for workload in workloads(objects):
            is_cache = workload["metadata"]["name"] == "pkvd"
            self.assertEqual(workload["spec"]["replicas"], 3 if is_cache else 1)
            for constraint in pod(workload)["topologySpreadConstraints"]:
                self.assertEqual(constraint["whenUnsatisfiable"], "ScheduleAnyway")
            self.assertNotIn("nodeSelector", pod(workload))
            self.assertNotIn("PKV_DEVICE", env(pod(workload)["containers"][0]))

    def test_disaggregated_has_a_pool_of_gpus_for_each_worker(self):
        for workload in workloads(self.rendered["disaggregated"]):
            limits = pod(workload)["containers"][0]["resources"]["limits"]
            gpus = 0 if workload["metadata"]["name"] == "pkvd" else 1
            self.assertEqual(int(limits.get("nvidia.com/gpu", 0)), gpus)

    def test_ssd_gives_each_pkvd_a_claim_of_its_own_and_time_to_write_to_it(self):
        cache = next(one for one in workloads(self.rendered["disaggregated-ssd"])
                     if one["metadata"]["name"] == "pkvd")
        self.assertEqual(list(claims(cache)), ["ssd"])
        self.assertNotIn("volumes", pod(cache))
        settings = env(pod(cache)["containers"][0])
        self.assertEqual(settings["PKV_SSD_DIR"], "/var/lib/pkvd")
        self.assertGreater(seconds(settings["PKV_DRAIN_TIMEOUT"]), 60)

    def test_nccl_gives_each_pkvd_a_gpu_as_well_and_opens_what_pairs_need(self):
        objects = self.rendered["disaggregated-nccl"]
        for workload in workloads(objects):
            limits = pod(workload)["containers"][0]["resources"]["limits"]
            self.assertEqual(int(limits["nvidia.com/gpu"]), 1)
        pod_of = pods(objects)
        for port in (32768, 45000, 60999):
            self.assertTrue(may_connect(objects, pod_of["decode"], pod_of["pkvd"], port))
            self.assertTrue(may_connect(objects, pod_of["pkvd"], pod_of["decode"], port))
            self.assertTrue(may_connect(objects, pod_of["decode"], pod_of["prefill"], port))
            self.assertTrue(may_connect(objects, pod_of["prefill"], pod_of["decode"], port))
            for source, target in (("prefill", "pkvd"), ("pkvd", "prefill"), ("decode", "decode"),
                                   ("pkvd", "pkvd"), ("prefill", "prefill")):
                self.assertFalse(may_connect(objects, pod_of[source], pod_of[target], port))
        for port in (32767, 61000, 7442, 8440, 9440):
            self.assertFalse(may_connect(objects, pod_of["pkvd"], pod_of["decode"], port))
            self.assertFalse(may_connect(objects, pod_of["prefill"], pod_of["decode"], port))
        self.assertTrue(may_connect(objects, pod_of["decode"], pod_of["prefill"], 7441))
        self.assertFalse(may_connect(objects, pod_of["pkvd"], pod_of["prefill"], 7441))

    def test_paths_that_are_needed_are_open(self):
        for name, objects in self.rendered.items():
            with self.subTest(overlay=name):
                pod_of = pods(objects)
                client = Pod("apps", {}, {"patternkv.example.com/client": "true"})
                prometheus = Pod("monitoring", {"app": "prometheus"})
                dns = Pod("kube-system", {"k8s-app": "kube-dns"})
                for source, target, port in [
                    (pod_of["prefill"], pod_of["pkvd"], 7440),
                    (pod_of["decode"], pod_of["pkvd"], 7440),
                    (client, pod_of["prefill"], 7441),
                    (client, pod_of["decode"], 7442),
                    (prometheus, pod_of["pkvd"], 9440),
                    (prometheus, pod_of["prefill"], 9441),
                    (prometheus, pod_of["decode"], 9442),
                    (pod_of["decode"], dns, 53),
                ]:
                    self.assertTrue(may_connect(objects, source, target, port), port)
                self.assertTrue(may_connect(objects, pod_of["prefill"], dns, 53, "UDP"))

    def test_paths_that_are_not_needed_are_closed(self):
        for name, objects in self.rendered.items():
            with self.subTest(overlay=name):
                pod_of = pods(objects)
                stranger = Pod("elsewhere", {"app.kubernetes.io/name": "patternkv",
                                             "app.kubernetes.io/component": "prefill"})
                neighbour = Pod("patternkv", {"app": "intruder"})
                client = Pod("apps", {}, {"patternkv.example.com/client": "true"})
                prometheus = Pod("monitoring", {"app": "prometheus"})
                dns = Pod("kube-system", {"k8s-app": "kube-dns"})
                for source, target, port in [
                    (stranger, pod_of["pkvd"], 7440),
                    (stranger, pod_of["prefill"], 7441),
                    (neighbour, pod_of["pkvd"], 7440),
                    (client, pod_of["pkvd"], 7440),
                    (client, pod_of["decode"], 9442),
                    (prometheus, pod_of["pkvd"], 7440),
                    (prometheus, pod_of["pkvd"], 8440),
                    (client, pod_of["prefill"], 8441),
                    (pod_of["prefill"], pod_of["decode"], 8442),
                    (pod_of["pkvd"], pod_of["prefill"], 7441),
                    (pod_of["prefill"], pod_of["decode"], 7442),
                    (pod_of["prefill"], pod_of["pkvd"], 9440),
                    (pod_of["decode"], stranger, 443),
                    (pod_of["pkvd"], dns, 53),
                    (pod_of["prefill"], dns, 443),
                ]:
                    self.assertFalse(may_connect(objects, source, target, port), port)

    def test_a_misspelled_kustomization_does_not_render(self):
        with self.assertRaises(subprocess.CalledProcessError):
            render(K8S / "overlays")


if __name__ == "__main__":
    unittest.main()
