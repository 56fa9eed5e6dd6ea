"""Renders deploy/k8s as a user would, and validates it against the schema beside this file."""

import shutil
import subprocess
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator

HERE = Path(__file__).resolve().parent
K8S = HERE.parents[1] / "deploy" / "k8s"


def overlays():
    return sorted(path.parent for path in (K8S / "overlays").glob("*/kustomization.yaml"))


def renderer():
    """The command that renders a folder."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    raise FileNotFoundError("neither kustomize nor kubectl: deploy/install_deps.sh test")


def render(folder):
    """[object]. Raises CalledProcessError, with the tool's words, when it does not render."""
    command = [*renderer(), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or done.stderr.strip():
        # A warning is a deprecated field: it would fail with the next release.
        raise subprocess.CalledProcessError(
            done.returncode or 1, command, done.stdout, done.stderr.strip()
        )
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def _close(schema):
    """Every map that lists its properties has no others."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)
    elif isinstance(schema, list):
        for value in schema:
            _close(value)


class Schema:
    def __init__(self, path=HERE / "kubernetes_schema.yaml"):
        self._schema = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        _close(self._schema["$defs"])
        Draft202012Validator.check_schema(self._schema)
        self.kinds = self._schema["$defs"]["kinds"]

    def errors(self, objects):
        """["Kind/name at path: message"] of everything that the schema does not allow."""
        return [error for one in objects for error in self._errors(one)]

    def _errors(self, one):
        kind = f"{one.get('apiVersion')} {one.get('kind')}"
        if kind not in self.kinds:
            return [f"{title(one)}: kind '{kind}' is not in the schema"]
        schema = {**self._schema, "$ref": "#/$defs/kinds/" + kind.replace("/", "~1")}
        found = Draft202012Validator(schema).iter_errors(one)
        return [
            f"{title(one)} at {'.'.join(str(part) for part in error.absolute_path)}: "
            f"{error.message[:300]}"
            for error in found
        ]


def title(one):
    return f"{one.get('kind')}/{one.get('metadata', {}).get('name')}"
