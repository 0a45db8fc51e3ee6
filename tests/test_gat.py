"""Graph attention: equality with PyTorch Geometric, what the papers claim, and what a layer may never do."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from conftest import Largest, build
from torch import nn

import gpt
import pyg_free_gat
from data import UserError
from pyg_free_gat import GAT, LAYERS, GATv2, adjacency_of, fast_gatv2_scores, gatv2_scores
from results.metrics import read
from studies import cora
from studies.cora import along_edges
from studies.maximum import Max
from studies.pictures import lookup_accuracy

ALL = {**LAYERS, "max": Max}  # importing studies/maximum.py has added it
GRAPHS = ["causal", "window:5", "dilated:3", "window:3+global:2+random:2+stride:5"]


def causal(T):
    return adjacency_of("causal", torch.arange(T))


def random_graphs(kind, B, T):
    """A graph for each of B sequences: (B, T, T) bool."""
    if kind == "causal":
        return causal(T).expand(B, T, T)
    return torch.rand(B, T, T) < {"random": 0.5, "sparse": 0.05, "empty": 0.0}[kind]


def edge_index(adjacency):
    """PyTorch Geometric's (2, E) list of edges j -> i of B graphs (B, T, T) side by side."""
    B, T, _ = adjacency.shape
    b, i, j = adjacency.nonzero().T
    return torch.stack((b * T + j, b * T + i))


def assert_equal_with_gradients(ours, theirs, x, adjacency, names=None):
    """Both modules on x (B, T, C) in float64: outputs to 1e-12, gradients of x and of each parameter to 1e-11."""
    B, T, _ = x.shape
    xs = [x.clone().requires_grad_() for _ in range(2)]
    out = ours(xs[0], adjacency)
    expected = theirs(xs[1].flatten(0, 1), edge_index(adjacency)).unflatten(0, (B, T))
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    weights = torch.randn_like(out)
    for y in (out, expected):
        (y * weights).sum().backward()
    torch.testing.assert_close(xs[0].grad, xs[1].grad, atol=1e-11, rtol=0)
    for name, parameter in ours.named_parameters():
        grad = theirs.get_parameter((names or {}).get(name, name)).grad
        torch.testing.assert_close(parameter.grad, grad, atol=1e-11, rtol=0)


@pytest.mark.parametrize("graph", ["causal", "random", "sparse", "empty"])
@pytest.mark.parametrize("layer", ["gat", "gatv2", "gatv2 share_weights"])
def test_gat_and_gatv2_equal_pytorch_geometric(layer, graph):
    pyg = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    layer, *shared = layer.split()
    for concat, bias, loops, heads, T in itertools.product(
        (True, False), (True, False), (True, False), (1, 3), (1, 37)
    ):
        options = {"heads": heads, "concat": concat, "bias": bias, **dict.fromkeys(shared, True)}
        theirs = {"gat": pyg.GATConv, "gatv2": pyg.GATv2Conv}[layer](10, 4, add_self_loops=loops, **options).double()
        for parameter in theirs.parameters():
            nn.init.normal_(parameter)
        ours = ALL[layer](10, 4, **options).double()
        ours.load_state_dict(theirs.state_dict())  # unchanged, names and shapes
        adjacency = random_graphs(graph, 2, T)
        if loops:  # PyTorch Geometric removes those that are there and adds one to each node
            adjacency = adjacency | torch.eye(T, dtype=torch.bool)
        assert_equal_with_gradients(ours, theirs, torch.randn(2, T, 10, dtype=torch.float64), adjacency)


@pytest.mark.usefixtures("float64")
def test_gpt_pyg_attentions_list_of_edges_is_the_causal_mask():
    pyg = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    T = 9
    edges = torch.tensor([[i, j] for i in range(T) for j in range(i, T)]).T  # LucTuc/gpt-pyg-attention's
    theirs, x = pyg.GATv2Conv(6, 2, heads=3, add_self_loops=False), torch.randn(T, 6)
    ours = GATv2(6, 2, heads=3)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x[None], torch.ones(T, T).tril().bool())[0], theirs(x, edges), atol=1e-12, rtol=0)


