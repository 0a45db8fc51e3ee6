"""What comes out: a script's flags, the record of a run, its checkpoints and its plots."""

from .checkpoint import load_checkpoint
from .cli import Flags, option, parse, parse_config, run_main
from .run import Run
from .sampling import sample_text, sample_token

__all__ = ["Flags", "Run", "load_checkpoint", "option", "parse", "parse_config", "run_main", "sample_text", "sample_token"]
