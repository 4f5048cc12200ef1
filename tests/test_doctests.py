import doctest
import importlib
import pkgutil

import pytest

import mnist_lightning

MODULES = [
    m.name for m in pkgutil.walk_packages(mnist_lightning.__path__, "mnist_lightning.") if "__main__" not in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(name), optionflags=options).failed == 0
