"""What comes out: a script's flags, the record of a run, its checkpoints and its plots."""

from .checkpoint import load_best as load_best
from .checkpoint import load_checkpoint as load_checkpoint
from .flags import Parser as Parser
from .flags import option as option
from .flags import parse as parse
from .main import run_main as run_main
from .options import SIZES as SIZES
from .options import Flags as Flags
from .options import parse_config as parse_config
from .recording import recorded as recorded
from .recording import shared_learning_rate as shared_learning_rate
from .run import Run as Run
from .sampling import Sampling as Sampling
from .sampling import sample_text as sample_text
from .sampling import sample_token as sample_token
