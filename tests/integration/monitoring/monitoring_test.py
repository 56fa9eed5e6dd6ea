"""Boards, rules, alerts and documents against real processes under load and a real Prometheus.

Starts pkvd, a prefill and a decode worker on a trained model, a Prometheus with the shipped
configuration, and load; then every expression that the project ships must return data that is
neither empty nor NaN, every metric that is named must exist, and the metric reference must say
what is exported. promtool runs the alerts' unit tests, and mutants of every alert must fail them.

PKV_BINARY_DIR names the build folder, PKV_SOURCE_DIR the repository; ctest sets both.
"""

import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import board_lint
import board_page
import board_picture
import boards
import fleet
import metrics_page

SOURCE = Path(os.environ.get("PKV_SOURCE_DIR", metrics_page.SOURCE))
LOAD_S = 12
ALERT_TESTS = ("alerts_test.yaml", "alerts_days_test.yaml")
# Expressions that may return nothing or NaN in a healthy fleet under load, and why.
MAY_BE_EMPTY = {}
SEVERITIES = {"critical", "warning", "info"}
# Made by Prometheus itself.
FOREIGN_METRICS = {"up"}
DOCUMENT_FOLDERS = ("client", "deploy", "kernels", "kvstore", "proto", "tests", "worker")


def documents():
    yield SOURCE / "README.md"
    for folder in DOCUMENT_FOLDERS:
        yield from sorted((SOURCE / folder).rglob("*.md"))


def build_names():
    """What CMake defines: functions, libraries and programs."""
    files = [SOURCE / "CMakeLists.txt", *(SOURCE / "deploy/cmake").iterdir()]
    for folder in DOCUMENT_FOLDERS:
        files += (SOURCE / folder).rglob("CMakeLists.txt")
    return {name for path in files for name in re.findall(r"\bpkv_\w+", path.read_text())}


def snippets():
    """(place, expression) of each line of a promql block in a document."""
    for path in documents():
        for block in re.findall(r"^```promql\n(.*?)^```", path.read_text(), re.M | re.S):
            for line in block.splitlines():
                if line.strip() and not line.startswith("#"):
                    yield str(path.relative_to(SOURCE)), line.strip()


def operands(query):
    """The sides of an alert's comparisons that are not numbers: in a healthy fleet they have
    values, though the alert has none. None of our alerts compares within parentheses."""
    for part in re.split(r" (?:and|or|unless) ", query):
        for side in re.split(r" (?:==|!=|<=|>=|<|>) ", part):
            if side.count("(") != side.count(")"):
                raise ValueError(f"cannot take this alert apart: {query}")
            absent = re.fullmatch(r"absent\((.*)\)", side)
            if not re.fullmatch(r"[-+.\de]+", side):
                yield absent[1] if absent else side


def promtool(*arguments, **options):
    return subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, check=False, **options
    )


