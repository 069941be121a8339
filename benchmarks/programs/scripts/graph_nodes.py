"""Classes of the nodes of a graph, with PyTorch Geometric: graph_nodes.py gcn|gat|sage|batches."""

import sys

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE, global_mean_pool

NODES, EDGES, FEATURES, CLASSES = 20000, 200000, 128, 40


def whole_graph(kind):
    graph = Data(
        x=torch.randn(NODES, FEATURES), edge_index=torch.randint(0, NODES, (2, EDGES)),
        y=torch.randint(0, CLASSES, (NODES,)), train_mask=torch.rand(NODES) < 0.5,
    ).cuda()  # fmt: skip
    model = {"gcn": GCN, "gat": GAT, "sage": GraphSAGE}[kind](FEATURES, 256, 3, CLASSES, dropout=0.5).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    for step in range(5):
        optimizer.zero_grad()
        out = model(graph.x, graph.edge_index)
        loss = F.cross_entropy(out[graph.train_mask], graph.y[graph.train_mask])
        loss.backward()
        optimizer.step()
        print(step, loss.item())


def batches():
    seed_everything(0)
    data = FakeDataset(num_graphs=256, avg_num_nodes=60, num_channels=64, num_classes=10)
    model = GIN(64, 128, 4).cuda()
    head = torch.nn.Linear(128, 10).cuda()
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-3)
    for graphs in DataLoader(data, batch_size=64, shuffle=True):
        graphs = graphs.cuda()  # noqa: PLW2901
        out = head(global_mean_pool(model(graphs.x, graphs.edge_index), graphs.batch))
        loss = F.cross_entropy(out, graphs.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(loss.item())


if __name__ == "__main__":
    batches() if sys.argv[1] == "batches" else whole_graph(sys.argv[1])
