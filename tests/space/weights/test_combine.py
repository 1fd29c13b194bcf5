"""Combining checkpoints beside plain float64 loops over the elements, as the papers say it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import tolerance
from tunemath.errors import ContractError, ModelError
from tunemath.space.weights.combine import combine
from tunemath.space.weights.mixing import Mix, drop_and_rescale, generator


def checkpoint(path, seed, sharded=True, **more):
    """Write a seeded checkpoint in two files, or one."""
    generator = torch.Generator().manual_seed(seed)
    path.mkdir()
    tensors = {
        "a": torch.randn(5, 4, generator=generator),
        "b": torch.randn(7, generator=generator),
        "c": torch.randn(3, 2, 2, generator=generator),
        **more,
    }
    (path / "config.json").write_text(json.dumps({"torch_dtype": "float32"}))
    if not sharded:
        save_file(tensors, path / "model.safetensors")
        return path
    names = {name: f"model-0000{1 + (name == 'a')}-of-00002.safetensors" for name in tensors}
    for file in set(names.values()):
        save_file({n: t for n, t in tensors.items() if names[n] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return path


@pytest.fixture
def folders(tmp_path):
    for seed, name in enumerate(("base", "one", "two", "three")):
        checkpoint(tmp_path / name, seed)
    (tmp_path / "out").mkdir()
    return tmp_path


def state(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found.update(load_file(path))
    return found


def by_elements(folders, names, formula):
    """Return each tensor of the formula over (base, models) of single elements, float64."""
    base, models = state(folders / "base"), [state(folders / name) for name in names]
    found = {}
    for name, tensor in base.items():
        columns = [m[name].double().flatten().tolist() for m in models]
        rows = zip(tensor.double().flatten().tolist(), *columns, strict=True)
        values = formula(list(rows))
        found[name] = torch.tensor(values, dtype=torch.float64).reshape(tensor.shape)
    return found


def check(folders, expected):
    got = state(folders / "out")
    assert got.keys() == expected.keys()
    names = ("base", "one", "two", "three")
    largest = [max(float(t.abs().max()) for t in state(folders / name).values()) for name in names]
    # A number is made in some eight steps, of numbers no larger than the sum of the largest.
    atol = tolerance.dot(8, torch.float32) * sum(largest)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name].double(), tensor, rtol=0, atol=atol)


def run(folders, names, mix, base=True, **settings):
    models = [folders / name for name in names]
    return combine(
        models, folders / "out", mix, base=folders / "base" if base else None, **settings
    )


def test_linear_is_the_weighted_mean_and_needs_no_base(folders):
    run(folders, ["one", "two", "three"], Mix("linear", (1.0, 2.0, 5.0)), base=False)
    check(folders, by_elements(folders, ["one", "two", "three"], lambda rows: [
        (1 * x + 2 * y + 5 * z) / 8 for _, x, y, z in rows]))  # fmt: skip
    index = json.loads((folders / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {"a", "b", "c"}
    assert index["metadata"]["total_size"] == 4 * (20 + 7 + 12)


def test_task_vectors_add_scale_and_subtract(folders):
    found = run(folders, ["one", "two"], Mix("task", (0.75, -0.5), scale=2.0))
    check(folders, by_elements(folders, ["one", "two"], lambda rows: [
        w + 2 * (0.75 * (x - w) - 0.5 * (y - w)) for w, x, y in rows]))  # fmt: skip
    assert found.kept.share == pytest.approx(1, abs=1e-6)


def test_slerp_is_the_arc_between_two_tensors(folders):
    run(folders, ["one", "two"], Mix("slerp", (0.75, 0.25)), base=False)

    def arc(rows):
        x, y = [r[1] for r in rows], [r[2] for r in rows]
        cosine = math.sumprod(x, y) if hasattr(math, "sumprod") else sum(map(float.__mul__, x, y))
        angle = math.acos(cosine / math.hypot(*x) / math.hypot(*y))
        one, two = math.sin(0.75 * angle), math.sin(0.25 * angle)
        return [(one * p + two * q) / math.sin(angle) for p, q in zip(x, y, strict=True)]

    check(folders, by_elements(folders, ["one", "two"], arc))


def ties(rows, weights, density, scale):
    """Trim, elect, merge, over lists of floats."""
    deltas = [[row[i + 1] - row[0] for row in rows] for i in range(len(weights))]
    keep = max(1, int(density * len(rows)))
    for delta in deltas:
        least = sorted(map(abs, delta), reverse=True)[keep - 1]
        delta[:] = [value if abs(value) >= least else 0.0 for value in delta]
    found = []
    for place, row in enumerate(rows):
        votes = [w * d[place] for w, d in zip(weights, deltas, strict=True)]
        positive = sum(votes) >= 0
        agree = [(v, w) for v, w in zip(votes, weights, strict=True) if v and (v > 0) == positive]
        merged = sum(v for v, _ in agree) / sum(w for _, w in agree) if agree else 0.0
        found.append(row[0] + scale * merged)
    return found


@pytest.mark.parametrize(("weights", "density"), [((1.0, 1.0, 1.0), 0.5), ((0.5, 2.0, 1.0), 0.2)])
def test_ties_trims_elects_and_merges(folders, weights, density):
    names = ["one", "two", "three"]
    run(folders, names, Mix("ties", weights, density=density, scale=0.7))
    check(folders, by_elements(folders, names, lambda rows: ties(rows, weights, density, 0.7)))


@pytest.mark.parametrize("method", ["dare", "dare-ties"])
def test_dare_drops_by_its_seed_and_rescales(folders, method):
    names, weights, base = ["one", "two"], (1.0, 0.5), state(folders / "base")
    run(folders, names, Mix(method, weights, density=0.5, seed=3))
    models = [state(folders / name) for name in names]
    got = state(folders / "out")
    for name, before in base.items():
        kept = []
        for place, model in enumerate(models):
            random = generator(3, name, place)
            mask = torch.rand(before.shape, generator=random) < 0.5
            kept.append((model[name] - before).double() * mask * 2)
        rows = zip(*(k.flatten().tolist() for k in kept), strict=True)
        after = [
            x + 0.5 * y if method == "dare" else ties([(0.0, x, y)], weights, 1.0, 1.0)[0]
            for x, y in rows
        ]
        expected = before.double() + torch.tensor(after).reshape(before.shape)
        torch.testing.assert_close(got[name].double(), expected, rtol=0, atol=1e-5)


def test_what_dare_drops_is_right_on_average():
    delta = torch.ones(200_000)
    kept = drop_and_rescale(delta, 0.2, generator(0, "a", 0))
    assert set(kept.unique().tolist()) == {0.0, 5.0}
    assert float((kept > 0).float().mean()) == pytest.approx(0.2, abs=0.005)


def test_a_seed_is_the_same_again_and_another_is_not(folders):
    found = []
    for seed in (0, 0, 1):
        run(folders, ["one"], Mix("dare", (1.0,), density=0.5, seed=seed))
        found.append(state(folders / "out")["a"])
        for path in (folders / "out").iterdir():
            path.unlink()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_short_dtype_says_what_survived(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    save_file({"w": torch.ones(64, 64)}, base / "model.safetensors")
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    # A step of 2⁻⁹ from 1 is half of bfloat16's spacing below, and is lost above.
    save_file({"w": torch.ones(64, 64) + 2**-9}, tuned / "model.safetensors")
    (tmp_path / "out").mkdir()
    mix = Mix("task", (1.0,))
    found = combine([tuned], tmp_path / "out", mix, base=base, dtype="bfloat16")
    assert found.kept.share == 0
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].dtype == torch.bfloat16


def test_configuration_says_the_dtype(folders):
    run(folders, ["one"], Mix("linear", (1.0,)), dtype="float16")
    config = json.loads((folders / "out" / "config.json").read_text())
    assert config == {"dtype": "float16"}


def test_whole_numbers_have_to_be_equal(tmp_path):
    same = torch.arange(3)
    one = checkpoint(tmp_path / "one", 0, steps=same)
    two = checkpoint(tmp_path / "two", 1, sharded=False, steps=same)
    other = checkpoint(tmp_path / "other", 1, steps=same + 1)
    for name in ("out", "bad"):
        (tmp_path / name).mkdir()
    combine([one, two], tmp_path / "out", Mix("linear", (1.0, 1.0)))
    assert torch.equal(state(tmp_path / "out")["steps"], same)
    with pytest.raises(ModelError, match=r"steps is stored as torch.int64 and differs"):
        combine([one, other], tmp_path / "bad", Mix("linear", (1.0, 1.0)))


def test_other_architectures_are_refused(folders, tmp_path):
    checkpoint(tmp_path / "more", 0, d=torch.zeros(2))
    checkpoint(tmp_path / "wide", 0, b=torch.zeros(9))
    with pytest.raises(ModelError, match=r"more has d, which .*base does not \(1 such\)"):
        run(folders, ["more"], Mix("task", (1.0,)))
    with pytest.raises(ModelError, match=r"b is \[7\] in .*base and \[9\] in .*wide"):
        run(folders, ["wide"], Mix("task", (1.0,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "tie", "weights": (1.0,)}, "expected one of linear, task"),
        ({"method": "slerp", "weights": (1.0,)}, "between two models; 1 were given"),
        ({"method": "ties", "weights": (1.0, -1.0)}, "no negative weight; task subtracts"),
        ({"method": "linear", "weights": (1.0, -1.0)}, "sum to 0"),
        ({"method": "task", "weights": (1.0,), "density": 0.5}, "task keeps everything"),
        ({"method": "dare", "weights": (1.0,), "density": 0.0}, "over 0 and at most 1"),
        ({"method": "linear", "weights": (1.0,), "scale": 2.0}, "linear has none"),
        ({"method": "task", "weights": (float("nan"),)}, "expected numbers up to"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ContractError, match=message):
        Mix(**settings)


def test_changes_of_a_base_need_one(folders):
    with pytest.raises(ContractError, match="give --base"):
        run(folders, ["one"], Mix("task", (1.0,)), base=False)
