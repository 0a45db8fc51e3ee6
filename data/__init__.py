"""What goes in: the corpus, its tokens as ids, the batches, the device and the processes that they land on."""

from .dataset import Dataset
from .device import DTYPES, choose_device, choose_dtype
from .errors import UserError
from .processes import total
from .tokenizer import BPETokenizer, CharTokenizer, tokenizer_of

__all__ = [
    "DTYPES",
    "BPETokenizer",
    "CharTokenizer",
    "Dataset",
    "UserError",
    "choose_device",
    "choose_dtype",
    "tokenizer_of",
    "total",
]
