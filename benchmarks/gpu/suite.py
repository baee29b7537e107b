"""The GPU tests of the suite as a part of the check, one file at a time, with what each test said."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.parts import Context, Row, Skipped

ROOT = Path(__file__).parents[2]
VARIABLE = "CURATED_SSL_TEST_DEVICE"  # "cpu": the GPU tests run their code on the CPU


def run_tests(context: Context, file: str) -> list[Row]:
    """Tests of one file: passed, failed and skipped, with the first line of each failure.

    Raises:
        Skipped: this is an installed copy, without tests.
    """
    if not (ROOT / file).exists():
        raise Skipped(f"{file} is not here; run the check from a clone")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--no-header", f"--junitxml={report}", file]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, VARIABLE: context.device}, capture_output=True, text=True
        )
        if not report.exists():
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise RuntimeError(f"pytest wrote no report: {lines[-1] if lines else 'it said nothing'}")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    rows: list[Row] = []
    for case in cases:
        verdict, why = "passed", ""
        for kind in ("failure", "error", "skipped"):
            found = case.find(kind)
            if found is not None:
                verdict = {"failure": "failed", "error": "failed"}.get(kind, kind)
                why = " ".join((found.get("message") or "").split())[:200]
        name = case.get("name", "?")
        rows.append({"what": name, "verdict": verdict, "seconds": float(case.get("time", 0)), "why": why})
    bad = [row["what"] for row in rows if row["verdict"] == "failed"]
    context.save(rows)
    if not rows:
        raise RuntimeError(f"no test of {file} was found")
    if bad:
        context.notes.append(f"**{len(bad)} failed**: {', '.join(bad)}")
    return rows
