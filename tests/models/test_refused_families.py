"""Families that general rules refuse at load; those of special_cases and the encoder-decoders are refused by name."""

from pathlib import Path

import pytest

from cal_schemas.errors import ConfigError
from cal_schemas.spec import ContrastSpec
from families.table import REFUSED_BY_CHECKS


@pytest.mark.full
@pytest.mark.parametrize("name", REFUSED_BY_CHECKS)
def test_a_family_is_refused_with_the_reason_and_measured_where_that_says_how(name: str, tmp_path: Path) -> None:
    family = REFUSED_BY_CHECKS[name]
    family.build(tmp_path)
    with pytest.raises(ConfigError, match=family.says):
        family.check(tmp_path, ContrastSpec())
    if family.perturbed:
        family.check(tmp_path, ContrastSpec(condition="patch_mask", patch_mask_ratio=0.5))
