"""Conventions of Grafana boards, after grafana/dashboard-linter: prints each violation.

Usage: board_lint.py [--root DIR]      exits 1 when something is wrong.
board_lint_selftest.py proves for each rule that it can fail.
"""

import argparse
import re
import sys
from pathlib import Path

import board_schema
import boards

SOURCE = Path(__file__).resolve().parents[3]
# Grafana's own limit of a uid.
MAX_UID = 40
GRID_COLUMNS = 24
# Of PromQL, where a metric could stand.
KEYWORDS = {"and", "or", "unless", "bool", "offset"}
RULES = {}


def rule(check):
    """Registers a generator of messages about one board under its own name."""
    RULES[check.__name__.replace("_", "-")] = check
    return check


def targets(board):
    for panel in boards.panels(board):
        for target in panel["targets"]:
            yield f"{panel['title']!r} {target['refId']}", target


def selectors(expression):
    """(metric, matchers) of each series that a PromQL expression reads; no matchers are ""."""

    def blank(match):
        return " " * len(match[0])

    # Places stay as they are: the matchers are cut from the original.
    bare = re.sub(r'"[^"]*"', blank, expression)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", blank, bare)
    for match in re.finditer(r"(?<![\w:$])([a-zA-Z_:][\w:]*)(\{[^}]*\})?(?![\w:]|\s*\()", bare):
        if match[1] not in KEYWORDS:
            yield match[1], expression[slice(*match.span(2))] if match[2] else ""


@rule
def uneditable(board):
    if board["editable"]:
        yield "editable: changes belong into the repository"


@rule
def uid(board):
    if not re.fullmatch(rf"pkv-[a-z]{{1,{MAX_UID - 4}}}", board["uid"]):
        yield f"uid {board['uid']!r} is not pkv- and a word"


@rule
def tags(board):
    if "patternkv" not in board["tags"]:
        yield "no tag patternkv"


@rule
def template_datasource(board):
    variable = boards.variables(board).get("datasource")
    if variable is None or variable["type"] != "datasource":
        yield "no variable 'datasource' of type datasource"
    elif variable["label"] != "Data source":
        yield f"variable datasource: label {variable['label']!r} is not 'Data source'"


def choice_errors(board, name):
    """What is wrong with the variable that narrows a board to some targets."""
    variable = boards.variables(board).get(name)
    if variable is None or variable["type"] != "query":
        yield f"no variable '{name}' of type query"
        return
    if variable["datasource"]["uid"] != "${datasource}":
        yield f"variable {name}: its data source is not ${{datasource}}"
    if variable["label"] != name.capitalize():
        yield f"variable {name}: label {variable['label']!r} is not {name.capitalize()!r}"
    if not (variable["multi"] and variable["includeAll"] and variable["allValue"] == ".+"):
        yield f"variable {name}: not a choice of many, with all as '.+'"
    if not re.fullmatch(rf"label_values\(.+, {name}\)", variable["query"]):
        yield f"variable {name}: {variable['query']!r} does not ask for that label's values"


@rule
def template_job(board):
    yield from choice_errors(board, "job")


@rule
def template_instance(board):
    yield from choice_errors(board, "instance")


@rule
def template_on_time_change_reload(board):
    for name, variable in boards.variables(board).items():
        if variable["type"] == "query" and variable["refresh"] != 2:
            yield f"variable {name}: not read again when the time range changes"


@rule
def panel_datasource(board):
    for panel in boards.panels(board):
        if panel["datasource"]["uid"] != "${datasource}":
            yield f"{panel['title']!r}: its data source is not ${{datasource}}"
    for place, target in targets(board):
        if target["datasource"]["uid"] != "${datasource}":
            yield f"{place}: its data source is not ${{datasource}}"


@rule
def panel_title_description(board):
    for panel in boards.panels(board):
        if not panel["title"].strip():
            yield f"panel {panel['id']}: no title"
        if not panel["description"].endswith("."):
            yield f"{panel['title']!r}: its description is no sentence"


