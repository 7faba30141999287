"""Old module names of public things, which go with the next release."""

import importlib
import subprocess
import sys

import pytest

from dynamo_mtl.moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_an_old_name_gives_what_the_new_one_has_and_warns(name):
    """Fails if a name of a release is gone, or changes in silence."""
    sys.modules.pop(f"dynamo_mtl.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"dynamo_mtl.{name} is now dynamo_mtl.{MOVED[name]}"):
        old = importlib.import_module(f"dynamo_mtl.{name}")
    new = importlib.import_module(f"dynamo_mtl.{MOVED[name]}")
    public = [given for given in vars(new) if not given.startswith("_")]
    assert public
    assert all(getattr(old, given) is getattr(new, given) for given in public)


def test_nothing_of_our_own_uses_an_old_name():
    """In a fresh interpreter, with the warning as an error."""
    program = (
        "import dynamo_mtl.cli.training, dynamo_mtl.serving.app, dynamo_mtl.testing, dynamo_mtl.evaluation.compare"
    )
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning:dynamo_mtl", "-c", program], check=True)


def test_a_task_type_of_a_package_keeps_its_wordings():
    """Fails if a type that was written for the release before has no instructions."""
    from dynamo_mtl.tasks.classification import Classification

    with pytest.warns(DeprecationWarning, match="Wordings is now InstructionTemplates"):
        from dynamo_mtl.tasks.instruction_templates import Wordings
    own = Wordings(training=("Which of these is it?",))
    with pytest.warns(DeprecationWarning, match="Old.wordings is now instruction_templates"):
        old = type("Old", (Classification,), {"type": "old", "wordings": own})
    assert old.instruction_templates is own
