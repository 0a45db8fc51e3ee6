from results import run_main
from studies.exercises import main

if __name__ == "__main__":
    run_main(main)
