from results import run_main

from . import main

run_main(main)
