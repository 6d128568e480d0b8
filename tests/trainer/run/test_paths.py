"""Data that is named in another way than a measurement is."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect.tables.reading import open_paths
from cal_schemas.errors import ConfigError
from cal_trainer.config import TrainConfig
from cal_trainer.run.paths import validate_paths
from hub_server import HubServer


@pytest.mark.parametrize("metadata", [None, {"cal.format_version": "1"}])
def test_a_measurement_on_the_hub_is_not_taken_for_raw_data(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: dict[str, str] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["A caption."]}).replace_schema_metadata(metadata), file)
    hub.commit("org/measured", {"data/train-00000-of-00001.parquet": file.getvalue()})
    for name in ("org/measured", "org/measured:train"):
        with pytest.raises(ConfigError) as error:
            validate_paths(TrainConfig(model_name_or_path="model", data_path=[name]))
        if metadata:
            assert "is a measurement on the Hub, all of which is read: give hf://datasets/org/measured" in str(
                error.value
            )
        else:
            assert f"--data_path {name} holds raw data" in str(error.value)
    with pytest.raises(ConfigError, match=r"^org/measured: .* directory \(on the Hub: hf://datasets/org/measured\)$"):
        open_paths("org/measured")
