"""What a compiled step moves: parts that are counted apart, and sums of a graph by hand."""
import pytest
import torch

from config import with_values
from models import build_model
from models.compiling import compile_units
from tests.contracts.tiny import BATCH, HEIGHT, WIDTH, make_config
from tools.benchmarks.compiled_traffic import Calls, around_units, compiled_bytes
from tools.benchmarks.traffic import counts


@pytest.mark.parametrize("format", ["O0", "O1"])
def test_what_is_around_the_units_does_not_depend_on_their_number(format):
    config = with_values(make_config("vit", "no_tables"), DATA__BATCH_SIZE=BATCH, AMP_OPT_LEVEL=format)
    deeper = with_values(config, MODEL__VIT__DEPTH=5)
    assert 0 < around_units(config) == around_units(deeper)


def test_compiled_graphs_are_counted_whenever_they_are_called():
    """Two layers share a graph each way: x and weight are read, their product is written."""
    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

        def units(self):
            return list(self.layers)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    calls, size = Calls(), 4 * (2 * HEIGHT * WIDTH + WIDTH * WIDTH)
    with calls.counted():
        out = compile_units(Layers(), backend=calls.backend)(torch.randn(HEIGHT, WIDTH))
        assert calls.moved == 2 * size
        out.sum().backward()
    assert calls.moved == 2 * size + size + 2 * size  # gradients of two weights, and of the input of the second layer


@pytest.mark.slow  # g++ compiles
def test_step_moves_what_its_graphs_and_its_surroundings_do():
    config = with_values(make_config("vit", "no_tables"), DATA__BATCH_SIZE=BATCH, AMP_OPT_LEVEL="O0")
    with torch.device("meta"):
        model = build_model(config)
    eager = counts(config, model, "cpu")["moved_gib"] * BATCH * 2 ** 30
    assert around_units(config) < compiled_bytes(config) < 2 * eager
