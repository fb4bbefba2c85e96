"""What networks begin as, and how much is in memory meanwhile, and while the student is written: shards, and one
tensor more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from avd.config import Recipe, load_recipe
from avd.distillation.roles import Network, Roles
from avd.distillation.starts import Starts, read_other_sizes, resolve_starts
from avd.distillation.task import DistillTask
from avd.engine.checkpoint import list_checkpoints, load_checkpoint
from avd.engine.ranks import Ranks
from avd.methods.method import Method
from avd.models.adapters import AdapterVelocity
from avd.models.family import load_model
from avd.models.wan.model import VideoModel
from avd.planning.activations import LiveBytes
from avd.types import Conditions, UserError
from helpers.distill_run import distill, small_recipe
from helpers.tiny import LATENT_SHAPE, tiny_data, tiny_model

ADAPTERS = ("roles=adapters", "adapters.rank=4")


class Allocated(LiveBytes):
    """Counts real tensors only, not those of the meta device."""

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta":
            super()._count(storage)


@contextmanager
def one_of(size: int, rank: int = 0) -> Iterator[Ranks]:
    """One rank of `size`, of which the others are not there: what they would send arrives as it may."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield Ranks(rank, size, mesh=init_device_mesh("cpu", (size,), mesh_dim_names=("shard",)))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save(path)
    return path


def make_roles(folder: Path, ranks: Ranks, *overrides: str) -> Roles:
    recipe = load_recipe("avd", [f"model={folder}", *overrides])
    method = Method.of(recipe)
    return Roles(Starts.alike(load_model(str(folder)), method), recipe, method, ranks)


def tensors_of(roles: Roles) -> list[Tensor]:
    """Every network's own part of every tensor, each once."""
    networks = [roles.student.network, roles.average.network, roles.auxiliary("fake_score")]
    teacher = getattr(roles.teacher, "base", roles.teacher)
    found = {id(p): p for network in (*networks, teacher) for p in network.parameters()}
    return [p.to_local() if isinstance(p, DTensor) else p for p in found.values()]


def largest(folder: Path) -> int:
    return max(4 * torch.Size(shape).numel() for shape in load_model(str(folder)).weights().shapes.values())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_a_rank_that_starts_holds_its_shards_and_one_tensor(mode: tuple[str, ...], size: int, folder: Path) -> None:
    complete = sum(4 * torch.Size(shape).numel() for shape in load_model(str(folder)).weights().shapes.values())
    with one_of(size) as ranks, Allocated() as allocated:
        roles = make_roles(folder, ranks, *mode)
        own = sum(tensor.nbytes for tensor in tensors_of(roles))
        assert own < (4 if mode == () else 2) * complete / size * 1.3  # of four networks, or of one with adapters
        assert own <= allocated.peak <= 1.3 * own + largest(folder)


