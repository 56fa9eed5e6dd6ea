"""The part of Grafana's dashboard schema (classic, version 39) that our boards use.

Strict: a field that is not listed is an error, so a misspelt one is found; one that Grafana knows
and a board needs is added here. Sources: grafana/grafana, kinds/dashboard/dashboard_kind.cue, and
the timeseries and stat panels' panelcfg.cue.
"""

UNITS = {"short", "none", "s", "bytes", "Bps", "percentunit", "reqps", "ops"}


def one_of(*values):
    return lambda value, path: [] if value in values else [f"{path}: {value!r} not of {values}"]


def of_type(kind):
    def check(value, path):
        # bool is an int to Python, not to JSON.
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        return [] if fits else [f"{path}: {value!r} is not {kind}"]

    return check


def list_of(item):
    def check(value, path):
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        return [error for i, each in enumerate(value) for error in item(each, f"{path}[{i}]")]

    return check


def fields(required, optional=None):
    """An object with all of `required`, any of `optional`, and nothing else."""
    known = required | (optional or {})

    def check(value, path):
        if not isinstance(value, dict):
            return [f"{path}: not an object"]
        errors = [f"{path}: no '{name}'" for name in sorted(required.keys() - value.keys())]
        errors += [f"{path}: unknown '{name}'" for name in sorted(value.keys() - known.keys())]
        for name in known.keys() & value.keys():
            errors += known[name](value[name], f"{path}.{name}")
        return errors

    return check


def by_type(kinds):
    """An object that `kinds` describes, chosen by its field `type`."""

    def check(value, path):
        kind = value.get("type") if isinstance(value, dict) else None
        if kind not in kinds:
            return [f"{path}: type {kind!r} not of {sorted(kinds)}"]
        return kinds[kind](value, f"{path}({kind})")

    return check


text, number, whole, flag = of_type(str), of_type((int, float)), of_type(int), of_type(bool)
datasource = fields({"type": one_of("prometheus"), "uid": text})
target = fields({"refId": text, "datasource": datasource, "expr": text, "legendFormat": text})
grid = fields({"x": whole, "y": whole, "w": whole, "h": whole})
stacked = fields({"stacking": fields({"mode": one_of("normal")}), "fillOpacity": whole})
defaults = fields({"unit": one_of(*sorted(UNITS))}, {"min": number, "max": number})
stackable = fields(
    {"unit": one_of(*sorted(UNITS))}, {"min": number, "max": number, "custom": stacked}
)
legend = fields({"displayMode": one_of("list", "table"), "placement": text, "showLegend": flag})
tooltip = fields({"mode": one_of("single", "multi", "none"), "sort": one_of("none", "asc", "desc")})
reduction = fields({"calcs": list_of(text), "fields": text, "values": flag})


def panel(options, field_defaults):
    return fields(
        {
            "id": whole,
            "type": text,
            "title": text,
            "description": text,
            "datasource": datasource,
            "gridPos": grid,
            "fieldConfig": fields({"defaults": field_defaults, "overrides": list_of(fields({}))}),
            "options": options,
            "targets": list_of(target),
        }
    )


PANELS = {
    "timeseries": panel(fields({"legend": legend, "tooltip": tooltip}), stackable),
    "stat": panel(fields({"reduceOptions": reduction, "textMode": text}), defaults),
}
row = fields(
    {
        "id": whole,
        "type": text,
        "title": text,
        "collapsed": flag,
        "gridPos": grid,
        "panels": list_of(by_type(PANELS)),
    }
)
datasource_variable = fields(
    {"name": text, "label": text, "type": text, "query": one_of("prometheus")},
    {"current": fields({})},
)
query_variable = fields(
    {
        "name": text,
        "label": text,
        "type": text,
        "datasource": datasource,
        "query": text,
        "definition": text,
        "refresh": one_of(0, 1, 2),
        "sort": whole,
        "multi": flag,
        "includeAll": flag,
        "allValue": text,
        "current": fields({"text": list_of(text), "value": list_of(text)}),
    }
)
variable = by_type({"datasource": datasource_variable, "query": query_variable})
board = fields(
    {
        "uid": text,
        "title": text,
        "description": text,
        "tags": list_of(text),
        "schemaVersion": one_of(39),
        "version": whole,
        "editable": flag,
        "graphTooltip": one_of(0, 1, 2),
        "refresh": text,
        "time": fields({"from": text, "to": text}),
        "timezone": text,
        "templating": fields({"list": list_of(variable)}),
        "annotations": fields({"list": list_of(fields({}))}),
        "links": list_of(fields({})),
        "panels": list_of(by_type(PANELS | {"row": row})),
    }
)


def errors(value):
    """What is wrong with a board, each with its place."""
    return board(value, "board")
