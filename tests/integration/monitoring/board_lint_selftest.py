"""Proves for each rule of board_lint.py that it can fail: our own boards, each with one change."""

import copy
import unittest

import board_lint
import boards

BOARDS = boards.read_all(board_lint.SOURCE)
OVERVIEW = BOARDS["overview.json"]
RATE = (
    "sum by (code) (rate(pkv_rpc_requests_total"
    '{job=~"$job",instance=~"$instance"}[$__rate_interval]))'
)
QUANTILE = (
    "histogram_quantile(0.5, sum by (le) (rate(pkv_rpc_duration_seconds_bucket"
    '{job=~"$job",instance=~"$instance",method="Get"}[$__rate_interval])))'
)


def changed(change):
    board = copy.deepcopy(OVERVIEW)
    change(board)
    return board


def with_expression(expression):
    def change(board):
        next(boards.panels(board))["targets"][0]["expr"] = expression

    return change


def panel(**values):
    return lambda board: next(boards.panels(board)).update(values)


def variable(name, **values):
    return lambda board: boards.variables(board)[name].update(values)


def without_variable(name):
    def change(board):
        listed = board["templating"]["list"]
        listed.remove(boards.variables(board)[name])

    return change


def second_panel_at_the_first(board):
    first, second, *_ = boards.panels(board)
    second["gridPos"] = dict(first["gridPos"])


def same_id_twice(board):
    board["panels"][1]["id"] = board["panels"][2]["id"]


def same_title_twice(board):
    first, second, *_ = boards.panels(board)
    second["title"] = first["title"]


def foreign_target_source(board):
    next(boards.panels(board))["targets"][0]["datasource"]["uid"] = "abc"


def misspelt_field(board):
    first = next(boards.panels(board))
    first["desription"] = first.pop("description")


def unknown_unit(board):
    next(boards.panels(board))["fieldConfig"]["defaults"]["unit"] = "parsecs"


def no_unit(board):
    next(boards.panels(board))["fieldConfig"]["defaults"].pop("unit")


MUTATIONS = [
    ("schema", misspelt_field),
    ("schema", unknown_unit),
    ("schema", no_unit),
    ("schema", panel(type="graph")),
    ("schema", lambda board: board.update(schemaVersion="39")),
    ("schema", lambda board: board.update(__inputs=[])),
    ("schema", lambda board: board.update(version=True)),
    ("schema", lambda board: board.update(panels={})),
    ("uneditable", lambda board: board.update(editable=True)),
    ("uid", lambda board: board.update(uid="overview")),
    ("tags", lambda board: board.update(tags=[])),
    ("template-datasource", without_variable("datasource")),
    ("template-datasource", variable("datasource", label="Source")),
    ("template-job", without_variable("job")),
    ("template-job", variable("job", multi=False)),
    ("template-job", variable("job", allValue=".*")),
    ("template-job", variable("job", label="job")),
    ("template-job", variable("job", datasource={"type": "prometheus", "uid": "abc"})),
    ("template-instance", without_variable("instance")),
    ("template-instance", variable("instance", query="label_values(up, pod)")),
    ("template-on-time-change-reload", variable("job", refresh=1)),
    ("panel-datasource", panel(datasource={"type": "prometheus", "uid": "abc"})),
    ("panel-datasource", foreign_target_source),
    ("panel-title-description", panel(title=" ")),
    ("panel-title-description", panel(description="")),
    ("panel-no-targets", panel(targets=[])),
    ("panel-unique", same_id_twice),
    ("panel-unique", same_title_twice),
    ("panel-places", second_panel_at_the_first),
    ("panel-places", panel(gridPos={"x": 20, "y": 100, "w": 8, "h": 8})),
    ("target-variables", with_expression(RATE.replace("$job", "$jop"))),
    ("target-rate-interval", with_expression(RATE.replace("$__rate_interval", "5m"))),
    ("target-job", with_expression(RATE.replace('job=~"$job",', ""))),
    ("target-job", with_expression("up")),
    ("target-job", with_expression(RATE + " / up")),
    ("target-instance", with_expression(RATE.replace(',instance=~"$instance"', ""))),
    ("target-instance", with_expression(RATE.replace('"$instance"', '"a"'))),
    ("target-counter-aggregation", with_expression(RATE.replace("rate", "max_over_time", 1))),
    ("target-quantile", with_expression(QUANTILE.replace("sum by (le) ", ""))),
    ("target-quantile", with_expression(QUANTILE.replace("sum by (le)", "sum by (method)"))),
]


class BoardLintTest(unittest.TestCase):
    def test_finds_nothing_in_our_boards(self):
        for file, board in BOARDS.items():
            self.assertEqual(board_lint.lint(board), [], file)

    def test_finds_each_mutation_by_its_rule(self):
        for name, change in MUTATIONS:
            with self.subTest(name):
                found = {rule for rule, _ in board_lint.lint(changed(change))}
                self.assertIn(name, found)

    def test_every_rule_has_a_mutation(self):
        self.assertEqual({name for name, _ in MUTATIONS}, {"schema", *board_lint.RULES})

    def test_good_expressions_stay_silent(self):
        for expression in (RATE, QUANTILE):
            self.assertEqual(board_lint.lint(changed(with_expression(expression))), [])


class SelectorsTest(unittest.TestCase):
    def check(self, expression, *expected):
        self.assertEqual(list(board_lint.selectors(expression)), list(expected))

    def test_are_the_metrics_with_their_matchers(self):
        self.check("sum by (le, job) (rate(a_total[5m]))", ("a_total", ""))
        self.check('a{x="}b",y=~"c"} / b', ("a", '{x="}b",y=~"c"}'), ("b", ""))

    def test_leave_out_functions_labels_numbers_and_variables(self):
        self.check("histogram_quantile(0.9, sum without (pod) (rate(x[$__range])))", ("x", ""))
        self.check("a and on (job) b unless c > 1e3", ("a", ""), ("b", ""), ("c", ""))

    def test_know_recorded_names(self):
        self.check("0.5 * avg_over_time(job:a:ratio_rate5m[1d])", ("job:a:ratio_rate5m", ""))


if __name__ == "__main__":
    unittest.main()