def test_a_larger_teacher_is_held_in_shards_too(folder: Path) -> None:
    with one_of(4) as ranks:
        recipe = load_recipe("avd", [f"model={folder}", f"teacher={folder}", *ADAPTERS])
        method, model, teacher = Method.of(recipe), load_model(str(folder)), load_model(str(folder))
        alike = Starts.alike(model, method)
        starts = Starts(Starts.alike(teacher, method).teacher, alike.student, alike.auxiliaries)
        roles = Roles(starts, recipe, method, ranks)
        held = sum(p.to_local().numel() for p in roles.teacher.parameters())  # type: ignore[attr-defined]
        assert held < 0.3 * sum(torch.Size(shape).numel() for shape in teacher.weights().shapes.values())


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_export_holds_one_tensor_on_the_first_rank_and_a_shard_elsewhere(mode: tuple[str, ...], folder: Path) -> None:
    peaks = {}
    for rank in (0, 1):
        with one_of(4, rank) as ranks:
            roles = make_roles(folder, ranks, *mode)
            with Allocated(tensors_of(roles)) as allocated:
                names = []
                for name, tensor in roles.average_stream():
                    names.append(name)
                    del tensor
        peaks[rank] = allocated.peak
        assert sorted(names) == (sorted(load_model(str(folder)).weights().shapes) if rank == 0 else [])
    # With adapters: the stored tensor, the product of the two matrices, their sum.
    assert peaks[0] <= (1.3 if mode == () else 3.5) * largest(folder)
    assert peaks[1] <= 0.3 * largest(folder)


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of the model in `folder`: `full`, and `lora`, whose student stays one."""
    path = tmp_path_factory.mktemp("runs")
    for name, mode in {"full": (), "lora": (*ADAPTERS, "adapters.merge=false")}.items():
        recipe = run_recipe(folder, *mode)
        model = load_model(str(folder))
        distill(path / name, 2, task=DistillTask(recipe, model, tiny_data(model), None))
    return path


def run_recipe(folder: Path, *overrides: str) -> Recipe:
    rates = [f"{role}.optimizer.learning_rate=1e-2" for role in ("student", "fake_score")]
    return small_recipe(f"model={folder}", "rollout.half_rate_stages=0", *rates, *overrides)


def resolved(folder: Path, *overrides: str) -> Roles:
    recipe = run_recipe(folder, *overrides)
    method = Method.of(recipe)
    return Roles(resolve_starts(recipe, method, load_model(str(folder))), recipe, method)


def velocity(network: Network) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *LATENT_SHAPE, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([0.8]), Conditions({"embedding": torch.zeros(1, 7, 64)}))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """But for the order of sums, which depends on where weights lie in memory."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def saved_velocity(run: Path, folder: Path, which: str) -> Tensor:
    """The velocity of a network in the newest checkpoint of a run."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    method, model = Method.of(recipe), load_model(str(folder))
    roles = Roles(Starts.alike(model, method), recipe, method)
    tensors, state = load_checkpoint(list_checkpoints(run / "checkpoints")[-1])
    roles.load(tensors, state)
    return velocity({"student": roles.average.network, "fake_score": roles.auxiliary("fake_score")}[which])


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_run_begins_with_the_student_and_the_fake_score_of_another(run: str, runs: Path, folder: Path) -> None:
    starts = [f"student.start={runs / run}", f"fake_score.start={runs / run}"]
    modes = [("roles=full",), *([ADAPTERS] if run == "lora" else [])]
    for mode in modes:
        roles = resolved(folder, *starts, *mode)
        for which, network in {"student": roles.student.network, "fake_score": roles.auxiliary("fake_score")}.items():
            assert_same(velocity(network), saved_velocity(runs / run, folder, which))
        assert_same(velocity(roles.average.network), velocity(roles.student.network))
        assert_same(velocity(roles.teacher), velocity(load_model(str(folder)).velocity()))
        assert not torch.allclose(velocity(roles.teacher), velocity(roles.student.network), atol=1e-4)


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_students_folder_is_trained_further(run: str, runs: Path, folder: Path) -> None:
    mode = ADAPTERS if run == "lora" else ()
    roles = resolved(folder, f"student.start={runs / run / 'student'}", *mode)
    assert_same(velocity(roles.student.network), saved_velocity(runs / run, folder, "student"))
    assert_same(velocity(roles.auxiliary("fake_score")), velocity(roles.teacher))


@pytest.mark.parametrize("mode", [(), ADAPTERS], ids=["full", "adapters"])
def test_another_model_teaches(mode: tuple[str, ...], folder: Path, larger: Path) -> None:
    roles = resolved(folder, f"teacher={larger}", *mode)
    assert_same(velocity(roles.teacher), velocity(load_model(str(larger)).velocity()))
    assert_same(velocity(roles.student.network), velocity(load_model(str(folder)).velocity()))


def test_a_fake_score_may_be_larger_than_the_student(folder: Path, larger: Path) -> None:
    roles = resolved(folder, f"fake_score.start={larger}")
    assert_same(velocity(roles.auxiliary("fake_score")), velocity(load_model(str(larger)).velocity()))
    recipe = run_recipe(folder, f"fake_score.start={larger}", f"teacher={larger}")
    found = read_other_sizes(recipe, Method.of(recipe))
    assert {name: sizes.layers for name, sizes in found.items()} == {"teacher": 3, "fake_score": 3}


@pytest.fixture(scope="module")
def larger(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one block more, with the same VAE and text encoder."""
    model = load_model(str(folder))
    assert isinstance(model, VideoModel)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        transformer = WanTransformer3DModel.from_config({**model.transformer.config, "num_layers": 3})
    path = tmp_path_factory.mktemp("larger") / "model"
    VideoModel(transformer, model.vae, model.text_encoder, model.tokenizer, model.settings).save(path)
    return path


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stranger") / "model"
    tiny_model(seed=5).save(path)
    return path


