"""Judges what pip-audit tells (`pip-audit --format json | python .ci/pip_audit.py`): `make pip-audit`.

pip-audit ends with 0 and "No known vulnerabilities found" where it could look up nothing, as behind an index that does not
pass questions about vulnerabilities on. Here that is a failure.

Ends with 0: nothing is known of what could be checked; 1: something is; 3: nothing could be checked.
"""

from __future__ import annotations

import json
import sys
from typing import Any

GOOD, VULNERABLE, UNCHECKED = 0, 1, 3


def judge(told: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the exit code, and what to print. `told`: pip-audit's JSON."""
    packages = told["dependencies"]
    checked = [one for one in packages if "vulns" in one]
    skipped = sorted(one["name"] for one in packages if "vulns" not in one)
    lines = [f"not checked: {', '.join(skipped)}"] if skipped else []
    if not checked:
        return UNCHECKED, [
            *lines,
            "pip-audit could check no package: is there a way to the index and to its vulnerabilities?",
        ]
    found = [(one, vulnerability) for one in checked for vulnerability in one["vulns"]]
    for one, vulnerability in found:
        mended = ", ".join(vulnerability["fix_versions"]) or "no version"
        lines.append(f"{one['name']} {one['version']}: {vulnerability['id']}, mended in {mended}")
    lines.append(f"{len(checked)} packages checked, {len(skipped)} not; {len(found)} known vulnerabilities")
    return (VULNERABLE if found else GOOD), lines


def main() -> int:
    """Read from standard input."""
    text = sys.stdin.read()
    try:
        told = json.loads(text)
    except ValueError:
        sys.stderr.write(f"pip-audit told no JSON, but {text[:200]!r}\n")
        return UNCHECKED
    code, lines = judge(told)
    sys.stdout.write("\n".join(lines) + "\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
