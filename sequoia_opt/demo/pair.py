"""The bundled models' names and folders."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
TARGET_NAME, DRAFT_NAME = "demo-target", "demo-draft"
FOLDERS = {TARGET_NAME: FOLDER / "target", DRAFT_NAME: FOLDER / "draft"}