@pytest.mark.parametrize("graph", ["causal", "random", "sparse", "empty"])
@pytest.mark.parametrize("layer", ["mean", "max"])
def test_mean_and_max_equal_graphsage(layer, graph):
    pyg = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    theirs = pyg.SAGEConv(10, 12, aggr=layer, root_weight=False).double()
    ours = ALL[layer](10, 4, heads=3).double()
    names = {"lin.weight": "lin_l.weight", "lin.bias": "lin_l.bias"}
    ours.load_state_dict({name: theirs.state_dict()[other] for name, other in names.items()})
    x = torch.randn(3, 21, 10, dtype=torch.float64)
    assert_equal_with_gradients(ours, theirs, x, random_graphs(graph, 3, 21), names)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("B", [2, 1])
@pytest.mark.parametrize("graph", ["causal", "random", "sparse", "empty"])
def test_dot_product_equals_masked_softmax(graph, B):
    torch.manual_seed(0)
    layer, x = LAYERS["dot"](10, 4, heads=3), torch.randn(2, 21, 10)
    adjacency = random_graphs(graph, B, 21)
    q, k, v = (f(x).view(2, 21, 3, 4).transpose(1, 2) for f in (layer.query, layer.key, layer.value))
    scores = (q @ k.mT / math.sqrt(4)).masked_fill(~adjacency[:, None], -math.inf)
    expected = scores.softmax(-1).nan_to_num(0) @ v  # nothing read where there is no edge
    out = layer(x, adjacency if B == 2 else adjacency[0])  # a graph each, or one for all
    torch.testing.assert_close(out, expected.transpose(1, 2).flatten(2), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("float64")
def test_with_the_dot_product_and_the_causal_graph_it_is_gpt():
    torch.manual_seed(0)
    theirs, ours = build("gpt"), build("pyg_free_gat", layer="dot")  # both drop out, and the same
    renamed = {".query.": ".layer.query.", ".key.": ".layer.key.", ".value.": ".layer.value."}
    state = theirs.state_dict()
    for old, new in renamed.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    ours.load_state_dict(state)
    ids, logits = torch.randint(65, (3, 16)), []
    for model in (ours, theirs):
        torch.manual_seed(1)
        logits.append(model(ids))
    torch.testing.assert_close(*logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize("T, D", [(1, 5), (16, 5), (19, 5), (40, 5), (40, 900)])  # the last: a piece for each sequence
@pytest.mark.parametrize("graph", ["causal", "random", "sparse", "empty"])
def test_fast_scores_of_gatv2_equal_the_plain_ones(graph, T, D):
    torch.manual_seed(0)
    B, H = 3, 2
    adjacency = random_graphs(graph, B, T)
    src, dst = torch.randn(2, B, T, H, D, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (src, dst, torch.randn(H, D, dtype=torch.float64))]
    edges = adjacency[:, None]  # a score without an edge may be anything
    ours = fast_gatv2_scores(*inputs, 0.2, edges) * edges
    theirs = gatv2_scores(*inputs, 0.2) * edges
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    grad = torch.randn_like(ours)
    both = (torch.autograd.grad(scores, inputs, grad) for scores in (ours, theirs))
    for ours_grad, theirs_grad in zip(*both):
        torch.testing.assert_close(ours_grad, theirs_grad, atol=1e-11, rtol=1e-12)


@pytest.mark.parametrize("layer", ALL)
def test_an_adjacency_that_is_edited_in_place_counts_as_it_is_now(layer):
    torch.manual_seed(0)
    module, x, adjacency = ALL[layer](8, 4, heads=2), torch.randn(2, 40, 8), causal(40)
    before = module(x, adjacency)
    adjacency[:, :] = random_graphs("random", 1, 40)[0] | torch.eye(40, dtype=torch.bool)
    after = module(x, adjacency)
    torch.testing.assert_close(after, module(x, adjacency.clone()))
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("layer", ALL)
def test_an_adjacency_of_numbers_or_of_another_shape_is_refused(layer):
    """Numbers could be meant as weights, and (1, T), say, as a graph in which all read from the same."""
    module, x = ALL[layer](8, 4, heads=2), torch.randn(2, 10, 8)
    for dtype in (torch.float32, torch.int64, torch.uint8):
        with pytest.raises(TypeError, match="adjacency must be torch.bool, not torch"):
            module(x, causal(10).to(dtype))
    for shape in ((10,), (1, 10), (10, 1), (1, 1), (9, 9), (3, 10, 10), (2, 10, 1), (2, 1, 10, 10)):
        with pytest.raises(ValueError, match=r"this x needs \(10, 10\) or \(2, 10, 10\)"):
            module(x, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("layer", ["gat", "gatv2"])
def test_options_in_the_order_of_pytorch_geometric_are_refused(layer):
    """They have its names, but another order: its fourth is concat."""
    with pytest.raises(TypeError):
        ALL[layer](10, 4, 3, False)


@pytest.mark.parametrize("layer", ALL)
def test_no_gradient_is_nan_on_its_way(layer):
    """Which torch's anomaly mode would report, in a graph in which some nodes read from none."""
    torch.manual_seed(0)
    module, adjacency = ALL[layer](8, 4, heads=2), random_graphs("sparse", 2, 20)
    assert not adjacency.any(dim=-1).all()
    with torch.autograd.set_detect_anomaly(True):
        module(torch.randn(2, 20, 8, requires_grad=True), adjacency).sum().backward()


@pytest.mark.parametrize("layer", ALL)
def test_gradients_are_those_of_finite_differences(layer):
    torch.manual_seed(0)
    module = ALL[layer](4, 3, heads=2).double()
    x = torch.randn(2, 18, 4, dtype=torch.float64, requires_grad=True)
    adjacency = random_graphs("random", 2, 18)
    assert torch.autograd.gradcheck(lambda x, *_: module(x, adjacency), (x, *module.parameters()))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layer", ALL)
def test_compiled_layers_compute_the_same(layer):
    torch.manual_seed(0)
    module, adjacency = ALL[layer](12, 4, heads=3), causal(20)
    compiled = torch.compile(
        module, backend="aot_eager", fullgraph=True
    )  # traced as for a compiler, without needing one
    grads = []
    for f in (module, compiled):
        module.zero_grad()
        x = torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
        f(x, adjacency).square().sum().backward()
        grads.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    for eager, traced in zip(*grads):
        torch.testing.assert_close(traced, eager, atol=1e-10, rtol=0)


@pytest.mark.parametrize("layer", ALL)
def test_no_layer_has_a_tensor_over_pairs_and_channels(layer):
    B, T, H, D = 2, 256, 4, 64
    module = ALL[layer](H * D, D, heads=H)
    with Largest() as largest:
        module(torch.randn(B, T, H * D, requires_grad=True), causal(T)).sum().backward()
    with Largest() as by_hand:
        gatv2_scores(*torch.randn(2, B, T, H, D), torch.randn(H, D), 0.2)
    assert largest.numbers <= 2**20 < by_hand.numbers / 30


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("layer", ALL)
def test_a_token_depends_on_what_the_graph_lets_reach_it(layer, graph):
    """On those from which a path of at most n_layer edges leads to it, and with the maximum on none but those."""
    torch.manual_seed(0)
    T, n_layer = 16, 2
    model = build("pyg_free_gat", layer=layer, graph=graph, n_layer=n_layer).eval().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    adjacency = adjacency_of(graph, torch.arange(T)).double()
    reaches = torch.linalg.matrix_power(adjacency, n_layer) > 0
    ids = torch.randint(65, (1, T))
    changed = ids.repeat(T, 1)
    changed[range(T), range(T)] = (changed[range(T), range(T)] + 1) % 65  # in the j-th copy, token j
    with torch.inference_mode():
        depends = (model(changed) != model(ids.repeat(T, 1))).any(dim=-1).T  # (T, T), [i, j]
    if layer == "max":
        assert not (depends & ~reaches).any() and depends.diagonal().all()
    else:
        assert torch.equal(depends, reaches)


def test_graphs():
    positions = torch.arange(9)
    eye = torch.eye(9, dtype=torch.bool)
    assert torch.equal(adjacency_of("causal", positions), torch.ones(9, 9).tril().bool())
    assert torch.equal(adjacency_of("window:1", positions), eye)
    assert torch.equal(adjacency_of("window:9", positions), adjacency_of("causal", positions))
    assert torch.equal(adjacency_of("dilated:1", positions), adjacency_of("causal", positions))
    assert adjacency_of("window:3", positions)[7].nonzero().flatten().tolist() == [5, 6, 7]
    assert adjacency_of("dilated:3", positions)[7].nonzero().flatten().tolist() == [1, 4, 7]
    assert adjacency_of("stride:3", positions)[7].nonzero().flatten().tolist() == [0, 3, 6, 7]
    assert adjacency_of("global:2", positions)[7].nonzero().flatten().tolist() == [0, 1, 7]
    for graph in GRAPHS:
        adjacency = adjacency_of(graph, positions)
        assert adjacency.diagonal().all() and not adjacency.triu(1).any()
    parts = [adjacency_of(part, positions) for part in GRAPHS[-1].split("+")]
    assert torch.equal(adjacency_of(GRAPHS[-1], positions), torch.stack(parts).any(dim=0))


@pytest.mark.parametrize("graph", ["", "window", "window:0", "random:-1", "window:2+wndow:5", "causal:3", "window:1e3"])
def test_a_graph_of_another_name_is_refused(graph):
    with pytest.raises(ValueError, match="must be causal, window:K, "):
        adjacency_of(graph, torch.arange(9))


def test_a_random_graph_draws_once_for_a_seed_and_evenly():
    T, K = 200, 3
    drawn = adjacency_of(f"random:{K}", torch.arange(T), seed=1)
    assert drawn.sum(dim=1).tolist() == [min(i, K) + 1 for i in range(T)]  # and itself
    assert torch.equal(adjacency_of(f"random:{K}", torch.arange(50), seed=1), drawn[:50, :50])
    assert not torch.equal(adjacency_of(f"random:{K}", torch.arange(T), seed=2), drawn)
    far = [(i - j) / i for i in range(20, T) for j in drawn[i, :i].nonzero().flatten().tolist()]
    assert 0.4 < sum(far) / len(far) < 0.6 and max(far) > 0.9


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layer", ["gat", "gatv2"])
def test_zero_attention_vectors_give_the_mean_of_the_prefix(layer):
    torch.manual_seed(0)
    module, x = ALL[layer](10, 4, heads=3), torch.randn(2, 12, 10)
    for name, parameter in module.named_parameters():
        if name.startswith("att"):
            nn.init.zeros_(parameter)
    values = (module.lin if layer == "gat" else module.lin_l)(x)
    expected = values.cumsum(dim=1) / torch.arange(1, 13)[:, None] + module.bias
    torch.testing.assert_close(module(x, causal(12)), expected, atol=1e-12, rtol=0)


def attention_weights(module, x, adjacency):
    return module(x, adjacency, return_attention_weights=True)[1]  # (B, H, T, T)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("graph", ["causal", "random", "sparse", "empty"])
@pytest.mark.parametrize("layer", ["gat", "gatv2"])
def test_attention_weights_are_those_of_pytorch_geometric(layer, graph):
    """And zero where there is no edge."""
    pyg = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    theirs = {"gat": pyg.GATConv, "gatv2": pyg.GATv2Conv}[layer](10, 4, heads=3, add_self_loops=False)
    ours, x, adjacency = ALL[layer](10, 4, heads=3), torch.randn(2, 21, 10), random_graphs(graph, 2, 21)
    ours.load_state_dict(theirs.state_dict())
    out, weights = ours(x, adjacency, return_attention_weights=True)
    expected, (edges, alpha) = theirs(x.flatten(0, 1), edge_index(adjacency), return_attention_weights=True)
    torch.testing.assert_close(out.flatten(0, 1), expected, atol=1e-12, rtol=0)
    dense = torch.zeros(42, 42, 3)
    dense[edges[1], edges[0]] = alpha
    dense = torch.stack((dense[:21, :21], dense[21:, 21:])).permute(0, 3, 1, 2)
    torch.testing.assert_close(weights, dense, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layer", ["gat", "gatv2"])
def test_padded_batches_of_graphs_are_what_pytorch_geometric_computes_from_their_edges(layer):
    """Graphs of 1 to 30 nodes, some of which have no edge, batched by its DataLoader, as the README shows it."""
    pyg = pytest.importorskip("torch_geometric")
    from torch_geometric.loader import DataLoader
    from torch_geometric.utils import to_dense_adj, to_dense_batch

    torch.manual_seed(0)
    theirs = {"gat": pyg.nn.GATConv, "gatv2": pyg.nn.GATv2Conv}[layer](10, 4, heads=3, add_self_loops=False)
    ours = ALL[layer](10, 4, heads=3)
    ours.load_state_dict(theirs.state_dict())
    graphs = [
        pyg.data.Data(x=torch.randn(N, 10), edge_index=(torch.rand(N, N) < 0.2).nonzero().T)
        for N in (7, 1, 30, 12, 2, 21, 5)
    ]
    for batch in DataLoader(graphs, batch_size=3):
        x, real = to_dense_batch(batch.x, batch.batch)  # (B, N, 10), and which nodes are not padding
        adjacency = to_dense_adj(batch.edge_index, batch.batch, max_num_nodes=x.shape[1]).mT.bool()  # (B, N, N)
        expected = theirs(batch.x, batch.edge_index)
        torch.testing.assert_close(ours(x, adjacency)[real], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layer", ["gat", "gatv2", "dot", "mean"])
def test_any_number_of_graphs_and_nodes(layer, dtype):
    torch.manual_seed(0)
    module = ALL[layer](8, 4, heads=2).to(dtype)
    for B, N in itertools.product((0, 1, 3), (0, 1, 2, 17, 70)):
        x, adjacency = torch.randn(B, N, 8, dtype=dtype, requires_grad=True), torch.rand(B, N, N) < 0.3
        adjacency[:, 1:2] = False  # a node that reads from none
        out = module(x, adjacency)
        out.sum().backward()
        assert out.shape == (B, N, 8) and out.dtype == dtype
        assert out.isfinite().all() and x.grad.isfinite().all()


def test_4096_nodes():
    torch.manual_seed(0)
    x, adjacency = torch.randn(1, 4096, 4), (torch.rand(4096, 4096) < 0.001) | torch.eye(4096, dtype=torch.bool)
    for module in (GAT(4, 4), GATv2(4, 4)):
        some = torch.cat((torch.tensor([4000]), adjacency[4000].nonzero().flatten()))  # a node and what it reads from
        few = torch.zeros(len(some), len(some), dtype=torch.bool)
        few[0, 1:] = True
        torch.testing.assert_close(module(x, adjacency)[0, 4000], module(x[:, some], few)[0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_the_attention_of_gat_is_static_and_that_of_gatv2_is_not(seed):
    """Theorems 1 and 2 of arXiv:2105.14491: GAT ranks the keys alike for every query, GATv2 need not."""
    torch.manual_seed(seed)
    x, T = torch.randn(2, 30, 8, dtype=torch.float64), 30
    gat, gatv2 = GAT(8, 16, heads=2).double(), GATv2(8, 16, heads=2).double()
    ranks = [attention_weights(f, x, torch.ones(T, T, dtype=torch.bool)).argsort(dim=-1) for f in (gat, gatv2)]
    assert (ranks[0] == ranks[0][:, :, :1]).all()
    assert not (ranks[1] == ranks[1][:, :, :1]).all()
    favourite = attention_weights(gat, x, causal(T)).argmax(dim=-1)  # (B, H, T)
    source = (gat.lin(x).unflatten(-1, (2, 16)) * gat.att_src).sum(-1).transpose(1, 2)  # (B, H, T)
    assert torch.equal(favourite, source.cummax(dim=-1).indices)


def test_one_gatv2_head_looks_up_a_dictionary_and_one_gat_head_cannot():
    """Section 4.1 of arXiv:2105.14491 in its smallest form: chance is 10%."""
    assert lookup_accuracy(GATv2, steps=100) > 0.99
    assert lookup_accuracy(GAT, steps=500) < 0.2


def test_layers_start_as_those_of_pytorch_geometric_and_gpt2s_initialisation_leaves_them():
    pyg = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    C, H = 192, 4
    for layer, conv in (("gat", pyg.GATConv), ("gatv2", pyg.GATv2Conv)):
        model = build("pyg_free_gat", layer=layer, n_embd=C, n_head=H)
        theirs = dict(conv(C, C // H, heads=H).named_parameters())
        for name, parameter in model.blocks[0].attention.layer.named_parameters():
            if name == "bias":
                assert not parameter.any()
                continue
            fan = sum(parameter.shape[-2:]) / 6 if parameter.ndim > 1 else C
            for tensor in (parameter, theirs[name]):  # uniform: its largest is close to the bound
                assert 0.9 / math.sqrt(fan) < tensor.abs().max() <= 1 / math.sqrt(fan)
        assert model.blocks[0].attention.projection.weight.std() < 0.02


@pytest.mark.usefixtures("float64")
def test_dropout_is_on_the_weights_after_the_softmax():
    torch.manual_seed(0)
    module, x = GATv2(6, 5, heads=1, dropout=0.25, bias=False), torch.eye(6)[None]
    nn.init.zeros_(module.att)
    nn.init.zeros_(module.lin_r.weight)
    module.lin_l.weight.data = torch.eye(5, 6)  # so that the output shows the weights of the first five tokens
    out = torch.cat([module(x, causal(6)) for _ in range(500)])  # (500, 6, 5)
    kept = out > 0
    i = torch.arange(1.0, 7)[:, None]
    torch.testing.assert_close(out, kept / (0.75 * i), atol=1e-12, rtol=0)  # 1 / i each, scaled up where kept
    assert kept[:, causal(6)[:, :5]].float().mean() == pytest.approx(0.75, abs=0.02)
    assert not module.eval()(x, causal(6)).eq(0)[:, causal(6)[:, :5]].any()


def test_a_layer_of_ones_own(train, monkeypatch):
    class Previous(nn.Module):
        """Reads the latest other token that the graph shows, whatever it is."""

        def __init__(self, in_channels, out_channels, heads):
            super().__init__()
            self.lin = nn.Linear(in_channels, heads * out_channels)

        def forward(self, x, adjacency):
            latest = adjacency.tril(-1) & ~adjacency.tril(-1).roll(-1, dims=1).tril(-1)
            return self.lin(latest.to(x.dtype) @ x)

    monkeypatch.setitem(LAYERS, "previous", Previous)
    state = train("pyg_free_gat", layer="previous", graph="window:2", max_iters=2)
    assert state["config"]["layer"] == "previous" and state["step"] == 2
    assert "blocks.0.attention.layer.lin.weight" in state["model"]


def test_gat_version_is_another_name_for_the_layer(train):
    for version, layer in (("GATConv", "gat"), ("GATv2Conv", "gatv2")):
        state = train("pyg_free_gat", gat_version=version, out=version)
        assert state["config"]["layer"] == layer


def test_without_out_proj_the_heads_are_added_to_the_stream_as_they_are():
    names = dict(build("pyg_free_gat", out_proj=False).named_parameters())
    assert not any("projection" in name for name in names)
    torch.manual_seed(0)
    model = build("pyg_free_gat", out_proj=False).eval()
    x, attention = torch.randn(2, 16, 16), model.blocks[0].attention
    assert torch.equal(attention(x, causal(16)), attention.layer(x, causal(16)))


@pytest.mark.parametrize("layer", ALL)
def test_every_parameter_of_every_layer_has_one_optimizer(layer):
    model = build("pyg_free_gat", layer=layer)
    optimizers = pyg_free_gat.make_optimizers(pyg_free_gat.Config(layer=layer), model)
    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(model.parameters())


@pytest.mark.parametrize("layer", ALL)
def test_bfloat16_computes_the_same_to_its_precision(layer):
    torch.manual_seed(0)
    module, x, adjacency = ALL[layer](32, 8, heads=4), torch.randn(2, 40, 32), causal(40)
    exact = module(x, adjacency)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, adjacency)
    assert not torch.equal(out, exact)
    torch.testing.assert_close(out.float(), exact, atol=0.1, rtol=0.05)


def test_the_scores_of_gatv2_stay_exact_under_autocast():
    torch.manual_seed(0)
    module, x = GATv2(32, 8, heads=4), torch.randn(2, 40, 32)
    module.lin_l = module.lin_r = nn.Identity()
    with torch.autocast("cpu", torch.bfloat16):
        weights = attention_weights(module, x, causal(40))
    assert torch.equal(weights, attention_weights(module, x, causal(40)))


def test_its_options_are_those_of_gpt_and_four_more():
    ours, theirs = pyg_free_gat.Config.__dataclass_fields__, gpt.Config.__dataclass_fields__
    assert list(ours)[len(theirs) :] == ["layer", "graph", "out_proj", "gat_version"]
    assert pyg_free_gat.Config.full == gpt.Config.full
    for name, field in theirs.items():
        assert (ours[name].default, ours[name].metadata) == (field.default, field.metadata)


@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0, 1.5, -0.3])
@pytest.mark.parametrize("layer", ["gat", "gatv2"])
def test_any_slope_of_leakyrelu_is_that_of_pytorch_geometric(layer, slope):
    pyg = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    conv = {"gat": pyg.GATConv, "gatv2": pyg.GATv2Conv}[layer]
    theirs = conv(10, 4, heads=3, add_self_loops=False, negative_slope=slope).double()
    ours = ALL[layer](10, 4, heads=3, negative_slope=slope).double()
    ours.load_state_dict(theirs.state_dict())
    assert_equal_with_gradients(ours, theirs, torch.randn(2, 9, 10, dtype=torch.float64), random_graphs("random", 2, 9))


def test_any_convolution_of_pytorch_geometric_trains_and_is_causal(train, tmp_path, monkeypatch):
    geometric = pytest.importorskip("torch_geometric.nn")
    from studies.pyg import PyG

    def gin(C, D, heads):
        return geometric.GINConv(nn.Sequential(nn.Linear(C, heads * D), nn.ReLU(), nn.Linear(heads * D, heads * D)))

    convolutions = {
        "GATConv": lambda C, D, heads: geometric.GATConv(C, D, heads, add_self_loops=False),
        "GATv2Conv": lambda C, D, heads: geometric.GATv2Conv(C, D, heads, add_self_loops=False),
        "TransformerConv": geometric.TransformerConv,
        "SAGEConv": lambda C, D, heads: geometric.SAGEConv(C, heads * D),
        "GINConv": gin,
    }
    for name, convolution in convolutions.items():
        monkeypatch.setitem(LAYERS, name, lambda C, D, heads, convolution=convolution: PyG(convolution(C, D, heads)))
        train("pyg_free_gat", out=name, layer=name, max_iters=10, eval_interval=1, warmup_iters=1)
        losses = read(tmp_path / name)["val_loss"]
        assert len(losses) == 10 and losses[-1] < losses[0] - 0.1, name
        model = build("pyg_free_gat", layer=name).eval()
        ids = torch.randint(65, (1, 16))
        changed = ids.repeat(16, 1)
        changed[range(16), range(16)] = (changed[range(16), range(16)] + 1) % 65  # in the t-th copy, token t
        with torch.inference_mode():
            depends = (model(changed) - model(ids.repeat(16, 1))).abs().amax(dim=-1) > 1e-6  # (t, T)
        assert torch.equal(depends, causal(16).T), name  # on token t itself and on all before, on none after


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layer", ["gat", "gatv2", "dot", "mean"])
def test_layers_along_a_list_of_edges_are_the_dense_ones(layer):
    """What studies/cora.py trains: outputs and gradients are those of the layer with an adjacency."""
    torch.manual_seed(0)
    module, adjacency = ALL[layer](10, 4, heads=3), (torch.rand(21, 21) < 0.2) | torch.eye(21, dtype=torch.bool)
    x, grads = torch.randn(21, 10), []
    for f in (lambda x: module(x[None], adjacency)[0], lambda x: along_edges(module, x, adjacency.T.nonzero().T)):
        module.zero_grad()
        mine = x.clone().requires_grad_()
        out = f(mine)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        grads.append([out.detach(), mine.grad, *(p.grad for p in module.parameters())])
    for dense, sparse in zip(*grads):
        torch.testing.assert_close(sparse, dense, atol=1e-9, rtol=1e-11)


def write_planetoid(folder):
    """A graph of 580 nodes of 3 classes in the files of Planetoid: 20 to train on, 500 to validate, 60 to test."""
    sparse = pytest.importorskip("scipy.sparse")
    random = np.random.default_rng(0)
    classes, words = np.eye(3, dtype=np.int32)[random.integers(3, size=580)], random.random((580, 40)) < 0.1
    x = sparse.csr_matrix(words.astype(np.float32))
    parts = {"x": x[:20], "allx": x[:520], "tx": x[520:], "y": classes[:20], "ally": classes[:520], "ty": classes[520:]}
    parts["graph"] = {node: random.integers(580, size=3).tolist() for node in range(580)}
    folder.mkdir(parents=True)
    for name, part in parts.items():
        (folder / f"ind.cora.{name}").write_bytes(pickle.dumps(part))
    (folder / "ind.cora.test.index").write_text("\n".join(map(str, range(520, 580))), encoding="utf-8")


@pytest.mark.parametrize("name", ["allx", "graph", "test.index"])
def test_a_damaged_file_of_cora_is_one_line(tmp_path, name):
    pytest.importorskip("torch_geometric")
    write_planetoid(tmp_path / "Cora" / "raw")
    file = tmp_path / "Cora" / "raw" / f"ind.cora.{name}"
    file.write_bytes(b"<html>" + file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"--root .*: Cora can be neither read from there nor downloaded"):
        cora.main(["--root", str(tmp_path), "--seeds", "1", "--epochs", "1"])


def test_cora_is_trained_as_in_the_paper_with_our_layers_and_with_those_of_pytorch_geometric(tmp_path, capsys):
    """On a small citation graph in its files' format. GAT and GATConv start alike, so they end alike."""
    pytest.importorskip("torch_geometric")
    write_planetoid(tmp_path / "Cora" / "raw")
    cora.main(["--root", str(tmp_path), "--seeds", "2", "--epochs", "5", "--layers", "GAT,GATConv"])
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[1] for row in rows] == ["GAT", "GATConv"]
    assert rows[0][2] == rows[1][2]
    assert float(rows[0][8]) < 1e-4
