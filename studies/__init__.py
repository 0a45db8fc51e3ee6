"""What is asked of the rungs. Each file is a question and a command: `python -m studies.speed`, and so on.

How good?     ablation: what each idea of modern_gpt.py gains. gains: what further ideas would gain on top of it.
              graphs: how many edges a character needs. cora: graph attention on a citation graph.
              verify: are the published losses right? measuring: how much does a loss depend on how it is measured?
              names: what is the last tenth of the training split worth?
              ensemble: what do several models know together? student: one model that learns from them.
              gates, modern_windows, maximum: ideas that were tried, each a run like any other.
How fast?     speed: a step of every rung. contexts: with longer windows. texts: with longer texts. writing: sampling.
              launches: how long a GPU waits for Python. gpu.sh: all that we measure on a GPU.
              graph_attention: beside PyTorch Geometric. density: a dense matrix, or a list of edges? windows: of
              windowed_gpt.py. lengths: of long_gat.py. race: beside nanoGPT. They share measure.
To look at    pictures: most of those in the READMEs. page: the ladder as one page for a browser.
To learn      exercises: lines of the rungs to write oneself, and to have checked.
To build on   pyg: a convolution of PyTorch Geometric as the attention of a GPT.
              reproduce.sh: every published run, by its command. publish: copies such a run to results/published/.
              tables: writes the tables of README.md and results/*.md anew.
"""
