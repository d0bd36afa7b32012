"""Every public callable refuses every kind of wrong value at its door, naming the argument."""

import collections
import warnings

import pytest
from doors import walk
from doors.legitimate import LEGITIMATE, RECORDS, matches, passes
from doors.table import CALLS

PUBLIC = walk.public()
PACKAGES = sorted({name.rpartition(".")[0].split(".")[0] for name in PUBLIC})


def test_every_public_callable_has_a_right_call():
    missing = sorted(set(PUBLIC) - set(CALLS) - RECORDS)
    assert not missing, (
        f"{missing} are public and nobody tries their doors. Add each to the table of its package in "
        "tests/doors/ with the arguments of one right call, as small as can be."
    )
    gone = sorted((set(CALLS) | RECORDS) - set(PUBLIC))
    assert not gone, f"{gone} are public no longer. Take them out of tests/doors/."


@pytest.mark.some(2)
@pytest.mark.parametrize("package", PACKAGES)
def test_wrong_values_are_refused_by_name(package, tmp_path, monkeypatch):
    # Files that a wrong call might make, or look for.
    monkeypatch.chdir(tmp_path)
    faults = collections.defaultdict(list)
    for name, function in PUBLIC.items():
        if name in CALLS and name.rpartition(".")[0].split(".")[0] == package:
            for argument, kind, call in walk.calls(function, CALLS[name]):
                if passes(name, argument, kind):
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    fault = walk.refusal(call, argument)
                if fault is not None:
                    faults[f"{name}({argument}): {fault}"].append(kind)
    listed = "\n".join(f"  {fault} [{', '.join(kinds)}]" for fault, kinds in faults.items())
    assert not faults, (
        f"{sum(map(len, faults.values()))} wrong calls are not refused by a ValueError or TypeError "
        f"of dflax that names the argument:\n{listed}\nCheck the argument with dflax.validation when "
        "the function is called, or list the value in tests/doors/legitimate.py with the reason."
    )


def test_what_passes_has_a_reason_and_is_there():
    arguments = {
        f"{name}({argument})"
        for name, function in PUBLIC.items()
        if name in CALLS
        for argument in walk.arguments(function, CALLS[name])
    }
    for pattern, kinds, reason in LEGITIMATE:
        assert reason
        assert any(matches(argument, pattern) for argument in arguments), pattern
        assert kinds == "any" or set(kinds.split()) <= set(walk.WRONG), (pattern, kinds)
