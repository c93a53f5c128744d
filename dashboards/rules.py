"""The manifest for the Prometheus Operator, made of the rule files, so that there is one text of each rule."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[1] / "config" / "prometheus"
SOURCES: Final = ("rules.yaml", "alerts.yaml")
MANIFEST: Final = FOLDER / "operator" / "prometheusrule.yaml"
HEAD: Final = """\
# The recording rules and alerts for the Prometheus Operator (0.65 or newer, for `keep_firing_for`). Made of rules.yaml
# and alerts.yaml by `python -m dashboards`; change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: maintenance-agent
  labels:
    app.kubernetes.io/name: maintenance-agent
    app.kubernetes.io/component: monitoring
spec:
  groups:
"""


def manifest() -> str:
    """The text of the manifest: the groups of both files, with their comments, two columns to the right."""
    texts = [(FOLDER / name).read_text(encoding="utf-8").partition("groups:\n")[2] for name in SOURCES]
    lines = [f"  {line}" if line else "" for text in texts for line in ["", *text.rstrip().split("\n")]]
    return HEAD + "\n".join(lines[1:]) + "\n"
