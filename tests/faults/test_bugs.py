"""Each planted bug still applies to today's source, compiles, and is what a process with its folder first on PYTHONPATH
runs, though the packages are installed editable."""

import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
from bugs import BUGS, Bug, bug, planted
from judge import RULES


@pytest.mark.parametrize("one", BUGS, ids=lambda one: one.name)
def test_a_bug_applies_and_compiles(one: Bug, tmp_path: Path) -> None:
    into = planted([one], tmp_path)
    for change in one.changes:
        file = into / Path(change.package).name / change.file
        assert change.new in file.read_text()
        py_compile.compile(str(file), doraise=True)
    assert one.changes
    assert set(one.invariants) <= {name for name, *_ in RULES}


def test_names_are_of_one_bug_each_and_they_are_enough() -> None:
    assert len({one.name for one in BUGS}) == len(BUGS) >= 14
    with pytest.raises(KeyError, match="no-sweep"):
        bug("no such bug")


def test_a_process_runs_the_planted_copy_and_the_installed_rest(tmp_path: Path) -> None:
    into = planted([bug("retry-on-ambiguous")], tmp_path)
    told = "import dispatcher.answers, sendwhy.events as e; print(dispatcher.answers.__file__, e.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", told],
        env=os.environ | {"PYTHONPATH": str(into)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    dispatcher, sendwhy = map(Path, done.stdout.split())
    assert dispatcher == into / "dispatcher" / "answers.py"
    assert not sendwhy.is_relative_to(into)
