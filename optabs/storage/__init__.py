"""Moments in fewer bits: codecs, and the wrapper that keeps them between steps."""

from optabs.storage.conversion import NarrowState as NarrowState
from optabs.storage.conversion import decode_state as decode_state
from optabs.storage.conversion import encode_state as encode_state
from optabs.storage.narrowing import narrow_state as narrow_state
