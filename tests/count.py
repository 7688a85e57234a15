#!/usr/bin/env python3
"""Counts what meson has tested: count.py LOG.json

Prints three numbers, passed, failed, not run; then what was not run, and why; then what failed, with
the end of what it said. Of a program that speaks the Test Anything Protocol each line counts, of
others the whole.
"""
import json
import re
import sys

END = 40  # lines

passed = failed = 0
reasons = []
failures = []

for line in open(sys.argv[1], encoding="utf-8", errors="replace"):
    test = json.loads(line)
    said = test.get("stdout", "").splitlines()
    lines = [re.match(r"(ok|not ok) \d+ - (.*?)(?: # SKIP (.*))?$", each) for each in said]
    lines = [each for each in lines if each]
    before = failed
    for verdict, sentence, why in (each.groups() for each in lines):
        if why is not None:
            reasons.append(f"not run {test['name']}, {sentence}: {why}")
        elif verdict == "ok":
            passed += 1
        else:
            failed += 1
            failures.append(f"not ok  {test['name']}: {sentence}")
    if test["result"] == "SKIP":
        why = re.sub("^1..0 # SKIP ", "", said[-1]) if said else "it says no reason"
        reasons += [] if lines else [f"not run {test['name']}: {why}"]
    elif test["result"] == "OK":
        passed += not lines
    elif failed == before:
        failed += 1  # it ended badly though each case passed, such as by a sanitizer's report
        failures.append(f"not ok  {test['name']}: {test['result']}, {test['returncode']}")
    if failed != before:
        said = test.get("stderr", "").splitlines() or said
        failures += ["  " + each[:200] for each in said[-END:]]
print(passed, failed, len(reasons))
for each in reasons + failures:
    print(each)
