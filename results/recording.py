"""A step of training in one launch: on CUDA, its kernels, a thousand or so, are recorded once, as a CUDA graph.

Python needs longer to launch the kernels of a small model one by one than the GPU needs to run them. The recording is
launched as a whole. It always reads and writes the same memory, so each new batch is copied over the one that was
recorded, and the learning rate is a tensor that is filled anew before each step.
"""

import warnings

import torch

from data.processes import several

EAGER_STEPS = 3  # before a recording: they create the optimizers' state and whatever else the first steps alone do


def shared_learning_rate(optimizers, device):
    """A scalar on the device that is the learning rate of all the optimizers; `fill_` sets it.

    On a CPU it has float64, so that steps are the same to the last bit as with a number.
    """
    device = torch.device(device)
    rate = torch.zeros((), device=device, dtype=torch.float64 if device.type == "cpu" else torch.float32)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    return rate


def recorded(config, update):
    """`update` itself, or on CUDA a function that does the same in one launch.

    update: takes a list of batches (x, y), trains on them and returns the loss, all by tensors on the device. Several
    processes talk to each other in every step, so they do not record.
    """
    if config.cuda_graph and config.device.startswith("cuda") and not several():
        return Recorder(update, torch.device(config.device))
    return update


class Recorder:
    """Trains by `update`, and for every shape of batches records it after a few steps.

    If a step waits for the device, or if recording fails (for lack of memory, say), nothing is recorded from then on.
    A line says so once.
    """

    def __init__(self, update, device):
        if device.index is not None:
            torch.cuda.set_device(device)  # streams and recordings are those of the current device
        self.update, self.graphs, self.eager_steps, self.possible = update, {}, {}, True
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, batches):
        shapes = tuple(x.shape for x, _ in batches)
        if self.possible and shapes not in self.graphs and self.eager_steps.get(shapes, 0) == EAGER_STEPS:
            self.record(shapes, batches)
        if shapes not in self.graphs or not self.possible:
            return self.train_eagerly(shapes, batches)
        graph, inputs, loss = self.graphs[shapes]
        for mine, given in zip(inputs, batches):
            for tensor, new in zip(mine, given):
                tensor.copy_(new)
        graph.replay()
        return loss.clone()

    def train_eagerly(self, shapes, batches):
        """A step like any other, on a stream beside the default one, as CUDA wants it before a recording."""
        self.eager_steps[shapes] = done = self.eager_steps.get(shapes, 0) + 1
        if not self.possible:
            return self.update(batches)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if done == EAGER_STEPS else "default")
            try:
                loss = self.update(batches)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(self.stream)
        if any("called a synchronizing" in str(wait.message) for wait in waits):
            self.give_up("it waits for the device")
        return loss

    def record(self, shapes, batches):
        inputs = [(x.clone(), y.clone()) for x, y in batches]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                loss = self.update(inputs)
        except RuntimeError as error:  # of memory among others
            self.give_up(" ".join(str(error).split())[:200])
        else:
            self.graphs[shapes] = graph, inputs, loss

    def give_up(self, why):
        self.possible = False
        self.graphs.clear()
        print(f"a step of training is not recorded as a CUDA graph: {why}", flush=True)
