#!/usr/bin/env python3
"""Counts what meson has tested: count.py LOG.json

Prints three numbers, passed, failed, not run; then what was not run, and why. Of a program that
speaks the Test Anything Protocol each line counts, of others the whole.
"""
import json
import re
import sys

passed = failed = 0
reasons = []

for line in open(sys.argv[1], encoding="utf-8", errors="replace"):
    test = json.loads(line)
    said = test.get("stdout", "").splitlines()
    lines = [re.match(r"(ok|not ok) \d+ - (.*?)(?: # SKIP (.*))?$", each) for each in said]
    lines = [each for each in lines if each]
    for verdict, sentence, why in (each.groups() for each in lines):
        if why is not None:
            reasons.append(f"not run {test['name']}, {sentence}: {why}")
        elif verdict == "ok":
            passed += 1
        else:
            failed += 1
    if test["result"] == "SKIP":
        why = re.sub("^1..0 # SKIP ", "", said[-1]) if said else "it says no reason"
        reasons += [] if lines else [f"not run {test['name']}: {why}"]
    elif test["result"] == "OK":
        passed += not lines
    elif not any(each[1] == "not ok" for each in lines):
        failed += 1  # it ended badly though each case passed, such as by a sanitizer's report
print(passed, failed, len(reasons))
for reason in reasons:
    print(reason)
