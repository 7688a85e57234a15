#!/usr/bin/env python3
"""Prints what the tests of these suites need to be built: targets.py DIRECTORY SUITE..."""
import json
import os
import sys

directory, suites = sys.argv[1], set(sys.argv[2:])


def about(what):
    return json.load(open(f"{directory}/meson-info/intro-{what}.json", encoding="utf-8"))


needed = set()
for test in about("tests"):
    if suites & {each.split(":")[-1] for each in test["suite"]}:
        needed |= set(test["depends"])
files = [file for target in about("targets") if target["id"] in needed for file in target["filename"]]
print("\n".join(os.path.relpath(file, directory) for file in files))
