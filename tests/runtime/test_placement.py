"""Where the parts of a model go when a card is too small for all; none of it needs torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_runtime.errors import KernelError
from stem_runtime.formats.packed import PackedModel, open_packed
from stem_runtime.gpu.memory import bytes_needed
from stem_runtime.gpu.placement import Placement, place
from stem_runtime.sparsity.neurons import bits_of, record_sizes

from .tiny import random_packed, tiny_config

CAPACITY = 32
WIDE = {"n_layers": 4, "ffn_dim": 1056, "d_model": 512}
"""FFNs large enough that of the neurons few can be worth more than of the layers few."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    return open_packed(random_packed(tmp_path_factory.mktemp("m") / "m", tiny_config(**WIDE)))


def frequencies(skew: float, layers: int = 4, ffn: int = 1056) -> np.ndarray:
    """A tenth of the neurons fire often, the others so much more seldom."""
    rng = np.random.default_rng(3)
    often = rng.random((layers, ffn)) < 0.1
    return np.where(often, 0.5, 0.5 * (1 - skew)).astype(np.float32)


def test_what_has_room_goes_on_the_card_whole(model: PackedModel) -> None:
    needed = bytes_needed(model, None, CAPACITY)
    found = place(model, needed, CAPACITY, frequency=frequencies(1.0))
    assert found == Placement(4, card_bytes=needed, wanted_bytes=needed, room=needed)
    assert found.whole
    assert found.host_seconds == 0
    assert found.describe() == "all 4 layers on the card"
    assert not place(model, needed - 1, CAPACITY).whole
    assert not place(model, needed, CAPACITY, parts="gate").whole


def test_as_few_layers_as_have_no_room_stay_on_the_cpu(model: PackedModel) -> None:
    for first in range(1, 4):
        room = bytes_needed(model, None, CAPACITY, layers=range(first, 4))
        found = place(model, room, CAPACITY)
        assert (found.first, found.card_bytes, found.hot) == (first, room, None)
        layer = sum(model.matrix(f"layers.0.{name}").nbytes for name in (*"qkvo", "up"))
        layer += model.matrix("layers.0.gate").nbytes + model.matrix("layers.0.down").nbytes
        assert found.host_bytes == first * layer
    assert found.describe() == (
        "the first 3 of 4 layers on the CPU, the others and the output head on the card; "
        f"all of it takes {found.wanted_bytes / 1e9:.3f} GB and {room / 1e9:.3f} GB are free there"
    )


def test_a_card_without_room_for_a_layer_is_refused(model: PackedModel) -> None:
    least = bytes_needed(model, None, CAPACITY, layers=range(3, 4))
    assert place(model, least, CAPACITY).first == 3
    with pytest.raises(
        KernelError, match=r"One layer and the output head of tiny take 0\.002 GB of"
    ):
        place(model, least - 1, CAPACITY)
    with pytest.raises(
        KernelError, match=r"and 0\.000 GB are free; take a smaller context, or dev"
    ):
        place(model, -5, CAPACITY, frequency=frequencies(0.9))


def card_of(model: PackedModel, share: float) -> int:
    """Room for everything but this share of the neurons' records."""
    each = sum(
        record_sizes(*(model.matrix(f"layers.0.{n}") for n in ("gate", "up", "down")), "gate")
    )
    whole = bytes_needed(model, "gate", CAPACITY)
    tiles = sum(model.matrix(f"layers.0.{n}").nbytes for n in ("gate", "up", "down"))
    return whole - 3 * tiles - round(share * 4 * 1056 * each)


def test_ffns_are_split_where_that_spares_the_cpu_more(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stem_runtime.gpu.placement.CROSSING", 0.0)
    often = frequencies(0.99)
    found = place(model, card_of(model, 0.5), CAPACITY, frequency=often)
    assert found.hot is not None
    assert found.first == 0
    hot = np.stack([bits_of(mask, 1056) for mask in found.hot])
    assert hot[often == 0.5].all()
    assert abs(hot.mean() - 0.5) < 0.01
    assert found.hot_share == hot.mean()
    assert found.crossings == 4
    assert found.describe().startswith(
        "of every FFN the 50% of the neurons that fire most on the card, the others on the CPU; all"
    )


def test_ffns_of_neurons_that_all_fire_alike_are_not_split(model: PackedModel) -> None:
    found = place(model, card_of(model, 0.5), CAPACITY, frequency=frequencies(0.0))
    assert found.hot is None
    assert found.first > 0
    # nor where the way there and back takes longer than what it spares
    assert place(model, card_of(model, 0.5), CAPACITY, frequency=frequencies(0.99)).hot is None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    room=st.integers(0, 9_000_000),
    capacity=st.integers(1, 256),
    skew=st.none() | st.floats(0, 1),
    sparse=st.booleans(),
)
def test_nothing_takes_more_than_the_room(
    model: PackedModel, room: int, capacity: int, skew: float | None, sparse: bool
) -> None:
    often = None if skew is None else frequencies(skew)
    try:
        found = place(model, room, capacity, parts="gate" if sparse else None, frequency=often)
    except KernelError:
        least = bytes_needed(model, "gate" if sparse else None, capacity, layers=range(3, 4))
        assert room < least
        return
    assert found.card_bytes <= found.room == room
    assert (found.host_seconds == 0) == found.whole
    assert found.first == 0 or found.hot is None
    if found.first > 1 or found.hot is not None:
        with_more = place(
            model, 2 * room, capacity, parts="gate" if sparse else None, frequency=often
        )
        assert with_more.host_seconds <= found.host_seconds
