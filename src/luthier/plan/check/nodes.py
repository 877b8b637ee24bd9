"""Findings about several machines: whether the ranks stand on them evenly, and what goes over the network between them."""

from collections.abc import Iterator

from luthier.core.finding import Change, Finding
from luthier.plan.check.case import Case, Check
from luthier.plan.check.words import count


def nodes_uneven(case: Case) -> Iterator[Finding]:
    """The ranks cannot stand on the nodes in equal numbers.

    Severity: refuse.

    Every node starts as many ranks as every other, and gives each a device of its own.

    Arithmetic: 3 nodes of 2 GPUs are 6 devices; with tensor 4 they make one replica of 4 ranks, of which 3 nodes would have 1.33 each.

    What to do: as many nodes as divide the ranks, or a division of the model that fills them.

    Source: torchrun (`--nnodes`, `--nproc-per-node`).
    """
    layout, nodes = case.setup.layout, case.recipe.parallel.nodes
    if layout.devices % nodes == 0:
        return
    fewer = max(each for each in range(1, nodes) if layout.devices % each == 0)
    yield Finding(
        code="nodes-uneven",
        severity="refuse",
        message=f"data {layout.data} × tensor {layout.tensor} × pipeline {layout.pipeline} are {layout.devices} ranks, and {nodes} nodes "
        "cannot have as many each",
        evidence={"ranks": layout.devices, "nodes": nodes},
        changes=(Change(path="parallel.nodes", value=fewer, why=f"{count(layout.devices // fewer, 'rank')} on each"),),
    )


def tensor_across_nodes(case: Case) -> Iterator[Finding]:
    """The ranks that divide every matrix stand on several nodes.

    Severity: warn.

    Tensor parallelism adds up activations twice in every layer, forward and backward. Inside a node that goes over NVLink; between nodes
    over a network that is some ten times slower.

    Arithmetic: a token of hidden size 4,096 in bfloat16 is 8 kB; 16,384 tokens are 134 MB a sum, four sums a layer: at 450 GB/s 1.2 ms, at
    50 GB/s (400 Gbit/s) 11 ms, in each of 36 layers.

    What to do: `tensor` no larger than a node's devices, and the nodes as replicas (`data`) or stages (`pipeline`).

    Source: Narayanan et al. 2021 (arXiv:2104.04473), section 3: tensor parallelism up to the size of a node.
    """
    layout, nodes = case.setup.layout, case.recipe.parallel.nodes
    each = layout.devices // nodes
    if nodes == 1 or layout.devices % nodes or each % layout.tensor == 0:
        return
    changes = [Change(path="parallel.tensor", value=each, why="the ranks of one node")]
    if case.recipe.parallel.data != "auto":
        changes.append(Change(path="parallel.data", value=layout.data * layout.tensor // each, why="as many ranks as before"))
    yield Finding(
        code="tensor-across-nodes",
        severity="warn",
        message=f"With {count(each, 'rank')} on each of {nodes} nodes, matrices are divided among {layout.tensor} ranks across the network",
        evidence={"tensor": layout.tensor, "ranks_per_node": each},
        changes=tuple(changes) if layout.tensor % each == 0 else (),
    )


CHECKS: tuple[Check, ...] = (nodes_uneven, tensor_across_nodes)
