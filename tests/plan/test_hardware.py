"""The table's numbers are dense rates with sources; a name finds its device; this machine is what its own tools say."""

import datetime
import json
from dataclasses import replace

import pytest
import torch

from luthier.core.errors import UsageError
from luthier.core.hardware import Gpu, Hardware, this_machine
from luthier.model.load import _has_bfloat16
from luthier.plan.hardware import TABLE, device_of, here, table

DATA_CENTRE = ["T4", "L4", "A10", "A10G", "L40S", "A100-40GB", "A100-80GB", "A800", "H100", "H200", "B200", "V100"]
GEFORCE = ["RTX-3090", "RTX-4090", "RTX-5090"]
GPU = Gpu(name="NVIDIA L4", memory_bytes=22_700 << 20, free_bytes=20_000 << 20, capability="8.9", drives_display=False, persistent=True)
MACHINE = Hardware(processor="AMD EPYC", cores=2, memory_bytes=24 << 30, bfloat16=True, gpus=())


def test_the_table_has_the_devices_that_users_name() -> None:
    assert list(table()) == DATA_CENTRE + GEFORCE


@pytest.mark.parametrize("entry", json.loads(TABLE.read_text())["devices"], ids=lambda entry: entry["id"])
def test_every_number_has_a_source_and_every_price_a_date(entry: dict[str, str | float]) -> None:
    assert entry["rates_source"]
    assert entry["price_source"]
    assert datetime.date.fromisoformat(str(entry["price_date"])) <= datetime.date(2026, 11, 20)
    driver_keeps = float(entry["nvidia_smi_mib"]) / 1024 - float(entry["usable_gib"])
    assert 0 < driver_keeps < 0.055 * float(entry["usable_gib"])  # a T4's error-correcting code takes the most


def test_rates_are_dense_ones() -> None:
    """The maker's page states 242 for the L4, 1,979 for the H100 and 733 for the L40S, all with sparsity."""
    assert [table()[name].rates["bfloat16"] for name in ("L4", "H100", "L40S", "A100-80GB")] == [121e12, 989e12, 362e12, 312e12]


def test_prices_are_seed_002s_where_it_states_them() -> None:
    assert [table()[name].price_per_hour for name in ("T4", "L4", "A10")] == [0.59, 0.80, 1.10]


def test_no_price_is_invented() -> None:
    assert table()["A800"].price_per_hour is None


def test_old_gpus_have_no_bfloat16() -> None:
    without = {name for name, device in table().items() if not device.bfloat16}
    assert without == {"T4", "V100"}
    assert all("bfloat16" not in table()[name].rates for name in without)


def test_a_name_may_say_how_many() -> None:
    assert device_of("L4") == (table()["L4"], 1)
    assert device_of("H200x4") == (table()["H200"], 4)
    assert device_of("A100-80GBx16") == (table()["A100-80GB"], 16)


def test_a_name_is_known_in_small_letters_too() -> None:
    assert device_of("h100x2") == device_of("H100x2")


@pytest.mark.parametrize(("words", "told"), [("A100", "A100-80GB"), ("RTX4090", "RTX-4090"), ("H200x0", "H200x4"), ("TPU", "T4")])
def test_another_name_is_an_error_that_names_the_nearest(words: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        device_of(words)
    assert told in str(error.value)


def test_a_machine_without_gpus_is_its_processor() -> None:
    device, count = here(MACHINE)
    assert (device.kind, device.name, count, device.memory_bytes, device.bfloat16) == ("cpu", "AMD EPYC", 1, 24 << 30, True)
    assert (device.price_per_hour, device.local) == (0.0, True)


def test_a_gpu_here_has_the_tables_rates_its_own_memory_and_costs_nothing() -> None:
    device, count = here(replace(MACHINE, gpus=(GPU, GPU)))
    assert (device.id, count, device.rates) == ("L4", 2, table()["L4"].rates)
    assert (device.memory_bytes, device.price_per_hour, device.local) == (22_700 << 20, 0.0, True)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA A800-SXM4-80GB", "A800"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA GeForce RTX 5090", "RTX-5090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 Laptop GPU"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
    ],
)
def test_nvidia_smis_names_are_found_and_lookalikes_are_not(name: str, found: str) -> None:
    assert here(replace(MACHINE, gpus=(replace(GPU, name=name),)))[0].id == found


def test_an_unknown_gpu_has_bfloat16_by_its_instructions() -> None:
    turing, blackwell = (replace(GPU, name="NVIDIA Unheard-of", capability=capability) for capability in ("7.5", "12.0"))
    assert [here(replace(MACHINE, gpus=(gpu,)))[0].bfloat16 for gpu in (turing, blackwell)] == [False, True]


def test_what_the_plan_says_of_this_processor_is_what_training_will_find() -> None:
    assert here(replace(this_machine(), gpus=()))[0].bfloat16 == _has_bfloat16(torch.device("cpu"))
