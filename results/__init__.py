"""What comes out: a script's flags, the record of a run, its checkpoints and its plots."""

from .checkpoint import load_checkpoint as load_checkpoint
from .cli import Flags as Flags
from .cli import option as option
from .cli import parse as parse
from .cli import parse_config as parse_config
from .cli import run_main as run_main
from .run import Run as Run
from .sampling import sample_text as sample_text
from .sampling import sample_token as sample_token
