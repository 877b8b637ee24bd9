"""Initial weights with which a Qwen3 can copy before its first step.

Copying needs two heads in a row: one that looks back one token, and one that looks for the place whose previous token is the
present one ("induction", Olsson et al. 2022, arXiv:2209.11895). Trained from random weights they had not formed after 6 M tokens,
which one core takes ten minutes for; set by hand they copy 87 % of random tokens at step 0, and training takes it from
there. All other writes into the residual stream start at zero.
"""

import torch
from transformers import Qwen3ForCausalLM

GAIN = 2.0  # of the query and key norms: a perfect match scores GAIN²·√head_dim = 22.6, enough against some hundred other keys
CONSTANT = 0.1  # first entry of every embedding, from which the first head makes a query and a key that do not depend on the token
NUM_FAST_PAIRS = 4  # rotary pairs with angles 1 to 0.18 per token, which tell neighbours apart
LOOK_BACK_WRITE = 0.03  # the previous token's trace beside embeddings of standard deviation 0.02
COPY_WRITE = 0.3  # the copied token's trace, which has to outweigh the present token's own in the tied head


@torch.no_grad()
def install_copying(model: Qwen3ForCausalLM) -> None:
    """Set a look-back head in the first layer and copying heads in the second, one per key-value head."""
    config, size = model.config, model.config.head_dim
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    for attention in (first, second):
        attention.q_norm.weight.fill_(GAIN)
        attention.k_norm.weight.fill_(GAIN)
    model.model.embed_tokens.weight[:, 0] = CONSTANT

    # A key turned back by one token's angles fits the query of the next position best: score Σ cos(angle · (distance - 1)).
    angles = config.rope_parameters["rope_theta"] ** (-2 * torch.arange(NUM_FAST_PAIRS) / size)
    fast, turned = slice(0, NUM_FAST_PAIRS), slice(size // 2, size // 2 + NUM_FAST_PAIRS)
    first.q_proj.weight[:size, 0] = 0
    first.k_proj.weight[:size, 0] = 0
    first.q_proj.weight[fast, 0] = 1
    first.k_proj.weight[fast, 0] = torch.cos(angles)
    first.k_proj.weight[turned, 0] = torch.sin(angles)
    seen, written = _directions(config.hidden_size, size), _directions(config.hidden_size, size)
    first.v_proj.weight[:size] = seen.T
    first.o_proj.weight[:, :size] = LOOK_BACK_WRITE * written

    # What is compared goes to the slow rotary pairs, which hardly turn within a row.
    slow = [*range(size // 4, size // 2), *range(size // 2 + size // 4, size)]
    to_slow = torch.zeros(size, size)
    to_slow[slow, range(len(slow))] = 1
    for head in range(config.num_key_value_heads):
        query = head * config.num_attention_heads // config.num_key_value_heads * size
        queries, keys = slice(query, query + size), slice(head * size, (head + 1) * size)
        copied = _directions(config.hidden_size, size)
        second.q_proj.weight[queries] = to_slow @ seen.T
        second.k_proj.weight[keys] = to_slow @ written.T
        second.v_proj.weight[keys] = copied.T
        second.o_proj.weight[:, queries] = COPY_WRITE * copied


def _directions(hidden_size: int, num: int) -> torch.Tensor:
    """Orthonormal random columns that leave the constant entry alone."""
    columns: torch.Tensor = torch.linalg.qr(torch.randn(hidden_size, num))[0]
    columns[0] = 0
    return columns
