"""Serving: weights by how they are stored, caches by key heads and windows, speed by what must be read."""

import pytest

from luthier.plan.hardware import table
from luthier.plan.serving import serving_needs
from luthier.plan.shape import ModelShape, known_config, shape_of


def shape(hub_id: str) -> ModelShape:
    config = known_config(hub_id)
    assert config
    return shape_of(config)


LLAMA = shape("meta-llama/Llama-3.2-3B-Instruct")
GEMMA = shape("google/gemma-3-4b-it")
MIXTURE = shape("Qwen/Qwen3-30B-A3B-Instruct-2507")


def test_16_bits_are_two_bytes_a_parameter() -> None:
    needs = serving_needs(LLAMA, "float16", "none", 1024, 1)
    assert needs.weights_bytes == pytest.approx(2 * 3.213e9, rel=0.001)
    assert "6.43 GB" in needs.formula


def test_a_cache_has_keys_and_values_of_the_key_heads() -> None:
    """Llama-3.2-3B: 28 layers, 8 key heads of 128 for its 24 query heads."""
    assert serving_needs(LLAMA, "float16", "none", 1024, 1).cache_bytes == 2 * 28 * 8 * 128 * 2 * 1024
    assert serving_needs(LLAMA, "float16", "none", 2048, 3).cache_bytes == 6 * 2 * 28 * 8 * 128 * 2 * 1024


def test_a_sliding_layer_keeps_its_window() -> None:
    per_token_and_layer = 2 * GEMMA.kv_width * 2
    short, long = (serving_needs(GEMMA, "bfloat16", "none", length, 1).cache_bytes for length in (1024, 8192))
    assert short == 1024 * GEMMA.num_layers * per_token_and_layer
    assert long - short == (8192 - 1024) * GEMMA.full_attention_layers * per_token_and_layer


def test_4_bits_leave_head_and_embedding_as_they_are() -> None:
    needs = serving_needs(LLAMA, "bfloat16", "nf4", 1024, 1)
    table_and_norms = LLAMA.embedding_parameters + LLAMA.other_parameters
    assert needs.weights_bytes == pytest.approx(LLAMA.multiplied_parameters * 4.127 / 8 + table_and_norms * 2, rel=1e-4)


def test_one_token_reads_all_matrices_once_and_its_cache() -> None:
    """3.21 G parameters, the tied head among them, and 117 MB of cache: 49 tokens a second on a T4, as fast as its memory is."""
    needs = serving_needs(LLAMA, "float16", "none", 1024, 1)
    assert needs.read_bytes == pytest.approx(6.43e9 + 117e6, rel=0.001)
    assert needs.tokens_per_second(table()["T4"].bandwidth) == pytest.approx(49, abs=0.5)


def test_sequences_share_the_reading_of_weights() -> None:
    one, eight = (serving_needs(LLAMA, "float16", "none", 1024, number).tokens_per_second(320e9) for number in (1, 8))
    assert 6 * one < eight < 8 * one


def test_a_mixture_reads_the_experts_that_its_tokens_are_sent_to() -> None:
    one, many = (serving_needs(MIXTURE, "bfloat16", "none", 1024, number) for number in (1, 64))
    assert one.read_bytes - one.cache_bytes < 2 * 3.35e9
    assert many.read_bytes - many.cache_bytes == pytest.approx(2 * (MIXTURE.parameters - MIXTURE.embedding_parameters), rel=0.001)
    assert one.weights_bytes == many.weights_bytes == pytest.approx(61e9, rel=0.01)


def test_a_server_needs_a_tenth_of_the_memory_for_itself() -> None:
    needs = serving_needs(LLAMA, "float16", "none", 1024, 1)
    assert needs.fits(table()["T4"].memory_bytes)
    assert not needs.fits(needs.total_bytes)
