"""Grafana boards: reading them, and what stands for their variables where there is no Grafana."""

import json
import re
from pathlib import Path

FOLDER = "deploy/grafana"
# What a board's variables are where no Grafana fills them in: everything, over a minute.
VARIABLES = {"__rate_interval": "1m", "__range": "1m", "job": ".+", "instance": ".+"}


def read_all(source):
    """The boards by file name."""
    paths = sorted((Path(source) / FOLDER).glob("*.json"))
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def panels(board):
    """Those that show something, rows' own included."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def variables(board):
    return {variable["name"]: variable for variable in board["templating"]["list"]}


def substitute(expression, **others):
    """Without variables, which are as above or as in `others`; KeyError names one that is not
    known."""
    values = VARIABLES | others
    return re.sub(
        r"\$(?:\{(\w+)\}|(\w+))", lambda match: values[match[1] or match[2]], expression
    )
