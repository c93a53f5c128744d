"""Writes the OpenAPI document into the file that is named."""

import json
import sys
from pathlib import Path

from agent.web import ENDPOINTS
from agent.web.openapi import document

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(document(ENDPOINTS), indent=2) + "\n", encoding="utf-8")
