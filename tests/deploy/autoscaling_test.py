"""The queries of the ScaledObjects, evaluated by Prometheus' own promtool on two pods' made series.

Usage: autoscaling_test.py    needs promtool (package prometheus)
"""

import math
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml

from manifests import K8S, render
from policy import of_kind

NAMESPACE = "patternkv"
QUIET_S, REFUSING_S = 240, 540  # the first refusal comes at 315 s


def made_series(pages=(100, 100, 800), namespace=NAMESPACE):
    """Samples every 15 s, for 10 minutes, of pods a and b; pages free, cached and referenced."""
    values = {
        # 4000 prompt tokens a second, 1000 of them from the cache.
        'pkv_worker_prompt_tokens_total{role="prefill"': "0+60000x40",
        'pkv_client_saved_prefill_tokens_total{role="prefill"': "0+15000x40",
        'pkv_worker_requests_total{role="prefill",code="OK"': "0+10x40",
        'pkv_worker_requests_total{role="prefill",code="RESOURCE_EXHAUSTED"': "0x20 1+1x20",
        'pkv_decode_pages{role="decode",state="free"': f"{pages[0]}x40",
        'pkv_decode_pages{role="decode",state="cached"': f"{pages[1]}x40",
        'pkv_decode_pages{role="decode",state="referenced"': f"{pages[2]}x40",
        'pkv_decode_sequences{role="decode",state="running"': "20x40",
        'pkv_decode_sequences{role="decode",state="fetching"': "2x40",
        'pkv_queue_depth{role="decode",queue="decode"': "3x40",
    }
    return [
        {"series": f'{name},namespace="{namespace}",pod="{pod}"}}', "values": each}
        for name, each in values.items() for pod in "ab"
    ]


def triggers():
    """{(object, trigger): metadata} of the rendered ScaledObjects."""
    return {
        (one["metadata"]["name"], trigger["name"]): trigger["metadata"]
        for one in of_kind(render(K8S / "overlays" / "disaggregated"), "ScaledObject")
        for trigger in one["spec"]["triggers"]
    }


def promtool(query, eval_s, value, series):
    """Whether Prometheus computes `value` (None: nothing), and what promtool says."""
    rule = {"record": "query", "expr": query}
    samples = [] if value is None else [{"labels": "query", "value": value}]
    test = {
        "rule_files": ["rules.yaml"], "evaluation_interval": "15s",
        "tests": [{"interval": "15s", "input_series": series, "promql_expr_test": [
            {"expr": "query", "eval_time": f"{eval_s}s", "exp_samples": samples}]}],
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rules.yaml").write_text(
            yaml.safe_dump({"groups": [{"name": "all", "rules": [rule]}]}))
        Path(folder, "test.yaml").write_text(yaml.safe_dump(test))
        done = subprocess.run(["promtool", "test", "rules", "test.yaml"], cwd=folder,
                              capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


class AutoscalingTest(unittest.TestCase):
    def expect(self, trigger, value, eval_s=QUIET_S, replicas=None, **changes):
        metadata = triggers()[trigger]
        fits, said = promtool(metadata["query"], eval_s, value, made_series(**changes))
        self.assertTrue(fits, said)
        if replicas is not None:  # as the autoscaler reckons with AverageValue
            self.assertEqual(math.ceil(value / float(metadata["threshold"])), replicas)

    def test_tokens_from_the_cache_are_no_load_for_prefill(self):
        self.expect(("prefill", "computed-tokens"), 6000, replicas=2)

    def test_no_refusal_is_no_opinion(self):
        self.expect(("prefill", "refusals"), None)

    def test_refusals_ask_for_one_pod_more(self):
        self.expect(("prefill", "refusals"), 3, eval_s=REFUSING_S, replicas=3)

    def test_pages_at_the_threshold_keep_the_number_of_pods(self):
        self.expect(("decode", "pages"), 1.6, replicas=2)

    def test_full_pages_ask_for_a_pod_more(self):
        self.expect(("decode", "pages"), 2, pages=(0, 0, 1000), replicas=3)

    def test_cached_pages_are_no_load_for_decode(self):
        self.expect(("decode", "pages"), 0.5, pages=(0, 750, 250), replicas=1)

    def test_requests_count_running_fetching_and_waiting(self):
        self.expect(("decode", "requests"), 50, replicas=3)

    def test_pods_of_another_namespace_do_not_count(self):
        for trigger in triggers():
            self.expect(trigger, None, eval_s=REFUSING_S, namespace="other")

    def test_a_wrong_value_is_noticed(self):
        query = triggers()["decode", "requests"]["query"]
        self.assertFalse(promtool(query, QUIET_S, 51, made_series())[0])

    def test_every_trigger_is_tested(self):
        self.assertEqual(set(triggers()), {
            ("prefill", "computed-tokens"), ("prefill", "refusals"),
            ("decode", "pages"), ("decode", "requests")})


if __name__ == "__main__":
    unittest.main()
