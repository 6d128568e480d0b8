"""Gives the names of `cal_pipeline.inspect` under their old address, for one version."""

import warnings

from cal_pipeline.inspect import load_annotated, sample_frame, token_frame

__all__ = ["load_annotated", "sample_frame", "token_frame"]
warnings.warn("cal_pipeline.inspection is cal_pipeline.inspect now", FutureWarning, stacklevel=2)
