"""What is asked of the rungs: each file is a question and a command. measure.py is what the timing studies share."""