def test_what_cannot_be_a_start_is_refused_in_one_line(runs: Path, folder: Path, larger: Path, stranger: Path) -> None:
    student, empty = runs / "full" / "student", runs / "empty"
    empty.mkdir()
    shutil.copy(runs / "full" / "recipe.yaml", empty)
    cases = {
        (f"teacher={student}",): "teacher .*student is a student: name a many-step model",
        (f"teacher={stranger}",): "teacher .* has another VAE or text encoder than the model that is trained",
        (f"student.start={larger}",): "is a network of other sizes than .*: name that as the model",
        (f"student.start={stranger}",): "student.start .* has another VAE or text encoder",
        (f"student.start={empty}",): "student.start is the run .*empty, which has no checkpoint",
        (f"student.start={folder / 'nothing'}",): "there is no model .*nothing",
        (f"student.start={student}", *ADAPTERS): "is no LoRA of .*, as roles=adapters needs",
        (f"student.start={runs / 'lora'}", "roles=adapters", "adapters.rank=8"): "is a LoRA of rank 4 on .* layers",
        (f"fake_score.start={larger}", *ADAPTERS): "fake_score.start .* is no LoRA of",
        (f"fake_score.start={larger}", "fake_score.ida=0.9"): "other sizes than the student, and fake_score.ida mixes",
    }
    for overrides, message in cases.items():
        with pytest.raises(UserError, match=message) as raised:
            resolved(folder, *overrides)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("mode", [ADAPTERS, ("roles=full",)], ids=["adapters", "full"])
def test_what_a_start_had_learnt_is_exported_once(mode: tuple[str, ...], runs: Path, folder: Path) -> None:
    roles = resolved(folder, f"student.start={runs / 'lora'}", *mode)
    plain = load_model(str(folder)).velocity()
    plain.transformer.load_state_dict(dict(roles.average_stream()))
    assert_same(velocity(plain), velocity(roles.student.network))


def test_one_base_serves_all_who_begin_as_its_adapters(runs: Path, folder: Path) -> None:
    for teacher in ((), (f"teacher={folder}",)):
        roles = resolved(folder, f"student.start={runs / 'lora' / 'student'}", *teacher, *ADAPTERS)
        assert isinstance(roles.teacher, AdapterVelocity) and isinstance(roles.student.network, AdapterVelocity)
        assert roles.teacher.base is roles.student.network.base


def test_a_larger_fake_score_of_a_run_is_taken_over_at_its_size(folder: Path, larger: Path, tmp_path: Path) -> None:
    recipe = run_recipe(folder, f"fake_score.start={larger}")
    method, model = Method.of(recipe), load_model(str(folder))
    starts, data = resolve_starts(recipe, method, model), tiny_data(load_model(str(folder)))
    task = DistillTask(recipe, model, data, None, starts=starts)
    distill(tmp_path / "run", 2, task=task)
    roles = resolved(folder, f"fake_score.start={tmp_path / 'run'}")
    assert_same(velocity(roles.auxiliary("fake_score")), velocity(task.roles.auxiliary("fake_score")))
    again = run_recipe(folder, f"fake_score.start={tmp_path / 'run'}")
    assert read_other_sizes(again, Method.of(again))["fake_score"].layers == 3


def test_ranks_that_found_different_checkpoints_do_not_begin(runs: Path, folder: Path) -> None:
    recipe = run_recipe(folder, f"student.start={runs / 'full'}")
    starts = resolve_starts(recipe, Method.of(recipe), load_model(str(folder)))

    class Others(Ranks):
        def list_numbers(self, number: float) -> list[float]:
            return [number, number - 1]

    starts.check_ranks(Ranks())
    with pytest.raises(UserError, match=r"processes found different checkpoints of the run .*full"):
        starts.check_ranks(Others(size=2))
    starts.close()


def test_a_lora_that_does_not_fit_is_one_line(runs: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "lora" / "student", tmp_path / "lora")
    (file,) = (tmp_path / "lora").glob("*.safetensors")
    tensors = load_file(file)
    half = {name: tensor for name, tensor in tensors.items() if not name.endswith("attn1.to_q.lora_B.weight")}
    wide = {name: torch.cat([tensor, tensor], 1) if "lora_A" in name else tensor for name, tensor in tensors.items()}
    for damaged, message in ((half, "holds half a pair"), (wide, "its base has no such linear layer")):
        save_file(damaged, file)
        with pytest.raises(UserError, match=message):
            resolved(folder, f"student.start={tmp_path / 'lora'}")
