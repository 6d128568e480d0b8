from .tables.frames import load_annotated as load_annotated
from .tables.frames import sample_frame as sample_frame
from .tables.frames import token_frame as token_frame
