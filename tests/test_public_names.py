"""What packages export: importable, documented, and loaded only when it is used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PACKAGES = ["cal_schemas", "cal_pipeline", "cal_pipeline.inspect", "cal_trainer"]
HEAVY = ("torch", "transformers", "ray", "datasets", "pandas", "pyarrow")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_that_a_package_exports_is_there_and_has_a_docstring(package: str) -> None:
    module = importlib.import_module(package)
    assert 3 <= len(module.__all__) <= 25
    for name in module.__all__:
        assert getattr(module, name).__doc__, name
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="absent"):
        _ = module.absent


def test_importing_the_packages_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(PACKAGES)}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_precompute_loads_what_measures_only_when_it_measures() -> None:
    heavy = tuple(name for name in HEAVY if name != "pyarrow")
    code = (
        "import sys\nfrom cal_pipeline import precompute\n"
        "try:\n    precompute(model_name_or_path='m', data_path='absent.json', output_dir='out')\n"
        f"except ValueError as error:\n    print(error, [name for name in {heavy} if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("--data_path absent.json: no file there")
    assert found.stdout.endswith(" []\n")