@rule
def panel_no_targets(board):
    for panel in boards.panels(board):
        if not panel["targets"]:
            yield f"{panel['title']!r}: shows nothing"


@rule
def panel_unique(board):
    every = [panel for panel in board["panels"]] + list(boards.panels(board))
    ids = {id(panel): panel["id"] for panel in every}
    if len(set(ids.values())) != len(ids):
        yield "two panels have one id"
    titles = [panel["title"] for panel in boards.panels(board)]
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        yield f"two panels are called {title!r}"
    for panel in boards.panels(board):
        refs = [target["refId"] for target in panel["targets"]]
        if len(set(refs)) != len(refs):
            yield f"{panel['title']!r}: two targets have one refId"


@rule
def panel_places(board):
    taken = {}
    for panel in board["panels"]:
        at = panel["gridPos"]
        if at["x"] < 0 or at["x"] + at["w"] > GRID_COLUMNS:
            yield f"{panel['title']!r}: wider than the grid"
        columns, lines = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        cells = {(x, y) for x in columns for y in lines}
        for other in sorted({taken[cell] for cell in cells & taken.keys()}):
            yield f"{panel['title']!r} lies over {other!r}"
        taken |= dict.fromkeys(cells, panel["title"])


@rule
def target_variables(board):
    for place, target in targets(board):
        try:
            boards.substitute(target["expr"])
        except KeyError as unknown:
            yield f"{place}: unknown variable {unknown}"


@rule
def target_rate_interval(board):
    for place, target in targets(board):
        for window in re.findall(r"\[([^\]]*)\]", target["expr"]):
            if window != "$__rate_interval":
                yield f"{place}: [{window}] instead of [$__rate_interval]"


@rule
def target_job(board):
    for place, target in targets(board):
        for metric, matchers in selectors(target["expr"]):
            if 'job=~"$job"' not in matchers:
                yield f'{place}: {metric} without job=~"$job"'


@rule
def target_instance(board):
    for place, target in targets(board):
        for metric, matchers in selectors(target["expr"]):
            if 'instance=~"$instance"' not in matchers:
                yield f'{place}: {metric} without instance=~"$instance"'


@rule
def target_counter_aggregation(board):
    """A counter, or a histogram's, says nothing until its increase is taken."""
    for place, target in targets(board):
        for metric, _ in selectors(target["expr"]):
            if not re.search(r"_(total|bucket|sum|count)$", metric):
                continue
            if not re.search(rf"\b(?:rate|increase|irate)\({re.escape(metric)}\b", target["expr"]):
                yield f"{place}: {metric} without rate or increase"


@rule
def target_quantile(board):
    """Quantiles of each instance's buckets cannot be read as one: sum them by le first."""
    for place, target in targets(board):
        for part in re.findall(r"histogram_quantile\([^,]+,(.{0,24})", target["expr"]):
            if not re.match(r" sum by \(le\b", part):
                yield f"{place}: histogram_quantile of buckets that are not summed by le"


def lint(board):
    """[(rule, message)]; the rules run on what the schema accepts alone."""
    errors = board_schema.errors(board)
    if errors:
        return [("schema", error) for error in errors]
    return [(name, message) for name, check in RULES.items() for message in check(board)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=SOURCE)
    arguments = parser.parse_args()
    found = boards.read_all(arguments.root)
    uids = [board.get("uid") for board in found.values()]
    messages = [f"{boards.FOLDER}: two boards have one uid"] if len(set(uids)) != len(uids) else []
    for file, board in found.items():
        messages += [f"{file}: {name}: {message}" for name, message in lint(board)]
    if not found:
        messages.append(f"{boards.FOLDER}: no boards")
    for message in messages:
        print(message)
    print(f"{len(found)} boards, {len(RULES) + 1} rules, {len(messages)} violations")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
