"""The average of the weights: its recursion, the exchange with the parameters, and shards on two processes."""

import os

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from medunifier.shared.training.distributed import broadcast_object
from medunifier.shared.training.ema import AveragedModule, SwappedAverage
from tests.two_processes import two_processes

DECAY = 0.6  # reached at step 13 of the warm-up


def values(step):
    return {"matrix": torch.full((5, 3), float(step)), "scalar": torch.tensor(-2.0 * step)}


def reference(steps):
    """Return the average of the first ``steps`` values by the recursion, in float64."""
    average = {name: value.double() for name, value in values(0).items()}
    for step in range(steps):
        decay = min(DECAY, (1 + step) / (10 + step))
        average = {n: decay * average[n] + (1 - decay) * v.double() for n, v in values(step + 1).items()}
    return average


def trained(parameters, steps):
    average = SwappedAverage(parameters, DECAY)
    for step in range(steps):
        for name, value in values(step + 1).items():
            parameters[name].detach().copy_(value)
        average.update()
    return average


def test_the_average_follows_the_recursion_with_its_warm_up():
    parameters = {name: torch.nn.Parameter(value) for name, value in values(0).items()}
    average = trained(parameters, 20)
    for name, expected in reference(20).items():
        assert torch.allclose(average.state_dict()["averages"][name].double(), expected, rtol=1e-6)


def test_both_kinds_average_alike():
    module = torch.nn.Linear(3, 2)
    swapped = SwappedAverage(dict(module.named_parameters()), DECAY)
    copied = AveragedModule(module, DECAY)
    for _ in range(5):
        for parameter in module.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        swapped.update()
        copied.update(module)
    assert all(map(torch.equal, swapped.averages, copied.module.parameters()))
    assert not torch.equal(copied.module.weight, module.weight)


def test_within_the_context_the_parameters_are_the_averages_in_their_own_memory():
    parameters = {name: torch.nn.Parameter(value) for name, value in values(0).items()}
    average, memory = trained(parameters, 3), parameters["matrix"].data_ptr()
    expected = [tensor.clone() for tensor in average.averages]
    with pytest.raises(RuntimeError), average.swapped():  # an error leaves the weights in training in place too
        assert all(map(torch.equal, parameters.values(), expected))
        assert parameters["matrix"].data_ptr() == memory
        raise RuntimeError
    assert all(torch.equal(parameters[name], value) for name, value in values(3).items())
    assert all(map(torch.equal, average.averages, expected))


def _sharded(rank, port, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    mesh = init_device_mesh("cpu", (2,))
    placed = {"matrix": [Shard(0)], "scalar": None}  # five rows on two processes: shards of unequal size

    def shard(name, value):
        value = value if placed[name] is None else distribute_tensor(value, mesh, placed[name])
        return torch.nn.Parameter(value)

    parameters = {name: shard(name, value) for name, value in values(0).items()}
    average = SwappedAverage(parameters, DECAY)
    for step in range(7):
        for name, value in values(step + 1).items():
            parameters[name].data.copy_(shard(name, value).data)
        average.update()
    states = [average.state_dict()]
    state = broadcast_object(states[0])  # as a file that both read
    other = SwappedAverage({name: shard(name, value) for name, value in values(0).items()}, DECAY)
    other.load_state_dict(state)
    with other.swapped():
        pass
    states.append(other.state_dict())
    if rank == 0:
        torch.save(states, folder / "states.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow  # on two processes without shards: test_train.py of stage 2
def test_shards_on_two_processes_equal_one_and_load_from_whole_tensors(tmp_path):
    with two_processes(_sharded, tmp_path):
        whole = trained({name: torch.nn.Parameter(value) for name, value in values(0).items()}, 7).state_dict()
    for state in torch.load(tmp_path / "states.pt"):
        assert state["steps"] == 7
        for name, value in whole["averages"].items():
            assert torch.equal(state["averages"][name], value)
