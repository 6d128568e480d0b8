from .frames import load_annotated as load_annotated
from .frames import sample_frame as sample_frame
from .frames import show_words as show_words
from .frames import token_frame as token_frame