class LiveTest(unittest.TestCase):
    # Of differences that are shown: all.
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.scratch = Path(tempfile.mkdtemp(prefix="pkv-monitoring-"))
        cls.addClassCleanup(shutil.rmtree, cls.scratch, ignore_errors=True)
        cls.fleet = fleet.Fleet(os.environ["PKV_BINARY_DIR"], SOURCE, cls.scratch)
        cls.addClassCleanup(cls.fleet.close)
        cls.prometheus = fleet.Prometheus(SOURCE, cls.fleet, cls.scratch)
        cls.addClassCleanup(cls.prometheus.close)
        # Two scrapes before the load: the first increase of each counter counts too.
        wait = cls.prometheus.wait_for_samples
        wait("count_over_time(up[1m]) > 1 and up == 1", len(fleet.ROLES), "scrapes")
        cls.report = cls.fleet.load(LOAD_S)
        # And one of each after it, evaluation of what the scrapes say included.
        end = time.time()
        wait(f"timestamp(up) > {end} and up == 1", len(fleet.ROLES), "last scrapes")
        scraped = time.time()
        wait(f"timestamp(instance_tier:pkv_tier_fill:ratio) > {scraped}", 1, "records")
        wait(f"timestamp(job:pkv_decode_refusals:ratio_rate5m) > {scraped}", 1, "records")
        cls.now = time.time()
        cls.boards = boards.read_all(SOURCE)
        cls.groups = cls.prometheus.api("rules")["groups"]
        rules = [rule for group in cls.groups for rule in group["rules"]]
        cls.records = [rule for rule in rules if rule["type"] == "recording"]
        cls.alerts = [rule for rule in rules if rule["type"] == "alerting"]
        cls.pages = {role: metrics_page.parse(cls.fleet.scrape(role)) for role in fleet.ROLES}
        cls.exported = {
            name
            for page in cls.pages.values()
            for family in page.values()
            for name in family.names()
        }

    def samples(self, expression):
        return self.prometheus.query(expression, self.now)

    def faults(self, expression):
        """What is wrong with an expression: it is refused, has no data, or is no number."""
        if expression in MAY_BE_EMPTY:
            return []
        try:
            samples = self.samples(boards.substitute(expression))
        except RuntimeError as refusal:
            return [f"refused: {refusal}"]
        if not samples:
            return ["no data"]
        return [f"{labels} is {value}" for labels, value in samples if not math.isfinite(value)]

    def targets(self):
        for file, board in self.boards.items():
            for place, target in board_lint.targets(board):
                yield f"{file} {place}", target

    def expressions(self):
        """(place, expression) of all that is shipped."""
        for place, target in self.targets():
            yield place, target["expr"]
        for rule in self.records + self.alerts:
            yield rule["name"], rule["query"]
        yield from snippets()

    def test_load_was_served_and_did_not_fit(self):
        """What the other tests stand on: requests, hits, evictions."""
        self.assertGreater(self.report["requests"]["ok"], 0)
        self.assertEqual(self.report["requests"]["failed"], 0)
        self.assertGreater(self.report["tokens"]["cached"], 0)
        for tier in ("dram", "ssd"):
            [(_, evictions)] = self.samples(f'sum(pkv_evictions_total{{tier="{tier}"}})')
            self.assertGreater(evictions, 0)

    def test_board_expressions_have_data(self):
        targets = list(self.targets())
        self.assertTrue(targets)
        for place, target in targets:
            with self.subTest(place):
                self.assertEqual(self.faults(target["expr"]), [], target["expr"])

    def test_main_panels_are_drawn_from_what_prometheus_has(self):
        samples = board_picture.samples_of(self.prometheus, self.now - LOAD_S, self.now)
        for file, titles in board_page.MAIN_PANELS.items():
            panels = {panel["title"]: panel for panel in boards.panels(self.boards[file])}
            for title in titles:
                with self.subTest(f"{file} {title}"):
                    found = samples(panels[title])
                    self.assertTrue(any(len(each.finite()) > 1 for each in found), found)
                    card = board_page.card(panels[title], found, self.now - LOAD_S, self.now)
                    self.assertIn("<svg", card)

    def test_legends_name_labels_that_are_there(self):
        for place, target in self.targets():
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            for labels, _ in self.samples(boards.substitute(target["expr"])):
                with self.subTest(place):
                    self.assertLessEqual(wanted, labels.keys())

    def test_board_variables_offer_every_process(self):
        for file, board in self.boards.items():
            for name, variable in boards.variables(board).items():
                if variable["type"] != "query":
                    continue
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
                series, label = asked.groups()
                query = boards.substitute(f"count by ({label}) ({series})")
                with self.subTest(f"{file} {name}"):
                    offered = [labels.get(label) for labels, _ in self.samples(query)]
                    self.assertEqual(len(offered), len(fleet.ROLES), offered)
                    self.assertNotIn(None, offered)

    def test_records_have_data(self):
        self.assertTrue(self.records)
        for rule in self.records:
            with self.subTest(rule["name"]):
                self.assertEqual(rule["health"], "ok", rule.get("lastError"))
                self.assertEqual(self.faults(rule["query"]), [])
                self.assertEqual(self.faults(rule["name"]), [])

    def test_records_are_all_read(self):
        read = {
            metric
            for _, expression in self.expressions()
            for metric, _ in board_lint.selectors(expression)
        }
        self.assertLessEqual({rule["name"] for rule in self.records}, read)

    def test_alerts_compare_data_and_none_fires(self):
        self.assertTrue(self.alerts)
        for rule in self.alerts:
            with self.subTest(rule["name"]):
                self.assertEqual(rule["health"], "ok", rule.get("lastError"))
                self.assertNotEqual(rule["state"], "firing")
                for operand in operands(rule["query"]):
                    self.assertEqual(self.faults(operand), [], operand)

    def test_document_snippets_have_data(self):
        found = list(snippets())
        self.assertTrue(found)
        for place, expression in found:
            with self.subTest(f"{place}: {expression}"):
                self.assertEqual(self.faults(expression), [])

    def test_exceptions_are_needed(self):
        shipped = {expression for _, expression in self.expressions()}
        self.assertLessEqual(MAY_BE_EMPTY.keys(), shipped)

    def test_a_wrong_expression_is_found(self):
        """The checks above can fail."""
        self.assertEqual(self.faults("sum(rate(pkv_rpc_request_total[1m]))"), ["no data"])
        self.assertIn("is nan", str(self.faults("sum(up) * 0 / 0")))
        self.assertIn("is inf", str(self.faults("sum(up) / 0")))
        self.assertIn("refused", str(self.faults("sum(up")))

    def test_metrics_that_are_read_are_exported(self):
        known = self.exported | FOREIGN_METRICS | {rule["name"] for rule in self.records}
        for place, expression in self.expressions():
            with self.subTest(place):
                read = {metric for metric, _ in board_lint.selectors(expression)}
                self.assertTrue(read)
                self.assertLessEqual(read, known)

    def test_metrics_that_documents_name_are_exported(self):
        families = {name for page in self.pages.values() for name in page}
        known = self.exported | families | build_names()
        for path in documents():
            named = set(re.findall(r"(?<![\w:/.])pkv_\w+(?![\w:]|\.\w)", path.read_text()))
            with self.subTest(str(path.relative_to(SOURCE))):
                self.assertEqual(named - known, set())

    def test_reference_says_what_is_exported(self):
        self.assertMultiLineEqual(
            (SOURCE / metrics_page.PAGE).read_text(),
            metrics_page.render(self.pages),
            "run tests/integration/monitoring/metrics_page.py",
        )

    def test_promtool_accepts_what_is_exported(self):
        for role in fleet.ROLES:
            with self.subTest(role):
                check = promtool("check", "metrics", input=self.fleet.scrape(role))
                self.assertEqual((check.returncode, check.stdout + check.stderr), (0, ""))

    def test_alerts_tell_what_to_do(self):
        runbook = (SOURCE / "deploy/RUNBOOK.md").read_text()
        sections = dict(re.findall(r"^## (Pkv\w+)$(.*?)(?=^## |\Z)", runbook, re.M | re.S))
        self.assertEqual(sorted(sections), sorted(rule["name"] for rule in self.alerts))
        for name, text in sections.items():
            self.assertIn("```", text, f"{name}: nothing to look at first")
        for rule in self.alerts:
            with self.subTest(rule["name"]):
                self.assertRegex(rule["name"], "^Pkv[A-Za-z]+$")
                self.assertIn(rule["labels"].get("severity"), SEVERITIES)
                annotations = rule["annotations"]
                self.assertRegex(annotations["summary"], r"^[A-Z][^{}]*\.$")
                self.assertRegex(annotations["description"], r"\.$")
                anchor = f"deploy/RUNBOOK.md#{rule['name'].lower()}"
                self.assertEqual(annotations["runbook_url"], anchor)

    def test_each_case_of_the_alert_tests_is_needed(self):
        """Each alert, made never true, always true, and without its `for`, fails its own tests."""
        names = {rule["name"] for rule in self.alerts}
        waiting = {rule["name"] for rule in self.alerts if rule["duration"] > 0}
        self.assertEqual(self.failing_alerts(lambda rule: rule), set())
        self.assertEqual(self.failing_alerts(never), names)
        self.assertEqual(self.failing_alerts(always), names)
        self.assertEqual(self.failing_alerts(at_once), waiting)

    def failing_alerts(self, mutate):
        """The alerts whose unit tests fail when all are changed by `mutate`."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        groups = []
        for group in self.groups:
            rules = [mutate(shipped(rule)) for rule in group["rules"] if rule in self.alerts]
            if rules:
                groups.append({"name": group["name"], "rules": rules})
        # JSON is YAML.
        (folder / "alerts.yaml").write_text(json.dumps({"groups": groups}))
        for name in ("rules.yaml", *ALERT_TESTS):
            shutil.copy(SOURCE / "deploy/prometheus" / name, folder)
        run = promtool("test", "rules", *ALERT_TESTS, cwd=folder)
        failing = set(re.findall(r"alertname: ?(\w+), time", run.stdout + run.stderr))
        self.assertEqual(run.returncode != 0, bool(failing), run.stdout + run.stderr)
        return failing


def shipped(rule):
    """As a rule file has it, of what Prometheus says of a loaded alert."""
    return {
        "alert": rule["name"],
        "expr": rule["query"],
        "for": f"{rule['duration']:g}s",
        "labels": rule["labels"],
        "annotations": rule["annotations"],
    }


def never(rule):
    return rule | {"expr": "vector(0) > 1"}


def always(rule):
    """With the labels and the value it has when true."""
    if rule["expr"].startswith("absent("):
        return rule | {"expr": "vector(1)"}
    return rule | {"expr": re.sub(r" (?:==|<|>) ", " > -Inf + 0 * ", rule["expr"])}


def at_once(rule):
    return rule | {"for": "0s"}


class ShippedFilesTest(unittest.TestCase):
    def test_promtool_accepts_the_configuration_and_its_rules(self):
        check = promtool("check", "config", str(SOURCE / "deploy/prometheus/prometheus.yaml"))
        self.assertEqual(check.returncode, 0, check.stdout + check.stderr)

    def test_alerts_are_taken_apart_at_their_comparisons(self):
        self.assertEqual(list(operands("a < 0.5 * b and c > 1e-3")), ["a", "0.5 * b", "c"])
        self.assertEqual(list(operands('absent(up{job="x"})')), ['up{job="x"}'])
        with self.assertRaises(ValueError):
            list(operands("(a > 1) * b"))


if __name__ == "__main__":
    unittest.main()
