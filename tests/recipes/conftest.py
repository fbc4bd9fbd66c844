import sys
from pathlib import Path

import pytest
from processes import run_program
from recipe_runs import recipe_command, recipe_environment

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "recipes"))


@pytest.fixture
def run_recipe():
    """Runs recipes/r1_zero.py to its end as a user would: (arguments) -> CompletedProcess."""

    def run(*arguments, timeout=300, **environment):
        return run_program(recipe_command(*arguments), timeout=timeout, env=recipe_environment(**environment))

    return run
