"""Any module across widths: roles and rates, its limit, batches of members, what is recorded, what is refused."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

import comparisons
import dmft
import finite_nets
from dmft.errors import DivergenceError, StoreError
from finite_nets.modules import members, store
from finite_nets.modules.identity import probed, source_of
from finite_nets.modules.members import Batched, conv_by_products, start
from finite_nets.modules.rates import Rate
from finite_nets.modules.training import Optimiser, augmented


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def perceptron(N):
    linear = [nn.Linear(a, b, bias=False) for a, b in ((5, N), (N, N), (N, 1))]
    return nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2])


class Mixed(nn.Module):
    """Something of every role."""

    def __init__(self, N):
        super().__init__()
        self.token, self.place = nn.Embedding(7, N), nn.Parameter(torch.zeros(3, N))
        self.norm, self.mix = nn.LayerNorm(N), nn.Linear(N, 2 * N)
        self.readout, self.heat = nn.Linear(2 * N, 7), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.heat * self.readout(torch.relu(self.mix(self.norm(self.token(x) + self.place))))


class Image(nn.Module):
    """Convolutions with group norm."""

    def __init__(self, N):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, N, 3, padding=1), nn.Conv2d(N, N, 3, padding=1, groups=1)
        self.norm, self.readout = nn.GroupNorm(2, N), nn.Linear(N, 2)

    def forward(self, x):
        return self.readout(torch.relu(self.norm(self.conv(torch.relu(self.stem(x))))).mean((2, 3)))


rng = np.random.default_rng(0)
TASK = dmft.Task(rng.standard_normal((6, 5)), np.tile([-1.0, 1.0], 3), rng.standard_normal((4, 5)), np.ones(4))
IMAGES = dmft.Task(rng.standard_normal((12, 4, 4, 2)), np.eye(2)[[0, 1] * 6])
TEXT = dmft.Text(rng.integers(0, 7, 200), rng.integers(0, 7, 60), "abcdefg", context=3)


# ---- rates -----------------------------------------------------------------------------------------------------------


def test_roles_follow_from_shapes():
    found = {one.name: one.role for one in finite_nets.mean_field_rates(Mixed, [4, 8]).at[4]}
    assert found == {
        "place": "embedding",
        "heat": "fixed",
        "token.weight": "embedding",
        "norm.weight": "vector",
        "norm.bias": "vector",
        "mix.weight": "hidden",
        "mix.bias": "vector",
        "readout.weight": "output",
        "readout.bias": "fixed",
    }


def test_rates_of_sgd_are_those_of_the_parameterization():
    """Rate eta gamma0^2 N s^2 of V = s W, as docs/howto/own_networks.md has them."""
    gamma0, D = 0.5, 5
    for N in (8, 32):
        rates = finite_nets.mean_field_rates(perceptron, [N], gamma0=gamma0).at[N]
        s = np.array([D**-0.5, N**-0.5, 1 / (gamma0 * N)])
        np.testing.assert_allclose([one.deviation for one in rates], s, rtol=1e-12)
        np.testing.assert_allclose([one.rate for one in rates], gamma0**2 * N * s**2, rtol=1e-12)


def test_rates_of_adam():
    gamma0, N = 0.5, 8
    rates = {one.name: one for one in finite_nets.mean_field_rates(Mixed, [N], optimiser="adam", gamma0=gamma0).at[N]}
    expected = {"mix.weight": gamma0 / N, "readout.weight": 1 / (2 * N), "token.weight": gamma0, "norm.bias": gamma0}
    for name, rate in expected.items():
        assert rates[name].rate == pytest.approx(rate)
    assert rates["mix.weight"].eps == pytest.approx(1 / (gamma0 * N))
    assert rates["readout.weight"].eps == 1


def test_roles_and_factors_may_be_given():
    given = finite_nets.mean_field_rates(Mixed, [4], roles={"place": "fixed"}, factors={"mix.*": 3.0}).at[4]
    plain = finite_nets.mean_field_rates(Mixed, [4]).at[4]
    assert {one.name: one.role for one in given}["place"] == "fixed"
    ratios = {a.name: a.rate / b.rate for a, b in zip(given, plain, strict=True)}
    assert ratios["mix.weight"] == ratios["mix.bias"] == pytest.approx(3)
    assert ratios["readout.weight"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda N: nn.Linear(3, 4), "have the same shapes: none of 2 parameters grows"),
        (lambda N: nn.Linear(N * N, 2), r"grows from \(2, 16\) to \(2, 64\), like N\^2"),
        (lambda N: nn.Sequential(*[nn.Linear(2, N)] * (1 if N == 4 else 2), nn.Linear(N, N)), "different parameters"),
        (lambda N: nn.Sequential(*[nn.Linear(N, N)] * 2), "is shared with another"),
        (lambda N: 3, "returned int, not a torch.nn.Module"),
        (nn.Linear(3, 4), r"make_module=Linear\(...\) is a module; give the function of the width"),
        (lambda N: nn.ConvTranspose2d(2, N, 3), r"weight is of ConvTranspose2d, whose weights are \(in, out, ...\)"),
        (lambda N: nn.Linear(2, N).requires_grad_(False), "weight has requires_grad=False"),
    ],
)
def test_modules_without_a_width_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        finite_nets.mean_field_rates(make, [4, 8])


# ---- optimisers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_updates_are_those_of_torch(optimiser):
    """Each parameter a group with its own rate, eps and decay, as the top of `finite_nets.modules.training` says."""
    torch.manual_seed(0)
    eta, lam, extra = (0.0, 0.3, 0.0, 0.2), 0.2, {"momentum": 0.7} if optimiser == "sgd" else {"eps": 1e-2}
    training = finite_nets.ModuleTraining(eta, steps=4, optimiser=optimiser, weight_decay=lam, **extra)
    rates = [Rate("a", "hidden", (3, 3), 3, 1.0, 0.5, 0.1), Rate("b", "output", (2,), 3, 1.0, 2.0, 1.0)]
    start_values = {one.name: torch.randn(one.shape) for one in rates}
    ours = {name: value[None].clone() for name, value in start_values.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in start_values.items()}
    groups = [
        {"params": [theirs[one.name]], "lr": one.rate, "weight_decay": lam / one.rate}
        | ({"eps": 1e-2 * one.eps} if optimiser == "adam" else {})
        for one in rates
    ]
    reference = torch.optim.AdamW(groups) if optimiser == "adam" else torch.optim.SGD(groups, momentum=0.7)
    skipping = {name: value.clone() for name, value in ours.items()}
    steps, others = Optimiser(training, rates, ours), Optimiser(training, rates, skipping)
    for t in range(4):
        gradients = {name: torch.randn(value.shape) for name, value in theirs.items()}
        for name, value in theirs.items():
            value.grad = gradients[name]
        for group, one in zip(reference.param_groups, rates, strict=True):
            group |= {"lr": eta[t] * one.rate}
        reference.step()
        steps.step(t, {name: g[None] for name, g in gradients.items()})
        if eta[t]:
            others.step(t, {name: g[None] for name, g in gradients.items()})
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name][0], value.detach(), rtol=1e-5, atol=1e-6)
        assert (ours[name][0] - start_values[name]).abs().max() > 0.05
        assert (skipping[name][0] - value).abs().max() > 0.01  # moments move at rate 0 too


def test_schedules_may_start_at_zero_and_betas_are_two():
    training = dmft.GradientDescent((0.0, 0.5), steps=2)
    nets = finite_nets.train_modules(perceptron, TASK, training, [4], 1, save_steps=[0, 1, 2])
    first, second, third = nets.prediction.values[0, 0]
    np.testing.assert_array_equal(first, second)
    assert abs(third - second).max() > 1e-3
    with pytest.raises(ValueError, match="zero at every step"):
        finite_nets.ModuleTraining((0.0, 0.0), steps=2)
    with pytest.raises(ValueError, match=r"betas=0.9 is no pair of numbers; give e.g. betas=\(0.9, 0.999\)"):
        finite_nets.ModuleTraining(0.1, steps=2, optimiser="adam", betas=0.9)


def test_batches_are_epochs_or_one_pass():
    training = finite_nets.ModuleTraining(1.0, steps=6, batch=2, repeat=True)
    drawn = [next(found) for found in [training.indices(5)] for _ in range(4)]
    assert len(np.unique(np.concatenate(drawn[:2]))) == 4
    once = finite_nets.ModuleTraining(1.0, steps=3, batch=2, repeat=False).indices(6)
    assert sorted(np.concatenate([next(once) for _ in range(3)])) == list(range(6))
    with pytest.raises(ValueError, match="one pass over 5 samples has 2 steps of batches of 2, not steps=3"):
        finite_nets.ModuleTraining(1.0, steps=3, batch=2, repeat=False).indices(5)


def test_augmentation_shifts_and_flips():
    x = torch.arange(2 * 3 * 3.0).reshape(2, 1, 3, 3) + 1
    flipped = augmented(x.expand(2, 1, 3, 3), ["flip"], np.random.default_rng(1))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(flipped, x, strict=True))
    moved = augmented(x, ["crop"], np.random.default_rng(3))
    assert moved.shape == x.shape
    assert set(moved.unique().tolist()) <= {0.0, *x.unique().tolist()}
    assert not torch.equal(moved, x)


# ---- the limit -------------------------------------------------------------------------------------------------------


def test_a_perceptron_has_the_law_of_the_same_network_of_the_library():
    """Means over 200 networks of width 24 within four standard errors at every step; twins at a wrong rate are not."""
    training = dmft.GradientDescent(0.8, steps=4, momentum=0.3)
    problem = dmft.Problem(dmft.MLP(2, dmft.tanh(), gamma0=1.5), TASK, training)
    reference = finite_nets.train_ensemble(problem, widths=[24], seeds=200, observables=["prediction", "loss"])

    def z(**options):
        nets = finite_nets.train_modules(
            perceptron, TASK, training, [24], 200, gamma0=1.5, centered=True, save_steps=range(5), **options
        )
        a, b = nets.prediction.values[0, :, 1:], reference.prediction.values[0, :, 1:]
        se = np.hypot(a.std(0), b.std(0)) / np.sqrt(200)
        return abs(a.mean(0) - b.mean(0)) / se

    assert z().max() < 4
    assert z(factors={"2.weight": 2.0}).max() > 6
    assert z(parameterization="standard").max() > 6


def test_coordinate_check():
    """Changes of activations are flat in width; with one rate for all parameters they are not."""
    change = {}
    for parameterization in ("mean_field", "standard"):
        nets = finite_nets.train_modules(
            perceptron,
            TASK,
            finite_nets.ModuleTraining(0.1, steps=3),
            [32, 512],
            4,
            layers=["0", "2"],
            parameterization=parameterization,
        )
        change[parameterization] = nets.activation_change.isel(step=-1).mean("seed").values
    narrow, wide = change["mean_field"]
    np.testing.assert_allclose(wide / narrow, 1, atol=0.3)
    narrow, wide = change["standard"]
    assert abs(np.log(wide / narrow)).min() > 0.4


def test_adam_has_a_limit_too():
    nets = finite_nets.train_modules(
        Mixed,
        TEXT,
        finite_nets.ModuleTraining(0.1, steps=5, batch=8, optimiser="adam"),
        [16, 128],
        4,
        loss="cross_entropy",
        layers=["mix"],
        observables=["loss", "activation_change"],
    )
    narrow, wide = nets.activation_change.isel(step=-1, layer=0).mean("seed").values
    assert 0.7 < wide / narrow < 1.4
    assert (nets.loss.isel(step=-1) < nets.loss.isel(step=0)).all()


# ---- batches and records ---------------------------------------------------------------------------------------------


def images(**options):
    training = finite_nets.ModuleTraining(0.5, steps=3, batch=4, augment=("flip", "crop"))
    given = {"loss": "cross_entropy", "layers": ["norm"], "save_steps": [0, 3], **options}
    return finite_nets.train_modules(Image, IMAGES, training, [4, 8], 3, **given)


def test_members_do_not_depend_on_their_batch():
    together, alone = images(), images(memory_limit=75_000)
    np.testing.assert_allclose(together.prediction, alone.prediction, atol=1e-5)
    np.testing.assert_allclose(together.activation_change, alone.activation_change, atol=1e-5)
    other = images(seed=1)
    assert abs(other.prediction - alone.prediction).max() > 1e-3


def test_what_is_recorded_is_what_the_module_does():
    nets = finite_nets.train_modules(
        perceptron,
        TASK,
        finite_nets.ModuleTraining(0.5, steps=1),
        [8],
        2,
        layers=["2"],
        observables=["prediction", "loss", "feature_kernel", "activation_density", "activation_size"],
        bins=(4.0, 40),
        measure={"twice": lambda module, x: 2 * module(x)},
        save_steps=[0, 1],
    )
    rates = finite_nets.mean_field_rates(perceptron, [8]).at[8]
    module = perceptron(8)
    for seed in range(2):
        values = start(module, rates, 8, torch.tensor([seed]), 0)
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(values[name][0])
            x = torch.tensor(TASK.x, dtype=torch.float32)
            h, f = module[:3](x), module(x)[:, 0]
        one = nets.sel(width=8, seed=seed, step=0)
        np.testing.assert_allclose(one.prediction, f, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.feature_kernel[0], h @ h.T / 8, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.activation_size[0], h.square().mean().sqrt(), rtol=1e-5)
        density, _ = np.histogram(h, bins=40, range=(-4, 4))
        np.testing.assert_allclose(one.activation_density[0], density / h.numel() / 0.2, atol=0.02 / h.numel() / 0.2)
        np.testing.assert_allclose(finite_nets.measured(nets, "twice").values[0, seed, 0, :, 0], 2 * f, rtol=1e-4)
    with pytest.raises(ValueError, match="'thrice' was not measured; there are twice"):
        finite_nets.measured(nets, "thrice")


def test_text_starts_from_equal_chances_and_holds_the_last_position():
    nets = finite_nets.train_modules(
        Mixed,
        TEXT,
        finite_nets.ModuleTraining(0.3, steps=2, batch=5),
        [8],
        2,
        loss="cross_entropy",
        output="zero",
        observed=(3, 4),
    )
    np.testing.assert_allclose(nets.loss.isel(step=0), np.log(7), rtol=1e-6)
    assert nets.prediction.shape == (1, 2, 3, 7, 7)
    _, y = TEXT.windows([0], "train")
    assert nets.target.values[0].argmax() == y[0, -1]
    assert abs(nets.loss.isel(step=-1) - np.log(7)).min() > 1e-4


def test_finished_networks_are_found_again(tmp_path):
    first = images(store=tmp_path)
    files = sorted(tmp_path.glob("*/*.npz"))
    assert len(files) == 6
    times = [path.stat().st_mtime_ns for path in files]
    files[0].unlink()
    again = images(store=tmp_path)
    np.testing.assert_allclose(again.prediction, first.prediction, atol=1e-5)
    assert [path.stat().st_mtime_ns for path in files[1:]] == times[1:]
    images(store=tmp_path, factors={"stem.weight": 2.0})
    assert len(list(tmp_path.glob("*/*.npz"))) == 12


def test_training_that_is_stopped_goes_on(monkeypatch, tmp_path):
    whole = images()
    monkeypatch.setattr(store, "EVERY", 0.0)
    step, taken = Optimiser.step, []

    def stopping(self, t, gradients):
        taken.append(t)
        if len(taken) == 3:
            raise KeyboardInterrupt
        step(self, t, gradients)

    monkeypatch.setattr(Optimiser, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        images(store=tmp_path)
    (path,) = tmp_path.glob("*/*.pt")
    kept = path.read_bytes()
    again = images(store=tmp_path)
    assert taken[:4] == [0, 1, 2, 2]  # not from the start
    assert not list(tmp_path.glob("*/*.pt"))
    for name in whole.data_vars:
        np.testing.assert_array_equal(again[name], whole[name])
    path.write_bytes(kept[:100])
    for finished in tmp_path.glob("*/*.npz"):
        finished.unlink()
    with pytest.raises(StoreError, match="is damaged .*; remove it, and train again"):
        images(store=tmp_path)


def test_changes_are_those_since_the_start_whatever_is_recorded():
    first, last = images(save_steps=[0, 3]), images(save_steps=[3])
    for name in ("weight_change", "activation_change"):
        np.testing.assert_allclose(last[name].isel(step=-1), first[name].isel(step=-1), rtol=1e-6)
        assert (last[name] > 0).all()


def test_results_of_other_modules_are_of_other_problems():
    def problem_id(kernel, **options):
        def convolution(N):
            layers = nn.Conv2d(2, N, kernel, padding=kernel // 2), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(N, 2)
            return nn.Sequential(*layers)

        widths = options.pop("widths", [4])
        training = finite_nets.ModuleTraining(0.5, steps=1)
        nets = finite_nets.train_modules(convolution, IMAGES, training, widths, 1, loss="cross_entropy", **options)
        return nets.attrs["problem_id"]

    assert problem_id(1) == problem_id(1) == problem_id(1, widths=[8, 6])
    assert len({problem_id(1), problem_id(3), problem_id(1, gamma0=2.0), problem_id(1, centered=True)}) == 4


class Acting(nn.Module):
    def __init__(self, N, act, plain):
        super().__init__()
        self.first, self.last = nn.Linear(5, N), nn.Linear(N, 1)
        self.act = lambda x: act(x) + 0 * plain

    def forward(self, x):
        return self.last(self.act(self.first(x)))


def layered(N, act):
    return nn.Sequential(nn.Linear(5, N), act(), nn.Linear(N, 1))


def test_the_same_source_with_other_activations_is_another_problem(tmp_path):
    def found(make):
        training = finite_nets.ModuleTraining(0.5, steps=1)
        return finite_nets.train_modules(make, TASK, training, [4], 1, store=tmp_path)

    def closed(act):
        return lambda N: Acting(N, act, 0.0)

    makers = [functools.partial(layered, act=act) for act in (nn.Tanh, nn.ReLU, functools.partial(nn.LeakyReLU, 0.3))]
    makers += [closed(torch.sigmoid), closed(torch.cos), closed(lambda x: torch.cos(x) + 1e-3)]
    nets = [found(make) for make in makers]
    assert len({each.attrs["problem_id"] for each in nets}) == len(makers)
    assert len({float(each.prediction[0, 0, -1, 0]) for each in nets}) == len(makers)
    assert found(functools.partial(layered, act=nn.Tanh)).attrs["problem_id"] == nets[0].attrs["problem_id"]


def test_outputs_at_fixed_weights_tell_what_no_text_does():
    def probe(act):
        return probed(lambda N: Acting(N, act, 0.0), torch.zeros(1, 5), 1)

    assert probe(torch.tanh) == probe(torch.tanh)
    assert probe(torch.tanh) != probe(torch.relu)
    assert [each[1] for each in probe(torch.tanh)] == [each[1] for each in probe(torch.relu)]  # the same layers
    assert [each[0] for each in probed(lambda N: nn.Linear(N // 24 * 5, 1), torch.zeros(1, 5), 1)] == [24, 32]


def test_sources_hold_what_they_take_from_around():
    def measure(power):
        return lambda module, x: module(x) ** power

    first, second = (lambda x: x + 1), (lambda x: x - 1)  # of one line
    different = [measure(1), measure(2), measure(torch.tensor(2)), first, second, functools.partial(first, 1)]
    assert len({source_of(each) for each in different}) == len(different)
    assert source_of(measure(1)) == source_of(measure(1))
    assert len({source_of(each) for each in (np.sin, np.cos, torch.sin, torch.cos, nn.Tanh, nn.Tanh(), np)}) == 7
    assert " 0x" not in source_of([torch.tanh, nn.Tanh(), object(), eval("lambda x: [y for y in x if y in 'ab']")])


def test_networks_that_diverge_are_masked():
    """Also in the last update, after which there is no other batch; one that is large, but no explosion, is none."""
    training = finite_nets.ModuleTraining(1e5, steps=40)
    with pytest.raises(DivergenceError, match="Lower learning_rate=100000"):
        finite_nets.train_modules(perceptron, TASK, training, [4], 2)
    with pytest.raises(DivergenceError, match="Lower learning_rate=1e"):
        finite_nets.train_modules(perceptron, TASK, finite_nets.ModuleTraining(1e9, 1), [4], 2, save_steps=[1])
    nets = finite_nets.train_modules(perceptron, TASK, finite_nets.ModuleTraining(100.0, 1), [4], 2, save_steps=[1])
    assert (nets.loss > 5).any()
    assert "diverged" not in nets


def test_numbers_that_are_kept_are_buffers():
    class Kept(nn.Module):
        def __init__(self, N):
            super().__init__()
            self.register_buffer("matrix", torch.randn(N, 5))
            self.readout = nn.Linear(N, 1)

        def forward(self, x):
            return self.readout(torch.relu(x @ self.matrix.T))

    nets = finite_nets.train_modules(Kept, TASK, finite_nets.ModuleTraining(0.1, 2), [4, 8], 2)
    assert nets["parameter"].values.tolist() == ["readout.weight"]
    assert abs(nets.prediction.isel(step=-1) - nets.prediction.isel(step=0)).max() > 1e-3


def test_group_norms_are_those_of_torch():
    module = Image(8)
    rates = finite_nets.mean_field_rates(Image, [8]).at[8]
    values = start(module, rates, 8, torch.arange(2), 0)
    x = torch.randn(3, 2, 4, 4)
    batched = Batched(module, "squared", torch.device("cpu"), half=False, tokens=False)

    def forward(p, x):
        return torch.func.functional_call(module, p, (x,))

    together = batched.forward(forward, values, x)
    for i in range(2):
        torch.testing.assert_close(together[i], forward({k: v[i] for k, v in values.items()}, x))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": (0, 2), "dilation": (2, 1)}])
def test_convolutions_by_products_are_convolutions(options):
    x, weight, bias = torch.randn(2, 3, 7, 6), torch.randn(4, 3, 3, 2), torch.randn(4)
    torch.testing.assert_close(conv_by_products(x, weight, bias, **options), torch.conv2d(x, weight, bias, **options))
    assert conv_by_products(x, torch.randn(3, 1, 3, 3), groups=3) is None


def test_networks_with_convolutions_by_products_are_the_same(monkeypatch):
    plain, calls = images(), []
    made = members._SideBySide.__init__
    monkeypatch.setattr(members, "LARGE", 1)
    monkeypatch.setattr(members._SideBySide, "__init__", lambda self, _: made(self, True))
    monkeypatch.setattr(members, "conv_by_products", lambda *a, **k: calls.append(1) or conv_by_products(*a, **k))
    np.testing.assert_allclose(images().prediction, plain.prediction, atol=1e-5)
    assert calls


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bf16"])
def test_networks_on_a_gpu_are_those_of_the_cpu(dtype, monkeypatch):
    """The same draws and batches: apart by rounding, of bfloat16 2^-8 a product; products of convolutions as well."""
    monkeypatch.setattr(members, "LARGE", 1)
    one, other = images(device="cpu"), images(device="gpu", dtype=dtype)
    np.testing.assert_allclose(
        other.prediction, one.prediction, atol={"float32": 1e-4, "tf32": 5e-3, "bf16": 5e-2}[dtype]
    )
    assert other.attrs["device"] != "cpu"


def test_a_plan_says_what_there_is_to_do():
    plan = finite_nets.plan_modules(perceptron, TASK, finite_nets.ModuleTraining(0.5, steps=20), [4, 8], 3)
    assert [cost.parameters for cost in plan.costs] == [40, 112]
    assert str(plan).splitlines()[1].split()[:4] == ["4", "40", "3", "3"]
    assert plan.seconds > 0


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"make": lambda N: nn.Sequential(nn.Linear(5, N), nn.BatchNorm1d(N), nn.Linear(N, 1))}, "is BatchNorm1d"),
        ({"make": lambda N: nn.Sequential(nn.Linear(5, N), nn.Dropout(0.1), nn.Linear(N, 1))}, "is Dropout"),
        ({"make": lambda N: nn.Sequential(nn.Linear(5, N), nn.Linear(N, 3))}, r"returns the shape \(2, 3\)"),
        ({"make": lambda N: nn.Sequential(nn.Linear(4, N), nn.Linear(N, 1))}, r"inputs of the task, of shape \(2, 5\)"),
        ({"bins": 3}, "bins=3 is no pair"),
        ({"training": dmft.GradientDescent(0.1, steps=2, observe="test")}, "observe='test' of dmft.GradientDescent"),
        ({"layers": ["1.2"]}, "layers holds '1.2'; the submodules are 0, 1"),
        ({"observed": (7, 1)}, "the task has 6 training and 4 test samples"),
        ({"training": 3}, "is no finite_nets.ModuleTraining"),
        ({"task": [1]}, r"is no dmft.Task \(dmft.load_task\)"),
        ({"loss": "huber"}, "loss='huber' is unknown"),
        ({"dtype": "float64"}, "dtype='float64' is not offered"),
        ({"observables": ["feature_kernel"]}, "feature_kernel is of layers"),
        ({"training": finite_nets.ModuleTraining(1.0, 2, augment="flip")}, "is for images"),
        ({"training": finite_nets.ModuleTraining(1.0, 2, batch=7)}, "batch=7 is more than the 6 training samples"),
        ({"memory_limit": 100}, "the results of 2 widths with 2 networks each needs about"),
        ({"centered": True, "save_steps": [1, 2]}, r"add it to save_steps=\[1, 2\]"),
    ],
)
def test_what_cannot_be_trained_is_refused(change, message):
    given = {"make": perceptron, "task": TASK, "training": finite_nets.ModuleTraining(0.1, 2)} | change
    positional = [given.pop(name) for name in ("make", "task", "training")]
    with pytest.raises((ValueError, TypeError, MemoryError), match=message):
        finite_nets.train_modules(*positional, [4, 8], 2, **given)


# ---- comparisons without a theory ------------------------------------------------------------------------------------


def test_distances_to_the_widest_have_their_exponents():
    """Predictions m + a / N + noise / sqrt(N): -1/2 of one network, -1 of means, which a law a / N^2 has not."""
    widths, seeds = [16, 32, 64, 128], 400
    problem = dmft.Problem(dmft.MLP(1, centered=False), TASK, dmft.GradientDescent(1.0, steps=1))
    m, a = rng.standard_normal((2, 10)) + 2, 30.0

    def made(power, noise=1.0):
        def prediction(N, seed):
            drawn = np.random.default_rng((N, seed)).standard_normal((2, 10))
            return m + a / N**power + noise * drawn / np.sqrt(N)

        return finite_nets.from_predictions(problem, widths, seeds, prediction)

    found = comparisons.pointwise(made(1))
    assert abs(found["widest_error_exponent"] + 1).max() < 0.15
    assert abs(comparisons.pointwise(made(2))["widest_error_exponent"] + 1).min() > 0.3
    assert abs(comparisons.pointwise(made(9))["widest_exponent"] + 0.5).max() < 0.1
    assert abs(comparisons.pointwise(made(9))["successive_exponent"] + 0.5).max() < 0.1
    onset = comparisons.onset(found, tolerance=0.3)
    assert onset["onset"].sel(narrow=16).notnull().all()
    assert onset["onset"].sel(narrow=64).isnull().all()


def test_representations_without_a_theory_are_compared_with_the_widest():
    nets = finite_nets.train_modules(
        perceptron,
        TASK,
        finite_nets.ModuleTraining(0.5, 2),
        [8, 64, 256],
        8,
        layers=["2"],
        observables=["feature_kernel"],
    )
    alike = comparisons.representations(nets)
    assert alike.attrs["reference"] == "widest"
    assert alike["width"].values.tolist() == [8, 64]
    assert (alike.cka.sel(width=64) > alike.cka.sel(width=8)).all()
    widest = nets.feature_kernel.isel(width=-1).mean("seed").values
    one = comparisons.kernels.centred_alignment(nets.feature_kernel.values[0].astype(float), widest.astype(float))
    np.testing.assert_allclose(alike.cka.sel(width=8), one.mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match="one width without a theory"):
        comparisons.representations(nets.isel(width=[0]))
